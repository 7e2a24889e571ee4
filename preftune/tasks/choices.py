"""Multiple choice: log-probs of choices and how they are made comparable, and letters.

A choice's log-prob is Σ log π(token | prompt, tokens before it) over the choice's own tokens; the end of the answer
(EOS) is not part of it. Long choices have lower sums, so sums are divided by a length before they are compared.

References:
    Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.4 (per-token normalisation);
    Holtzman et al. 2021, "Surface Form Competition: Why the Highest Probability Answer Isn't Always Right", section 3
    (domain-conditional PMI).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from preftune.tasks.rows import LETTERS

Normalize: TypeAlias = Literal["tokens", "characters", "bytes", "none", "pmi"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a model made of one row.

    Attributes:
        values: each choice's comparable log-prob, in nats; empty where a letter was asked for.
        sums: each choice's plain log-prob.
        picked: place of the choice taken, None where no letter could be read.
        right: 1 for the right choice, 0 for a wrong one; a share where several are equally likely, the right one among
            them.
        right_sum: the same by plain log-probs.
        text: the answer in which a letter was looked for.
        cut: that answer was cut at its limit.
    """

    values: tuple[float, ...]
    sums: tuple[float, ...]
    picked: int | None
    right: float
    right_sum: float | None = None
    text: str = ""
    cut: bool = False


def comparable(
    sums: Sequence[float],
    how: Normalize,
    *,
    tokens: Sequence[int],
    texts: Sequence[str],
    unconditional: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Log-probs of choices, made comparable.

    Args:
        sums: plain log-probs, in nats.
        how: tokens, characters, bytes: divided by the choice's length in them; none: as they are; pmi: less
            `unconditional`, the log-probs behind a prompt that tells nothing.
        tokens: each choice's number of tokens.
        texts: the choices.
    """
    if how == "none":
        return tuple(sums)
    if how == "pmi":
        if unconditional is None:
            raise ValueError("pmi needs the unconditional log-probs")
        return tuple(one - other for one, other in zip(sums, unconditional, strict=True))
    lengths = list(tokens)
    if how == "characters":
        lengths = [len(text) for text in texts]
    elif how == "bytes":
        lengths = [len(text.encode()) for text in texts]
    return tuple(one / length for one, length in zip(sums, lengths, strict=True))


def rightness(values: Sequence[float], answer: int) -> float:
    """1 where the right choice has the highest value, 0 where it has not; 1/k where it shares it with k − 1 others."""
    best = max(values)
    tied = sum(value == best for value in values)
    return 1.0 / tied if values[answer] == best else 0.0


def margin(values: Sequence[float], answer: int) -> float:
    """The right choice's value less the best of the others."""
    return values[answer] - max(value for place, value in enumerate(values) if place != answer)


def chosen(values: Sequence[float], sums: Sequence[float], answer: int) -> Chosen:
    """The choice that the values take."""
    picked = max(range(len(values)), key=lambda place: values[place])
    return Chosen(tuple(values), tuple(sums), picked, rightness(values, answer), rightness(sums, answer))


# ------------------------------------------------------------------------------------------------------ letters

ASKED = "Answer with the letter of the right choice alone."


def lettered(question: str, choices: Sequence[str]) -> str:
    """A question with its choices by letter, and what is asked for."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question}\n{listed}\n{ASKED}"


def read_letter(text: str, count: int) -> int | None:
    """The choice that an answer names: a letter alone or at its beginning (`B`, `(B)`, `B. …`, `**B**`), else the last
    that follows "answer is", "answer:", else None. Letters beyond the row's choices are none."""
    last = LETTERS[count - 1]
    body = text.strip().lstrip("*_`\"'“( [").rstrip()
    first = re.match(rf"([A-{last}a-{last.lower()}])(?=[\s*_`\"'”)\].:,;]*$|[)\].:*])", body)
    if first is not None:
        return LETTERS.index(first[1].upper())
    named = re.findall(
        rf"\b(?:answer|choice|option|ответ)\b\s*(?:is|:|—|-)?\s*[*_`\"'“(\[]*([A-{last}])(?![\w'’])",
        text,
        re.IGNORECASE,
    )
    return LETTERS.index(named[-1].upper()) if named else None
