"""What is found in one row alone: its sides, its characters, its language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from preftune.curation.audit import faults
from preftune.curation.audit.language import NAMES, differ, language
from preftune.curation.audit.texts import SENTENCE, by_score, flat, turns
from preftune.curation.near import tokens
from preftune.records import Content, Example

SPOKEN = ("user", "assistant")
"""Roles whose turns must say something; a tool may answer nothing."""
MOST = 24
"""Answers up to which each is compared with each; of more, the best with every other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a row.

    Attributes:
        check: which check it counts for; a row has one finding of a check at most.
        note: what exactly, for people.
        of: where the other row is, if there is one.
        weight: how bad it is among those of its check; the worst are shown.
    """

    check: str
    note: str = ""
    of: str = ""
    weight: float = 0.0

    def to_json(self) -> dict[str, str]:
        """Without what says nothing."""
        found = {"check": self.check, "note": self.note, "of": self.of}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Reading:
    """A row's texts, and their tokens, which several checks need.

    Attributes:
        prompt: its turns without the system message; several of a conversation.
        answers: each completion as one text.
        prompt_tokens, answer_tokens: of each of them.
        languages: of the prompt, and of each answer.
    """

    example: Example
    prompt: list[str]
    answers: list[str]
    prompt_tokens: list[list[str]] = field(default_factory=list)
    answer_tokens: list[list[str]] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, example: Example) -> Reading:
        """Read a row."""
        prompt = turns(example.prompt)
        answers = [flat(completion) for completion in example.completions]
        asked, said = [tokens(text) for text in prompt], [tokens(text) for text in answers]
        found = [language("\n".join(prompt), words_of([token for one in asked for token in one]))]
        found += [language(text, words_of(one)) for text, one in zip(answers, said, strict=True)]
        return cls(example, prompt, answers, asked, said, found)

    @property
    def lengths(self) -> tuple[int, list[int]]:
        """Words of the prompt, and of each answer."""
        return sum(map(_count, self.prompt_tokens)), [_count(one) for one in self.answer_tokens]

    @property
    def language(self) -> str:
        """Of the row: the prompt's, or the answer's where the prompt's can't be told."""
        return next(filter(None, self.languages), "")


def words_of(found: Sequence[str]) -> list[str]:
    """Tokens without punctuation."""
    return [token for token in found if token not in SENTENCE]


def _count(found: Sequence[str]) -> int:
    return sum(token not in SENTENCE for token in found)


def better_pairs(example: Example) -> Iterator[tuple[int, int]]:
    """(better, worse) places of every two completions of different score; of more than MOST, the best with each."""
    order = by_score(example)
    places = combinations(order, 2) if len(order) <= MOST else ((order[0], other) for other in order[1:])
    for one, other in places:
        if example.scores and example.scores[one] > example.scores[other]:
            yield one, other


def best_and_worst(example: Example) -> tuple[int, int] | None:
    """Places of the best and the worst completion; None where no two differ in score."""
    if len(example.scores) < 2 or max(example.scores) == min(example.scores):
        return None
    order = by_score(example)
    return order[0], order[-1]


def look(reading: Reading) -> Iterator[Finding]:
    """All that is found in the row alone, one finding of each check at most."""
    yield from _empty(reading.example)
    yield from _sides(reading)
    yield from _characters(reading)
    yield from _other_language(reading)


def _empty(example: Example) -> Iterator[Finding]:
    named: list[tuple[str, Content]] = [("prompt", example.prompt)] if example.prompt else []
    named += [(side_name(example, n), one) for n, one in enumerate(example.completions)]
    for name, content in named:
        texts = [content] if isinstance(content, str) else [m.content for m in content if m.role in SPOKEN]
        if any(not text.strip() for text in texts):
            kind = "empty" if not any(texts) else "white space" if len(texts) == 1 else "holds an empty turn"
            yield Finding("empty", f"{name}: {kind}")
            return


def side_name(example: Example, place: int) -> str:
    """What a completion is called: chosen and rejected for two of different score, else the answer and its number."""
    if len(example.completions) == 1:
        return "answer"
    if len(example.completions) == 2 and len(set(example.scores)) == 2:
        return "chosen" if example.scores[place] == max(example.scores) else "rejected"
    return f"answer {place + 1}"


def _sides(reading: Reading) -> Iterator[Finding]:
    example, answers = reading.example, [text.strip() for text in reading.answers]
    same = prefix = None
    for one, other in better_pairs(example):
        if answers[one] == answers[other]:
            same = same or (one, other)
            continue
        short, long = sorted((one, other), key=lambda n: len(answers[n]))
        if answers[short] and answers[long].startswith(answers[short]):
            prefix = prefix or (short, long)
    if same is not None:
        yield Finding("identical", " and ".join(side_name(example, n) for n in same), weight=len(answers[same[0]]))
    if prefix is not None:
        cut, whole = (side_name(example, n) for n in prefix)
        missing = len(answers[prefix[1]]) - len(answers[prefix[0]])
        yield Finding("prefix", f"{cut} is {whole} without its last {missing:,} characters", weight=missing)


def _characters(reading: Reading) -> Iterator[Finding]:
    whole = "\n".join([*turns(reading.example.prompt, system=True), *reading.answers])
    if found := faults.controls(whole):
        yield Finding("control", ", ".join(found[:8]), weight=len(found))
    if found := faults.mojibake(whole):
        yield Finding("mojibake", " ".join(found[:8]), weight=len(found))
    for check, pairs in (("personal", faults.personal(whole)), ("secrets", faults.secrets(whole))):
        if pairs:
            shown = ", ".join(f"{kind} {faults.mask(text)}" for kind, text in pairs[:4])
            yield Finding(check, shown, weight=len(pairs))


def _other_language(reading: Reading) -> Iterator[Finding]:
    asked = reading.languages[0] if reading.example.prompt else ""
    others = {said for said in reading.languages[1:] if differ(asked, said)}
    if others:
        said = " and ".join(sorted(NAMES[one] for one in others))
        yield Finding("other_language", f"{NAMES[asked]} prompt, {said} answer", weight=len(reading.answers[0]))
