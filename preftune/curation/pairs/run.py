"""`pairs`: two passes. The first goes over the rows and decides about every two answers; the second, over the pairs
that are left, draws what the caps keep, shuffles, and writes. Between them pairs are on disk; memory holds some hundred
bytes of each: its place, and a hash that tells whether it came before.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from preftune.curation.contents import as_text, beside, plain
from preftune.curation.folder import PARTIAL, Curated, check_free, room_for
from preftune.curation.pairs.choose import Candidate, Chooser
from preftune.curation.pairs.config import PairsConfig
from preftune.curation.pairs.page import make_page, problems_of
from preftune.curation.pairs.read import Answered, Bad, read_answers
from preftune.curation.pairs.tally import Shown, Tally
from preftune.errors import DataError, PreftuneError
from preftune.recipes.schema import nearest
from preftune.train.progress import Progress

CLOSE = 6
"""Nearly equal answers that the report shows, at most so many times two."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What `pairs` wrote.

    Attributes:
        folder: rows.jsonl, decisions.jsonl, summary.json and report.html.
        kept: pairs written; `prompts`: different rows that they come from.
        ordered: pairs before any was left out: of two answers one is better. `ordered_prompts`: rows with one.
        tally: counts by tier.
        warnings: what a person should look at, in words.
    """

    folder: Path
    kept: int
    prompts: int
    ordered: int
    ordered_prompts: int
    tally: Tally
    warnings: Sequence[str]


def pairs(config: PairsConfig, output: Path, *, base_dir: Path | None = None) -> Pairs:
    """Make preference pairs of answers to the same prompt.

    Every better answer is paired with every worse one (or those of given tiers). Pairs whose sides are equal or nearly
    equal, or that are like another pair, are dropped; caps keep some of the rest; the order is drawn. Rows hold prompt,
    chosen, rejected, margin and the row's other columns; who wrote what is in decisions.jsonl alone.

    Args:
        output: a new folder.
        base_dir: where relative data paths start.

    Raises:
        UsageError: `output` holds something. DataError: rows can't be read, do not say which answer is better, or no
        pair is left.
    """
    check_free(output)
    with room_for(output), Progress("pairs") as progress, Curated(output) as curated, _Spool(output, config) as spool:
        tally = Tally()
        chooser = Chooser(config)
        progress.begin("prompts")
        first = _First(config, chooser, spool, tally, curated)
        for done, group in enumerate(read_answers(config, base_dir, output), 1):
            first.take(group)
            progress.tick(done, None)
        _check_tiers(chooser, tally)
        if not spool:
            raise DataError(f"{config.data[0].path}: no pair is left ({tally.words()})")
        dropped, order = _draw(config, spool)
        tally.told = sorted(first.told) if config.columns == "all" and not config.keep_source else []
        _second(spool, curated, tally, dropped, order)
        tally.samples(spool.read, config.seed)
        found = Pairs(
            output, len(order), tally.prompts, tally.ordered, tally.ordered_prompts, tally,
            problems_of(config, tally),
        )  # fmt: skip
        measures = {
            "pairs": found.kept, "prompts": found.prompts, "pairs_before_any_was_left_out": found.ordered,
            "prompts_with_one": found.ordered_prompts, **tally.to_json(), "warnings": found.warnings,
        }  # fmt: skip
        settings = config.model_dump(mode="json", by_alias=True)
        curated.finish("preftune data pairs", settings, measures, make_page(config, tally, found.warnings))
    return found


class _Spool:
    """Pairs and decisions on disk between the passes.

    Attributes:
        tiers: the number of each pair's two tiers in `names`; kept only where their pairs are capped.
        margins: 0 where there are none.
    """

    def __init__(self, folder: Path, config: PairsConfig) -> None:
        self._capped = config.max_per_tier_pair is not None
        self._paths = [folder / f"{name}{PARTIAL}" for name in ("pairs", "candidates")]
        self._places = array("q")
        self.tiers, self.margins = array("i"), array("d")
        self.names: dict[tuple[str, str], int] = {}

    def __enter__(self) -> _Spool:
        try:
            self._pairs: BinaryIO = self._paths[0].open("w+b")
            self._decisions: BinaryIO = self._paths[1].open("w+b")
        except OSError as error:
            raise PreftuneError(f"can't write {self._paths[0]}: {error.strerror or error}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self._pairs.close()
        self._decisions.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, pair: Candidate, row: Mapping[str, Any]) -> int:
        """Keep a pair for the second pass; returns its number."""
        self._places.append(self._pairs.tell())
        self._pairs.write(_line(row))
        if self._capped:
            self.tiers.append(self.names.setdefault(pair.tiers, len(self.names)))
        self.margins.append(pair.margin or 0.0)
        return len(self._places) - 1

    def decide(self, decision: Mapping[str, Any]) -> None:
        self._decisions.write(_line(decision))

    def decisions(self) -> Iterator[dict[str, Any]]:
        self._decisions.seek(0)
        for line in self._decisions:
            yield json.loads(line)

    def read(self, number: int) -> dict[str, Any]:
        """A pair's row."""
        self._pairs.seek(self._places[number])
        row: dict[str, Any] = json.loads(self._pairs.readline())
        return row


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, default=_other) + "\n").encode()


def _other(value: Any) -> Any:
    """Values of Parquet files, as `Curated` writes them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return {"bytes": value.hex()} if isinstance(value, bytes) else str(value)


@dataclass(slots=True)
class _First:
    """The first pass: what becomes of every two answers, but for the cap over all prompts.

    Attributes:
        seen: hashes of the pairs so far.
        per_prompt: pairs that the cap has let through.
        told: columns that hold one of the answers, and so tell who wrote it.
    """

    config: PairsConfig
    chooser: Chooser
    spool: _Spool
    tally: Tally
    curated: Curated
    seen: set[bytes] = field(default_factory=set)
    per_prompt: Counter[bytes] = field(default_factory=Counter)
    told: set[str] = field(default_factory=set)

    def take(self, group: Answered | Bad) -> None:
        """A prompt with its answers."""
        if isinstance(group, Bad):
            self.tally.bad += 1
            self.spool.decide({"where": group.where, "why": "bad row", "problem": group.problem})
            return
        self.tally.saw(answer.tier for answer in group.answers)
        found = self.chooser.candidates(group)
        if not found:
            self.tally.alone += 1
            why = "one answer" if len(group.answers) < 2 else "no answers of these tiers"
            self.spool.decide({"where": group.where, "why": why, "answers": len(group.answers)})
            return
        self._look_for_answers(group)
        for first, second, similarity in self.chooser.alike:
            tiers, texts = (first.tier, second.tier), (first.text, second.text)
            self.tally.alike(Shown(group.where, as_text(group.prompt), tiers, texts, similarity), CLOSE)
        self._leave_out_again(group, found)
        self._cap(group, found)
        self.tally.see(group, found)
        for one in found:
            number = None if one.why else self.spool.add(one, self._row(group, one))
            self.spool.decide(_decision(group, one, number))

    def _look_for_answers(self, group: Answered) -> None:
        """A column that holds an answer (the human one, say), itself or within, would tell which side it is."""
        texts = {answer.text.strip() for answer in group.answers}
        self.told |= {name for name, value in beside(group.columns).items() if not texts.isdisjoint(_texts(value))}

    def _leave_out_again(self, group: Answered, found: Sequence[Candidate]) -> None:
        """Pairs that came before, either way round, in another row with the same prompt."""
        prompt = as_text(group.prompt)
        for one in found:
            if one.why:
                continue
            if _key(prompt, one.chosen.text, one.rejected.text) in self.seen:
                one.why = "came before"
            elif _key(prompt, one.rejected.text, one.chosen.text) in self.seen:
                one.why = "came before the other way round"
            else:
                self.seen.add(_key(prompt, one.chosen.text, one.rejected.text))

    def _cap(self, group: Answered, found: Sequence[Candidate]) -> None:
        left = [one for one in found if not one.why]
        most = self.config.max_per_prompt
        if most is None or not left:
            return
        key = _key(as_text(group.prompt))
        kept = {id(one) for one in self.chooser.within_cap(left, most - self.per_prompt[key])}
        self.per_prompt[key] += len(kept)
        for one in left:
            if id(one) not in kept:
                one.why = "cap per prompt"

    def _row(self, group: Answered, one: Candidate) -> dict[str, Any]:
        columns = beside(group.columns) if self.config.columns == "all" else {}
        row = {
            **columns, "prompt": plain(group.prompt), "chosen": plain(one.chosen.content),
            "rejected": plain(one.rejected.content),
        }  # fmt: skip
        if self.config.margin != "none":
            row["margin"] = one.margin
        if self.config.keep_source:
            row |= {"chosen_model": one.chosen.tier, "rejected_model": one.rejected.tier}
        return row


def _decision(group: Answered, one: Candidate, number: int | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "where": group.where, "why": one.why, "chosen": one.chosen.tier, "rejected": one.rejected.tier,
        "answers": [one.chosen.place, one.rejected.place], "lengths": [len(one.chosen.text), len(one.rejected.text)],
    }  # fmt: skip
    if one.chosen.where != group.where or one.rejected.where != group.where:
        out["rows"] = [one.chosen.where, one.rejected.where]
    if one.margin is not None:
        out["margin"] = one.margin
    if one.similarity is not None:
        out["similarity"] = round(one.similarity, 4)
    if one.like is not None:
        out["like"] = [one.like.chosen.place, one.like.rejected.place]
    if one.against:
        out["against_the_data"] = True
    return out if number is None else {**out, "pair": number}


def _draw(config: PairsConfig, spool: _Spool) -> tuple[set[int], list[int]]:
    """Pairs that the cap of their two tiers drops, and the others in the order in which they are written."""
    rng = random.Random(f"order {config.seed}")
    dropped: set[int] = set()
    if config.max_per_tier_pair is not None:
        members: dict[int, list[int]] = {}
        for number, tier in enumerate(spool.tiers):
            members.setdefault(tier, []).append(number)
        for numbers in members.values():
            rng.shuffle(numbers)
            if config.prefer == "widest":
                numbers.sort(key=lambda number: -spool.margins[number])
            dropped.update(numbers[config.max_per_tier_pair :])
    order = [number for number in range(len(spool)) if number not in dropped]
    if config.shuffle:
        rng.shuffle(order)
    return dropped, order


def _second(spool: _Spool, curated: Curated, tally: Tally, dropped: set[int], order: Sequence[int]) -> None:
    lines = array("q", [0]) * len(spool)
    for line, number in enumerate(order, 1):
        row = spool.read(number)
        for name in tally.told:
            row.pop(name, None)
        curated.write(row)
        lines[number] = line
    for decision in spool.decisions():
        number, why = decision.pop("pair", None), decision.pop("why")
        if number is not None and number in dropped:
            why = "cap per tier pair"
        details = {name: value for name, value in decision.items() if name != "where"}
        if number is not None and not why:
            details["line"] = lines[number]
        curated.decide(decision["where"], kept=not why, why=why, **details)
        if "chosen" in decision:
            tally.count(decision, why, number)


def _check_tiers(chooser: Chooser, tally: Tally) -> None:
    """A tier that no answer is of is most likely a slip."""
    if not chooser.unseen:
        return
    name = sorted(tier if isinstance(tier, str) else f"{tier:g}" for tier in chooser.unseen)[0]
    known = sorted(tally.tiers)
    close = nearest(name, known)
    hint = f"did you mean {close!r}?" if close else f"tiers: {', '.join(known[:20])}"
    raise DataError(f"chosen_tiers and rejected_tiers: no answer is of {name!r}; {hint}")


def _texts(value: Any) -> Iterator[str]:
    """All texts within a column's value."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _key(*texts: str) -> bytes:
    words = ["\x1f".join(text.split()) for text in texts]
    return hashlib.blake2b("\x1e".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()
