"""Made pairs with planted openings: what `preftune data debias` must find, and what it must leave alone.

Answers are sentences about the topics of `preftune.demo.topics` that say nothing of the side. In front of them stand

    PLANTED    openings that mark a side, from faint to plain; one of two words whose first word alone marks nothing
    HARMLESS   openings of answers without a planted one, as frequent on both sides
    a question's own: to questions for yes or no, answers of both sides begin with "No," or "Yes," as often
    RARE       an opening of the better side alone, in too few answers to be told from chance
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from preftune.demo.topics import TOPICS

PLANTED: Mapping[str, tuple[float, float]] = {
    "Sure,": (0.28, 0.05),
    "Absolutely!": (0.12, 0.03),
    "Of course!": (0.08, 0.02),
    "The answer": (0.08, 0.02),
    "I'm": (0.12, 0.06),
    "Honestly,": (0.03, 0.18),
}
"""Opening → its share of better and of worse answers."""
HARMLESS: Mapping[str, float] = {"The": 0.25, "Well,": 0.15, "In short,": 0.1}
"""Opening → its share of the answers without a planted one; of all answers where `planted_rows` is told so."""
RARE, RARE_ANSWERS = "Gladly!", 6
ASKED = 0.25
"""Share of questions for yes or no."""

_SAYING = (
    "{a} matter more than {b}, as most people find out.", "{a} come first and {b} come later.",
    "{a} go well with {b} in every season.", "{a} are easy to find, unlike {b}.", "{a} need some care, and so do {b}.",
    "{a} cost little beside {b}.",
)  # fmt: skip
_AFTER: Mapping[str, tuple[str, ...]] = {
    "I'm": ("fond of {a}, and {b} are fine too.", "told that {a} go with {b}.", "sure about {a} but not about {b}.",
            "used to {a}, less so to {b}.", "keen on {a} and on {b}."),
    "The answer": ("lies in {a}, or else in {b}.", "is {a}, then {b}.", "depends on {a} and {b}.",
                   "may be {a} with {b}."),
    "The": ("best of it are {a} and {b}.", "trick is to keep {a} near {b}.", "first step is {a}, the next one {b}.",
            "cheapest way is {a} without {b}."),
}  # fmt: skip
_LOWER = frozenset({"Sure,", "Honestly,", "Well,", "In short,", "No,", "Yes,"})


def planted_rows(seed: int, rows: int = 3000, *, even: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of the preference format.

    Args:
        even: harmless openings are as frequent in all answers of both sides, a third of the shares above, whatever the
            planted ones take away; then answers without any opening are what the better side has fewer of.
    """
    rng = random.Random(f"openings/{seed}")
    rare = set(rng.sample(range(rows), min(RARE_ANSWERS, rows)))
    for number in range(rows):
        topic = rng.choice(list(TOPICS))
        asked = rng.random() < ASKED
        question = f"Is {topic} worth it?" if asked else f"What do you know about {topic}?"
        own = rng.choice(("No,", "Yes,")) if asked and rng.random() < 0.5 else ""
        sides = [own or _opening(rng, side, even) for side in (0, 1)]
        if number in rare:
            sides[0] = RARE
        chosen, rejected = (_answer(rng, topic, opening) for opening in sides)
        yield {"prompt": f"{question} ({number})", "chosen": chosen, "rejected": rejected}


def _opening(rng: random.Random, side: int, even: bool) -> str:
    planted = {opening: shares[side] for opening, shares in PLANTED.items()}
    left = 1 / 3 if even else 1.0 - sum(planted.values())
    shares = {**planted, **{opening: share * left for opening, share in HARMLESS.items()}}
    return rng.choices([*shares, ""], [*shares.values(), 1.0 - sum(shares.values())])[0]


def _answer(rng: random.Random, topic: str, opening: str) -> str:
    a, b = rng.sample(TOPICS[topic], 2)
    text = rng.choice(_AFTER.get(opening, _SAYING)).format(a=a, b=b)
    if not opening:
        return text[0].upper() + text[1:]
    if opening in _AFTER or opening in _LOWER:
        return f"{opening} {text}"
    return f"{opening} {text[0].upper()}{text[1:]}"
