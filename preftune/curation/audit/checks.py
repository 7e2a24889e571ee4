"""From counts to checks: a number, its share, the thresholds, a status, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from preftune.curation.audit.language import NAMES
from preftune.curation.audit.overlap import Held
from preftune.curation.audit.row import Finding
from preftune.curation.audit.tally import Shown, Tally, Worst
from preftune.curation.audit.tokenised import TokenLook
from preftune.intervals import Interval, auc_interval, mean_interval

Status: TypeAlias = Literal["ok", "look", "not fit"]

ADVICE: dict[str, tuple[str, str]] = {
    "bad_rows": (
        "Rows that can't be read",
        "Mend the rows or the mapping (data.columns), or set data.on_bad_row: skip.",
    ),
    "test_bad_rows": ("Test rows that can't be read", "Mend the rows, the mapping, or set on_bad_row: skip there."),
    "mixed_shapes": (
        "Rows of another shape than most",
        "Set data.format for each source, or train on one shape alone: a method reads one of them.",
    ),
    "duplicate_rows": ("Rows that stand twice", "Drop all but the first: each counts as often as it stands there."),
    "near_duplicates": (
        "Rows that nearly stand twice",
        "Look whether they teach anything new; drop them, or weigh topics with preftune data balance.",
    ),
    "repeated_prompts": (
        "Prompts that come again",
        "Right for several pairs of a prompt. Hold out by prompt (eval.holdout does), and cap the pairs of each.",
    ),
    "repeated_answers": (
        "Answers that come again",
        "The same words to different prompts are often a refusal or a template: drop most of them.",
    ),
    "conflicts": (
        "Rows that contradict each other",
        "Decide each, or drop both: together they teach nothing. Many of them: the labels are noise.",
    ),
    "empty": ("Empty sides", "Drop them, or mend the mapping: an empty answer teaches to stop at once."),
    "identical": ("Identical sides", "Drop them: a pair of equal answers has no gradient but noise."),
    "prefix": (
        "Answers that are the beginning of another",
        "Look whether answers were cut when they were collected; such a pair teaches length and nothing else.",
    ),
    "length_bias": (
        "Length bias",
        "Add pairs whose better answer is the shorter one, or take a length-controlled loss; else length is learned.",
    ),
    "label_balance": (
        "Balance of good and bad marks",
        "Set loss.desirable_weight: auto for kto, or collect more of the rarer mark.",
    ),
    "language_mix": ("Several languages", "Look whether all are meant; weigh the sources (data.weight) if not."),
    "other_language": (
        "Answers in another language than the prompt",
        "Right for translations. Else drop them: the model would learn to change the language.",
    ),
    "control": ("Control and invisible characters", "Remove them at the source; no user types them."),
    "mojibake": ("Text that was decoded wrongly", "Read the source again as UTF-8; the model would learn to write it."),
    "personal": ("E-mail addresses and telephone numbers", "Remove or replace them: models repeat what they learned."),
    "secrets": ("Keys and passwords", "Remove them, and have them changed: who has the model may get them out of it."),
    "overlap": (
        "Test rows in the training rows",
        "Drop the training rows with the finding in_test (decisions.jsonl), or these test rows; else the test measures "
        "memory.",
    ),
    "test_prompts": ("Test prompts in the training rows", "Drop the training rows with the finding in_test."),
    "untokenised": (
        "Rows that can't be tokenised",
        "Mend or drop them: training stops at the first. One reason for all of them is mostly the template.",
    ),
    "too_long": (
        "Rows over the limits",
        "Raise tokens.max_prompt_tokens or max_completion_tokens, or leave it so: the numbers say what is lost.",
    ),
    "special_text": (
        "Text of special tokens in rows",
        "In conversations it is read letter by letter, in plain text as the token itself: clean such rows.",
    ),
    "unknown": (
        "Characters unknown to the tokenizer",
        "The model can't see them: normalise the text, or take another tokenizer.",
    ),
    "eos_invented": (
        "Answers without an end of the template's",
        "An EOS is appended, so that the model learns to stop. Look whether the template is the right one.",
    ),
    "double_bos": ("More than one BOS", "Take the BOS out of the text: the tokenizer adds its own."),
}
"""Check → title, and what to do, in the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the data.

    Attributes:
        count, of: rows with the finding, and the rows that it was looked for in.
        share: what is held against the thresholds: count / of, or for biases the distance from one half that is sure.
        look, unfit: thresholds; a share above them is `look` or `not fit`. None where one row is too many.
        says: more than the number, in a sentence.
        examples: the worst rows.
        interval: of a measured bias.
    """

    name: str
    count: int
    of: int
    share: float
    look: float | None
    unfit: float | None
    status: Status
    says: str = ""
    examples: tuple[Shown, ...] = ()
    interval: Interval | None = None

    @property
    def title(self) -> str:
        return ADVICE[self.name][0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.name][1]

    def to_json(self) -> dict[str, Any]:
        """As plain values; examples are on the page."""
        return {
            "status": self.status, "count": self.count, "of": self.of, "share": self.share,
            "limits": None if self.look is None else [self.look, self.unfit], "says": self.says,
            **({"interval": self.interval.to_json()} if self.interval is not None else {}),
        }  # fmt: skip


def judge(share: float, look: float, unfit: float) -> Status:
    """A share against its thresholds."""
    return "not fit" if share > unfit else "look" if share > look else "ok"


class Checks:
    """Makes the checks of an audit, in the order of ADVICE."""

    def __init__(
        self, tally: Tally, tokens: TokenLook | None, held: Sequence[Held], contaminated: Sequence[bool]
    ) -> None:
        self._tally, self._tokens = tally, tokens
        self._held, self._contaminated = held, contaminated
        self._out: list[Check] = []

    def all(self, test_bad: int, test_stops: int) -> list[Check]:
        """Every check that the rows have anything for."""
        tally, rows = self._tally, self._tally.rows
        self._bad("bad_rows", tally.bad.count, rows, tally.bad.stops)
        if self._held or test_bad:
            self._bad("test_bad_rows", test_bad, len(self._held), test_stops)
        self._mixed()
        scored = len(tally.better)
        answered = rows - tally.of_shape("prompts")
        for name, of in (
            ("duplicate_rows", rows), ("near_duplicates", rows), ("repeated_prompts", rows - tally.of_shape("text")),
            ("repeated_answers", answered), ("conflicts", scored + len(tally.marks)), ("empty", rows),
            ("identical", scored), ("prefix", scored),
        ):  # fmt: skip
            if of and not (name == "near_duplicates" and tally.config.near.threshold is None):
                self._found(name, of)
        if scored:
            self._length_bias()
        if len(tally.marks):
            self._marks()
        self._languages()
        if answered:
            self._found("other_language", answered)
        for name in ("control", "mojibake", "personal", "secrets"):
            self._found(name, rows)
        if self._held:
            self._test()
        if self._tokens is not None:
            self._token_checks(self._tokens, rows)
        return self._out

    def _limits(self, name: str) -> tuple[float, float]:
        look, unfit = getattr(self._tally.config.limits, name)
        return look, unfit

    def _add(self, name: str, count: int, of: int, says: str = "", **more: Any) -> None:
        look, unfit = self._limits(name)
        share = more.pop("share", count / of if of else 0.0)
        status = more.pop("status", judge(share, look, unfit))
        self._out.append(Check(name, count, of, share, look, unfit, status, says, **more))

    def _found(self, name: str, of: int, says: str = "", **more: Any) -> None:
        worst = self._tally.worst.get(name)
        examples = tuple(worst.shown()) if worst is not None else ()
        self._add(name, self._tally.findings[name], of, says, examples=examples, **more)

    def _bad(self, name: str, count: int, rows: int, stops: int) -> None:
        look, unfit = self._limits("bad_rows")
        share = count / (rows + count) if rows + count else 0.0
        status = "not fit" if stops or not rows else judge(share, look, unfit)
        says = f"training would stop at {stops:,} of them" if stops else "" if rows else "there is no usable row"
        self._out.append(Check(name, count, rows + count, share, look, unfit, status, says))

    def _mixed(self) -> None:
        shapes = self._tally.shapes
        if shapes:
            others = self._tally.rows - shapes.most_common(1)[0][1]
            says = ", ".join(f"{count:,} {shape}" for shape, count in shapes.most_common())
            self._add("mixed_shapes", others, self._tally.rows, says)

    def _length_bias(self) -> None:
        better, worse = (np.asarray(side, dtype=np.float64) for side in (self._tally.better, self._tally.worse))
        interval = mean_interval(np.where(better > worse, 1.0, np.where(better < worse, 0.0, 0.5)))
        longer = int((better > worse).sum())
        difference = float((better - worse).mean())
        says = (
            f"`the longer one is better` is right in {percent(interval.value)} ({between(interval)}); better answers "
            f"are {abs(difference):,.1f} {self._tally.unit} {'longer' if difference >= 0 else 'shorter'} in the mean"
        )
        self._add("length_bias", longer, len(better), says, share=sure(interval), interval=interval)

    def _marks(self) -> None:
        marks = np.asarray(self._tally.marks, dtype=np.float64)
        interval = mean_interval(marks, binary=True)
        good = int(marks.sum())
        says = f"{percent(interval.value)} of the marked answers are good ({between(interval)})"
        if 0 < good < len(marks):
            area = auc_interval(np.asarray(self._tally.marked, dtype=np.float64), marks > 0.5)
            says += f"; length alone tells good from bad with an area of {area.value:.2f} ({between(area, plain=True)})"
        self._add("label_balance", good, len(marks), says, share=abs(interval.value - 0.5), interval=interval)

    def _languages(self) -> None:
        languages = self._tally.languages
        known = sum(languages.values())
        if known:
            main, count = languages.most_common(1)[0]
            says = f"{percent(count / known)} {NAMES[main]}; of {self._tally.rows - known:,} rows it can't be told"
            self._add("language_mix", known - count, known, says)

    def _test(self) -> None:
        size = self._tally.config.examples
        told = [held.share is not None for held in self._held]
        worst, same = Worst(size), Worst(size)
        for held, found in zip(self._held, self._contaminated, strict=True):
            if found and held.share is not None:
                note = f"{percent(held.share)} of its n-grams are in training rows"
                worst.add(Finding("overlap", note, held.found_at, held.share), held.where, held)
            if held.prompt_at:
                same.add(Finding("test_prompts", "the same prompt", held.prompt_at), held.where, held)
        says = f"{len(told) - sum(told):,} test rows are too short for n-grams, or template" if not all(told) else ""
        self._add("overlap", sum(self._contaminated), sum(told), says, examples=tuple(worst.shown()))
        prompts = [bool(held.prompt_at) for held in self._held]
        self._add("test_prompts", sum(prompts), len(prompts), examples=tuple(same.shown()))

    def _token_checks(self, tokens: TokenLook, rows: int) -> None:
        count = tokens.untokenised
        worst = self._tally.worst.get("untokenised")
        self._out.append(
            Check(
                "untokenised", count, rows, count / rows if rows else 0.0, None, None, "not fit" if count else "ok",
                "training stops at the first" if count else "", tuple(worst.shown()) if worst else (),
            )
        )  # fmt: skip
        says = f"{tokens.counts.dropped:,} dropped, {tokens.counts.truncated:,} cut"
        if tokens.stopped:
            says = f"training stops at {tokens.stopped:,} of them (tokens.on_too_long: error)"
        self._found("too_long", rows, says, **({"status": "not fit"} if tokens.stopped else {}))
        for name in ("special_text", "unknown", "eos_invented", "double_bos"):
            self._found(name, rows)


def sure(interval: Interval) -> float:
    """How far from one half at least, by the interval; 0 when one half is inside."""
    return max(0.0, interval.low - 0.5, 0.5 - interval.high)


def percent(share: float) -> str:
    """A share for people."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def between(interval: Interval, *, plain: bool = False) -> str:
    """An interval in words."""
    if not interval.is_bounded:
        return "no interval: too few rows"
    if plain:
        return f"95 %: {interval.low:.2f} to {interval.high:.2f}"
    return f"95 %: {percent(interval.low)} to {percent(interval.high)}"
