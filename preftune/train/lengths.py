"""Tokens of a data set's groups as a few numbers: what sizes a forward pass, known without walking the groups again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from preftune.records import Group


@dataclass(slots=True)
class Lengths:
    """Sums and maxima over groups; all are 0 without any.

    Attributes:
        groups, answers: how many, and how many completions they have.
        longest_prompt, longest_completion: tokens.
        largest: tokens of a prompt with all its completions.
        largest_single, largest_pair: of a prompt with its longest completion, with its two longest.
        prompts, completions: tokens of all prompts, each once, and of all completions.
        repeated_prompts: tokens of all prompts, each as often as it has completions.
    """

    groups: int = 0
    answers: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0
    largest: int = 0
    largest_single: int = 0
    largest_pair: int = 0
    prompts: int = 0
    completions: int = 0
    repeated_prompts: int = 0

    def add(self, group: Group) -> None:
        """Count one more group."""
        prompt, lengths = len(group.prompt.ids), sorted(len(c.ids) for c in group.completions)
        total, longest = sum(lengths), lengths[-1] if lengths else 0
        self.groups += 1
        self.answers += len(lengths)
        self.longest_prompt = max(self.longest_prompt, prompt)
        self.longest_completion = max(self.longest_completion, longest)
        self.largest = max(self.largest, prompt + total)
        self.largest_single = max(self.largest_single, prompt + longest)
        self.largest_pair = max(self.largest_pair, prompt + sum(lengths[-2:]))
        self.prompts += prompt
        self.completions += total
        self.repeated_prompts += prompt * len(lengths)

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Lengths:
        """Of any groups: those on disk know theirs, others are walked."""
        known = getattr(groups, "lengths", None)
        if isinstance(known, cls):
            return known
        out = cls()
        for group in groups:
            out.add(group)
        return out

    def with_answers(self, count: int, tokens: int) -> Lengths:
        """The same prompts, each with `count` completions of `tokens` tokens that are yet to be drawn."""
        if not self.groups:
            return self
        prompt = self.longest_prompt
        return Lengths(
            groups=self.groups, answers=self.groups * count, longest_prompt=prompt,
            longest_completion=tokens if count else 0, largest=prompt + count * tokens,
            largest_single=prompt + min(count, 1) * tokens, largest_pair=prompt + min(count, 2) * tokens,
            prompts=self.prompts, completions=self.groups * count * tokens, repeated_prompts=self.prompts * count,
        )  # fmt: skip

    def __add__(self, other: Lengths) -> Lengths:
        mine, theirs = asdict(self), asdict(other)
        summed = {"groups", "answers", "prompts", "completions", "repeated_prompts"}
        both = {name: mine[name] + theirs[name] if name in summed else max(mine[name], theirs[name]) for name in mine}
        return Lengths(**both)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Lengths:
        """Raises TypeError for other fields or values that are no whole numbers."""
        if any(type(number) is not int for number in value.values()):
            raise TypeError("lengths are whole numbers")
        return cls(**value)
