"""What follows from the measures: is preference tuning needed, and what comes first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.measure import Measure, Signal, Status

Answer: TypeAlias = Literal["yes", "sft first", "not by tuning", "perhaps", "no"]
HARDLY = 0.95
"""Share of off-format answers from which there is no good one to prefer."""

SIGNALS: dict[Signal, str] = {
    "safety": "Safety", "spread": "Spread and likelihood", "closeness": "Closeness to the context",
    "form": "Form", "use": "Use beside the benchmark",
}  # fmt: skip
_RANK: dict[Status, int] = {"unknown": 0, "fine": 1, "look": 2, "problem": 3}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole in words.

    Attributes:
        answer: is preference tuning needed?
        sentence, why: plain sentences.
        mendable, first, elsewhere: names of measures that preference tuning can mend, that SFT comes first for, and
            that tuning does not mend; worst first.
        next: commands to go on with, each with what it is for.
    """

    answer: Answer
    sentence: str
    why: str
    mendable: Sequence[str]
    first: Sequence[str]
    elsewhere: Sequence[str]
    next: Sequence[tuple[str, str]]


def status_of(measures: Sequence[Measure], signal: Signal) -> Status:
    """The worst of a signal's measures."""
    return max((one.status for one in measures if one.signal == signal), key=_RANK.__getitem__, default="unknown")


def give_verdict(config: DiagnoseConfig, measures: Sequence[Measure]) -> Verdict:
    """See `Verdict`. May change the remedy of a measure in the light of others."""
    by_name = {one.name: one for one in measures}
    off = by_name.get("off_format")
    if off is not None and off.is_wrong and off.interval is not None and off.interval.value >= HARDLY:
        off.remedy = "sft"
        off.todo = (
            "Hardly any answer has the form, so there is none to prefer: SFT on a few answers that have it, or say it "
            "in the prompt. Then preference tuning can make it a habit."
        )
    wrong = sorted((one for one in measures if one.is_wrong), key=lambda one: -_RANK[one.status])
    problems = [one for one in wrong if one.status == "problem"]
    answer = _answer(problems, wrong)
    named = problems or wrong
    sentence = _SENTENCES[answer]
    groups = {remedy: [one for one in named if one.remedy == remedy] for remedy in ("preference", "sft", "elsewhere")}
    why = " ".join(
        f"{lead} {_list([one.title[0].lower() + one.title[1:] for one in groups[remedy]])}."
        for remedy, lead in _LEADS.items()
        if groups[remedy]
    )
    unknown = [SIGNALS[signal].lower() for signal in SIGNALS if status_of(measures, signal) == "unknown"]
    if unknown:
        why += f"{' ' if why else ''}Not measured, or not to be told here: {_list(unknown)}."
    names = {remedy: [one.name for one in wrong if one.remedy == remedy] for remedy in groups}
    good = by_name.get("good_logprob")
    has_good = good is not None and good.interval is not None
    return Verdict(
        answer,
        sentence,
        why,
        names["preference"],
        names["sft"],
        names["elsewhere"],
        _next(config, answer, wrong, has_good=has_good),
    )


_SENTENCES: dict[Answer, str] = {
    "yes": "Preference tuning is needed, and can mend what is wrong.",
    "sft first": "Supervised tuning first: the model hardly gives the answers that preference tuning would prefer.",
    "not by tuning": "Something is wrong, and preference tuning is not what mends it.",
    "perhaps": "No problem is certain, but there is something to look at before you decide.",
    "no": "Nothing that was measured calls for preference tuning.",
}
_LEADS = {
    "preference": "Preference tuning can mend:", "sft": "SFT comes first for:", "elsewhere": "Tuning does not mend:",
}  # fmt: skip


def _answer(problems: Sequence[Measure], wrong: Sequence[Measure]) -> Answer:
    remedies = {one.remedy for one in problems}
    if "sft" in remedies:
        return "sft first"
    if "preference" in remedies:
        return "yes"
    if problems:
        return "not by tuning"
    return "perhaps" if wrong else "no"


def _next(config: DiagnoseConfig, answer: Answer, wrong: Sequence[Measure], *, has_good: bool) -> list[tuple[str, str]]:
    """Commands that can be run as they are, but for names in capitals."""
    source, model = config.data[0], shlex.quote(config.model.path)
    fields = ((name, getattr(source, name)) for name in ("name", "split", "format"))
    usual = type(source).model_fields
    more = "".join(f" --data.{name} {shlex.quote(value)}" for name, value in fields if value != usual[name].default)
    data = f"{shlex.quote(source.path)}{more}"
    out: list[tuple[str, str]] = []
    if answer == "sft first":
        answers = data if has_good else "GOOD_ANSWERS"
        out.append(
            (f"preftune sft --model.path {model} --data.path {answers}",
             "SFT on good answers; then diagnose its result")
        )  # fmt: skip
    if answer in ("yes", "perhaps", "sft first"):
        then = "which method, and a recipe for it" if answer != "perhaps" else "which method it would be"
        out.append((f"preftune advise --model {model} --data.path {data}", then))
    if any(one.name == "cut" and one.remedy == "elsewhere" for one in wrong):
        limit = 2 * config.sampling.max_tokens
        again = f"preftune diagnose --model.path {model} --data.path {data} --sampling.max_tokens {limit} --output NEW"
        out.append((again, "with room for longer answers"))
    if config.classifier is None:
        out.append(
            (f"preftune diagnose --model.path {model} --data.path {data} --classifier.path MODEL --output NEW",
             "what a safety classifier says")
        )  # fmt: skip
    return out


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
