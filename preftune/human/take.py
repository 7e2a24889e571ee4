"""Taking ratings in: check the files, keep the ratings, measure how far the raters agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import UsageError
from preftune.human.agreement import Agreement, agree
from preftune.human.check import Checked, check_files
from preftune.human.ratings import judged, read_ratings, write_ratings
from preftune.human.rounds import Round, open_last, write_facts


@dataclass(frozen=True, slots=True)
class Taken:
    """An import that was in order."""

    round: Round
    checked: Checked
    agreement: Agreement
    wanting: int  # prompts with fewer raters than human.raters


def take(root: Path, files: Sequence[Path], *, partial: bool = False, renew: bool = False) -> Taken:
    """Add raters' files to the newest round. Importing the same file twice changes nothing.

    Args:
        partial: keep what is rated of a file with holes; a prompt counts for a rater who rated all of its answers.
        renew: a rater's earlier ratings give way to those of these files.

    Raises:
        DataError: everything that is wrong with the files; nothing is written.
        UsageError: there is no round, or its training has begun.
    """
    round_ = open_last(root)
    _check_open(root, round_)
    check_files(round_, files, read_ratings(round_.folder), partial=partial, renew=renew)

    # Faults are told before torch loads. What is written is checked once more where no other process writes.
    from preftune.train.folder import write_json
    from preftune.train.guard import only_one

    with only_one(root):
        _check_open(root, round_)
        checked = check_files(round_, files, read_ratings(round_.folder), partial=partial, renew=renew)
        table = judged(round_, checked.ratings)
        agreement = agree(table, round_.human.rate)
        write_ratings(round_.folder, checked.ratings)
        write_json(round_.folder / "agreement.json", agreement.to_json())
        raters = sorted({one.rater for one in checked.ratings})
        write_facts(
            round_.folder, round_.facts, state="rated", raters=raters, rated={"prompts": len(table)},
            ratings=len(checked.ratings),
        )  # fmt: skip
    wanting = sum(len(table.get(prompt, {})) < round_.human.raters for prompt in round_.prompts)
    return Taken(round_, checked, agreement, wanting)


def _check_open(root: Path, round_: Round) -> None:
    if round_.state == "trained":
        raise UsageError(
            f"{root}: round {round_.number} is trained, so ratings come too late for it; the next round begins with "
            f"`preftune human export RECIPE --output {root}`"
        )
    if round_.state == "training":
        raise UsageError(
            f"{root}: the training of round {round_.number} has begun, on the ratings it had. Go on with `preftune "
            f"human train {root} --resume`, or remove {round_.folder / 'train'} to begin it anew with more ratings"
        )
