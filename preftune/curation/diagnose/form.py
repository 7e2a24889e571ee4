"""Answers that are off-format, empty, cut, repeated, in another language, or refuse. One pass over texts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from preftune.competition.construct import Construct
from preftune.competition.parse import parse
from preftune.config import RewardConfig
from preftune.curation.audit.language import differ, language
from preftune.curation.diagnose.answers import Answered
from preftune.curation.diagnose.config import DiagnoseConfig, Limits
from preftune.curation.diagnose.measure import Measure, Normal, Remedy, Scale, Worst, judge, percent, share_of, worst_of
from preftune.rewards.collapse import repetition

WORDS, CHARACTERS = 4, 16
"""Lengths of the n-grams that tell of repetition."""
REPEATED_WORDS, REPEATED_CHARACTERS = 0.4, 0.6
"""Shares of n-grams that stood in the answer before, from which it repeats itself."""
LEAST = 24
"""Characters below which nothing is called a repetition."""
OFTEN = 0.5
"""Share of cut answers that repeat themselves from which loops are the cause."""

_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]m|i am) (?:very |so |really )?(?:sorry|afraid|unable|not able)|sorry,|"
    r"i (?:can['’]?t|cannot|can not|won['’]?t|must decline|apologi[sz]e)|as an ai\b|unfortunately, i (?:can|am)|"
    r"(?:извините|к сожалению, я|я не могу))",
    re.IGNORECASE,
)


def repeated(text: str) -> float:
    """How much an answer repeats itself: the share of its word 4-grams that stood in it before, or that of its
    characters' 16-grams where the latter is what is out of the ordinary (a text without spaces); 0 for short ones."""
    text = text.strip()
    if len(text) < LEAST:
        return 0.0
    words = repetition(text, WORDS) if len(text.split()) >= 2 * WORDS else 0.0
    grams = Counter(text[at : at + CHARACTERS] for at in range(len(text) - CHARACTERS + 1))
    characters = 1.0 - len(grams) / max(1, sum(grams.values()))
    # one scale for both: 1 is where the threshold lies
    return max(words / REPEATED_WORDS, characters / REPEATED_CHARACTERS)


def refuses(text: str) -> bool:
    """Whether an answer begins as refusals do, in English or Russian."""
    return _REFUSAL.match(text[:80]) is not None


def form_name(config: DiagnoseConfig) -> str:
    """The form asked for, in words; "" for none."""
    if config.competition is not None:
        return "a contest of personas without a fault"
    if config.format.pattern is not None:
        return f"holds a match of {config.format.pattern}"
    if config.format.tags:
        return "is " + "".join(f"<{tag}>…</{tag}>" for tag in config.format.tags)
    return "is JSON" if config.format.is_json else ""


def form_reward(config: DiagnoseConfig) -> RewardConfig | None:
    """The reward that tells whether an answer has the form; None where no reward is needed for it."""
    if config.format.pattern is not None:
        return RewardConfig(name="regex", args={"pattern": config.format.pattern})
    if config.format.tags:
        return RewardConfig(name="format", args={"tags": list(config.format.tags)})
    return None


def formed(config: DiagnoseConfig, answered: Sequence[Answered], base_dir: Path | None) -> list[list[bool]] | None:
    """Whether each answer has the form asked for: [prompt][answer]; None where none is asked for.

    A pattern runs in a process of its own with a time limit, as the reward `regex` does: answers can make one hang.
    """
    if config.competition is not None:
        construct = Construct.of(config.competition)
        return [[parse(text, construct).strict for text in one.texts] for one in answered]
    if config.format.is_json:
        return [[_is_json(text) for text in one.texts] for one in answered]
    reward = form_reward(config)
    if reward is None:
        return None
    from preftune.rewards import build_rewards

    with build_rewards([reward], base_dir=base_dir or Path()) as rewards:
        scored = rewards.score([one.group for one in answered], 0, 1)
    return [[bool(completion.score) for completion in group.completions] for group in scored.groups]


def _is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    title: str
    remedy: Remedy
    todo: str
    literature: str = ""


_KINDS = {
    kind.name: kind
    for kind in (
        _Kind(
            "off_format", "Off-format answers", "preference",
            "Preference tuning mends form well where some answers have it already: a reward or a preference for the "
            "form is enough. Where hardly any has it, start with SFT on a few good ones.",
        ),
        _Kind(
            "empty", "Empty answers", "preference",
            "Preference tuning mends it: prefer any real answer to none. First look whether prompts end where the "
            "model expects an answer (template, `form`).",
        ),
        _Kind(
            "cut", "Cut answers", "elsewhere",
            "Not by tuning first: raise `sampling.max_tokens`, and measure again. What is then still too long can be "
            "preferred shorter.",
        ),
        _Kind(
            "repeated", "Repeated answers", "preference",
            "Preference tuning mends it: such answers lose against any other, and unlikelihood falls on them. A "
            "temperature near 0 brings loops on by itself, so look at `sampling` first.",
            "a text that ends in a loop: 0.3 % of human texts, 0.2 % of GPT-2's sampled ones, 74 % of its greedy ones "
            "(Holtzman et al. 2020, table 1; loops counted in another way)",
        ),
        _Kind(
            "wrong_language", "Answers in another language", "preference",
            "Preference tuning mends it where the model speaks the prompt's language. Right as it is where prompts ask "
            "for a translation.",
        ),
        _Kind(
            "refused", "Refusals", "preference",
            "Preference tuning mends refusals of harmless prompts: prefer the answer that helps. Read the examples: of "
            "harmful prompts a refusal is right.",
        ),
    )
}  # fmt: skip


def measure_form(config: DiagnoseConfig, answered: Sequence[Answered], base_dir: Path | None) -> list[Measure]:
    """The measures of form, and `numbers` of every prompt filled."""
    asked = [[_languages(one, text) for text in one.texts] for one in answered]
    off = formed(config, answered, base_dir)
    loops = [[repeated(text) for text in one.texts] for one in answered]
    flags: dict[str, list[list[bool]] | None] = {
        "off_format": None if off is None else [[not good for good in row] for row in off],
        "empty": [[not text.strip() for text in one.texts] for one in answered],
        "cut": [[completion.finish == "length" for completion in one.group.completions] for one in answered],
        "repeated": [[amount >= 1 for amount in row] for row in loops],
        "wrong_language": [[differ(*pair) for pair in row if all(pair)] for row in asked],
        "refused": [[refuses(text) for text in one.texts] for one in answered],
    }
    amounts: dict[str, Callable[[int, int], float]] = {
        "repeated": lambda p, a: loops[p][a],
        "cut": lambda p, a: -loops[p][a],  # those that are no loops first: what the limit took away
    }
    out = [
        _measure(_KINDS[name], config.limits, rows, answered, asked, amounts.get(name), config)
        for name, rows in flags.items()
    ]
    for name, rows in flags.items():
        if rows is not None:
            for one, row in zip(answered, rows, strict=True):
                one.numbers[name] = sum(row)
    by_name = {measure.name: measure for measure in out}
    _explain(by_name, flags)
    return out


def _languages(one: Answered, text: str) -> tuple[str, str]:
    return language(one.drawn.asked), language(text)


def _measure(
    kind: _Kind, limits: Limits, rows: list[list[bool]] | None, answered: Sequence[Answered],
    asked: list[list[tuple[str, str]]], amount: Callable[[int, int], float] | None, config: DiagnoseConfig,
) -> Measure:  # fmt: skip
    bounds = getattr(limits, kind.name)
    interval = None if rows is None else share_of(rows)
    measure = Measure(kind.name, kind.title, "form", interval=interval, status=judge(interval, bounds))
    measure.normal = [Normal(f"up to {percent(bounds[0])}; a problem above {percent(bounds[1])}", "rule of thumb")]
    measure.scale = Scale.below(bounds)
    if kind.literature:
        measure.normal = [*measure.normal, Normal(kind.literature, "literature")]
    if kind.name == "off_format":
        measure.says = f"Asked for: the answer {form_name(config)}." if rows is not None else (
            "No form was asked for: --format.pattern, --format.tags, --format.is_json true or --competition.style."
        )  # fmt: skip
    if kind.name == "wrong_language":
        known = sum(all(pair) for row in asked for pair in row)
        total = sum(map(len, asked))
        measure.says = f"Of {known:,} of {total:,} answers both languages could be told."
    if kind.name == "refused":
        measure.says = "By the first words, in English and Russian."
    if measure.is_wrong:
        measure.remedy, measure.todo = kind.remedy, kind.todo
    if rows is not None and kind.name != "wrong_language":
        places = [(p, a) for p, row in enumerate(rows) for a, flag in enumerate(row) if flag]
    else:
        places = [(p, a) for p, row in enumerate(asked) for a, pair in enumerate(row) if differ(*pair)]
        places = places if kind.name == "wrong_language" else []
    measure.worst = worst_of([(amount(p, a) if amount else 0.0, partial(show, answered[p], a)) for p, a in places])
    return measure


def show(one: Answered, place: int, *chips: tuple[str, object], beside: tuple[str, str] | None = None) -> Worst:
    """An answer for people to look at."""
    completion = one.group.completions[place]
    facts = [("answer", place + 1), ("tokens", len(completion.ids)), ("ended by", completion.finish), *chips]
    return Worst(one.drawn.where, one.drawn.question, completion.text, facts, beside)


def _explain(measures: dict[str, Measure], flags: dict[str, list[list[bool]] | None]) -> None:
    """Why answers were cut: they go in circles, or the limit is low."""
    cut, looped = flags["cut"] or [], flags["repeated"] or []
    pairs = [
        (one, other)
        for row, others in zip(cut, looped, strict=True)
        for one, other in zip(row, others, strict=True)
        if one
    ]
    measure = measures["cut"]
    if not pairs:
        return
    share = sum(other for _, other in pairs) / len(pairs)
    measure.more = {"cut_and_repeated": share}
    measure.says = f"Of the cut answers {percent(share)} repeat themselves."
    if measure.is_wrong and share >= OFTEN:
        measure.remedy = "preference"
        measure.todo = (
            "Most of them go in circles, so more tokens would not help: mend the repetition, which preference tuning "
            "can."
        )
