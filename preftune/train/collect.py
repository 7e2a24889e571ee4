"""Answers drawn once, before training: rounds of iterative DPO, rejection fine-tuning, and what people rate.

The policy answers every training prompt as it stands, rewards score the answers, and all of it is written to
`collected.jsonl` in the run folder. From there on the run is one on fixed data. A resumed run reads the file; one that
was interrupted while drawing draws again, and gets the same answers, as nothing was trained yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from preftune.config import Recipe
from preftune.data.collected import read_collected, write_collected
from preftune.errors import DataError, UsageError
from preftune.records import Completion, Group
from preftune.rewards.pick import pick_metrics
from preftune.train.checkpoint import fingerprint
from preftune.train.progress import Progress
from preftune.train.rows import construct_of
from preftune.train.trace import cut_traces

if TYPE_CHECKING:
    from preftune.train.session import Session

FILE = "collected.jsonl"
HELD_OUT = "collected-validation.jsonl"
"""Answers to the validation prompts (collect.held_out), which nothing trains on."""


def collect(session: Session, folder: Path, base_dir: Path | None) -> None:
    """Make the session's training groups out of answers that are drawn now, or were before.

    Raises:
        DataError: `collect.path` or the run's own file is damaged or of another policy; nothing is left to train on.
        PreftuneError: what sampling or a reward raises.
    """
    given, own = session.recipe.collect.path, folder / FILE
    if given is not None:
        path = Path(given).expanduser()
        path = base_dir / path if base_dir is not None and not path.is_absolute() else path
        found = read_collected(path)
        groups, about = found.groups, found.about
        if about.get("policy") not in (None, fingerprint(session.policy.model)):
            session.notes.append(
                f"the answers in {path} were written by another policy than the one that is trained; importance ratios "
                "make up for it only where the two are near"
            )
    elif session.method.own_words:
        raise UsageError(
            f"method {session.method.name} trains on answers that people have rated: `preftune human export RECIPE` "
            "sends answers out, `preftune human import` takes ratings in and `preftune human train` trains. To train "
            "on such a file by hand, give collect.path"
        )
    elif own.exists():
        found = read_collected(own)
        groups = found.groups
        if dict(found.about) != describe(session):
            raise DataError(
                f"{own} was collected by another policy or with other settings than this recipe's; begin a new run "
                "with --output"
            )
    else:
        write_collected(own, draw_scored(session), describe(session))
        found = read_collected(own)  # what a resumed run reads, to the bit
        groups = found.groups
    if session.recipe.collect.held_out:
        _answer_held_out(session, folder)
    # part of what a resumed run must find as it was
    origin = str(own if given is None else path)
    session.data_facts["collected"] = {"content_hash": found.digest, "origins": [origin], "skipped": 0}
    try:
        _use(session, groups)
    except DataError as error:
        if given is not None:
            raise
        raise DataError(f"{error}. The answers are kept: begin anew (--output) with collect.path: {own}") from error


def describe(session: Session) -> dict[str, Any]:
    """What answers depend on besides the prompts: who writes, and how."""
    sampling = session.recipe.sampling
    settings = {"group_size", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"}
    return {
        "policy": fingerprint(session.policy.model), "model": session.recipe.model.path, "seed": session.recipe.seed,
        "sampling": sampling.model_dump(include=settings), "rewards": list(session.rewards.names),
    }  # fmt: skip


def draw_scored(session: Session, *, score: bool = True, held_out: bool = False) -> list[Group]:
    """`sampling.group_size` answers to every training prompt, or to every validation prompt, scored."""
    from preftune.train.setup import seed_everything

    recipe = session.recipe
    # The policy is part of the seed: else rounds would draw nearly the same answers where it hardly moved.
    seed = recipe.seed * 1_000_003 + int(fingerprint(session.policy.model)[:8], 16) + held_out
    session.progress.begin(f"answering the {'validation' if held_out else 'training'} prompts")
    drawn = session.rollout(
        [group.prompt for group in (session.validation if held_out else session.train)], recipe.sampling.group_size,
        recipe.sampling, seed=seed, policy_version=0, progress=session.progress.tick,
    )  # fmt: skip
    if not score:
        return drawn
    seed_everything(recipe.seed, 0)  # a reward may draw random numbers
    return list(session.score(drawn, step=0)[0])


def draw(recipe: Recipe, *, base_dir: Path | None) -> tuple[list[Group], Mapping[str, Any]]:
    """Load the recipe's model and let it answer its prompts; nothing is scored. For people to rate.

    Returns:
        The groups, and what `collected.jsonl` says of their origin.

    Raises:
        PreftuneError: as a run of the recipe would.
    """
    from preftune.train.session import Session

    with Progress(recipe.name) as progress:
        session = Session.open(recipe, functions=(), base_dir=base_dir, progress=progress)
        try:
            return draw_scored(session, score=False), describe(session)
        finally:
            session.close()


def _answer_held_out(session: Session, folder: Path) -> None:
    """Answers to the validation prompts, in a file of their own: a later stage is measured on contests of them."""
    path = folder / HELD_OUT
    if not path.exists():
        write_collected(path, draw_scored(session, held_out=True), describe(session))
    found = read_collected(path)
    if dict(found.about) != describe(session):
        raise DataError(
            f"{path} was collected by another policy or with other settings than this recipe's; begin a new run with "
            "--output"
        )
    session.data_facts["collected validation"] = {
        "content_hash": found.digest, "origins": [str(path)], "skipped": 0
    }  # fmt: skip


def _use(session: Session, groups: Sequence[Group]) -> None:
    method, recipe = session.method, session.recipe
    assert method.keeps is not None
    kept = method.keeps(groups, recipe)
    flat = _without_choice(session, groups, kept)
    said = ""
    if recipe.collect.trace == "winner":
        kept, said = _traces(session, kept)
    answers = [c for group in groups for c in group.completions]
    scores = [c.score for c in answers if c.score is not None]
    if not kept:
        raise DataError(
            f"of {len(groups)} prompts with {len(answers)} answers none is left to train on: {said or _why(session)}"
        )
    if method.own_words and any(c.logprobs is None for group in kept for c in group.completions):
        raise DataError(
            f"method {method.name} needs the log-probs that answers were drawn with, and some of {recipe.collect.path} "
            "have none; use a file that preftune human export and import made"
        )
    trained = sum(len(group.completions) for group in kept)
    mean = fmean(scores) if scores else 0.0
    session.data_metrics |= {"collected/score": mean, "collected/prompts_kept": len(kept) / len(groups)}
    session.data_metrics |= _means(answers, [c for group in kept for c in group.completions])
    session.notes.append(
        f"collected: {len(answers)} answers to {len(groups)} prompts, mean score {mean:.4g}; {len(kept)} prompts and "
        f"{trained} answers are trained on"
    )
    if said:
        session.notes.append(said)
    if flat:
        session.notes.append(
            f"{flat} of the {len(kept)} prompts have answers of one score alone, so the one that is trained on is as "
            "good as any: set collect.min_score to what a good answer scores, or collect.spread_only"
        )
    session.retrain_on(kept)


def _traces(session: Session, kept: Sequence[Group]) -> tuple[list[Group], str]:
    """The winners' traces of what is kept, and what became of the rest, in words."""
    construct = construct_of(session.recipe)
    assert construct is not None, "a recipe without a contest was refused"
    groups, won, left = cut_traces(kept, construct, session.contract)
    winners = ", ".join(f"{name} {count}" for name, count in won.items())
    said = f"traces of winners: {winners}; held-out prompts are measured without the contest's system prompt, too"
    if left:
        said += f"; {left} completions left out, as they are no contests with one winner, its working and an answer"
    return groups, said


def _means(answers: Sequence[Completion], kept: Sequence[Completion]) -> dict[str, float]:
    """Mean of each reward over all answers drawn, and over those that are trained on; and what sways verdicts."""
    out: dict[str, float] = {}
    for place, some in (("reward", answers), ("kept", kept)):
        for name in dict.fromkeys(name for c in some for name in c.breakdown):
            values = [value for c in some if (value := c.breakdown.get(name)) is not None]
            if values:
                out[f"collected/{place}/{name}"] = fmean(values)
    picks = [c.notes["pick"] for c in answers if isinstance(c.notes.get("pick"), Mapping)]
    if picks:
        out |= {f"collected/{name}": value for name, value in pick_metrics(picks).items()}
    return out


def _without_choice(session: Session, groups: Sequence[Group], kept: Sequence[Group]) -> int:
    """Prompts whose best answer is no better than their worst, where the recipe asks for the best and sets no bar."""
    settings = session.recipe.collect
    if session.method.name != "rft" or settings.min_score is not None or settings.spread_only:
        return 0
    prompts = {group.prompt.ids for group in kept}
    return sum(group.prompt.ids in prompts and len(set(group.scores)) < 2 for group in groups if group.completions)


def _why(session: Session) -> str:
    if session.method.compares == "pairs":
        return (
            "no two answers to one prompt differ in score by more than collect.margin "
            f"{session.recipe.collect.margin:g}; lower it, raise sampling.group_size or sampling.temperature, or give "
            "graded rewards"
        )
    if session.recipe.collect.min_score is not None:
        return f"no answer reaches collect.min_score {session.recipe.collect.min_score:g}; lower it"
    return "no answer has a score"
