"""Reading a judge's reply, strictly: exactly one verdict of the documented form, or a reason why there is none.

Replies are untrusted text: nothing here raises on account of one, and nothing is guessed. In particular a reply that
quotes a verdict from the text under judgement and then gives its own holds two, and counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Choice: TypeAlias = Literal["A", "B", "tie"]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Unparsed:
    """Why a reply is no verdict; goes on after "the reply"."""

    why: str


def parse_choice(text: str) -> Choice | Unparsed:
    """`<verdict>A</verdict>`, `<verdict>B</verdict>` or `<verdict>tie</verdict>`, once."""
    inner = _tagged(text, "verdict")
    if isinstance(inner, Unparsed):
        return inner
    match inner:
        case "A" | "B" | "tie":
            return inner
    return Unparsed(f"holds the verdict {_shown(inner)}, which is none of A, B and tie")


def parse_score(text: str, low: int, high: int) -> int | Unparsed:
    """`<score>7</score>`, once: a whole number in plain digits from low to high."""
    inner = _tagged(text, "score")
    if isinstance(inner, Unparsed):
        return inner
    if not _INTEGER.fullmatch(inner):
        return Unparsed(f"holds the score {_shown(inner)}, which is no whole number")
    if not low <= int(inner) <= high:
        return Unparsed(f"holds the score {inner}, which is not from {low} to {high}")
    return int(inner)


def parse_ranking(text: str, labels: Sequence[str]) -> tuple[tuple[str, ...], ...] | Unparsed:
    """`<ranking>B > A = C</ranking>`, once: every label exactly once, the best first, equals joined by `=`.

    Returns:
        Places from the best, each with the labels that share it.
    """
    inner = _tagged(text, "ranking")
    if isinstance(inner, Unparsed):
        return inner
    places = tuple(tuple(label.strip() for label in place.split("=")) for place in inner.split(">"))
    named = [label for place in places for label in place]
    known = set(labels)  # not `in labels`: a string holds "" and "AB", too
    for label in named:
        if label not in known:
            return Unparsed(f"ranks {_shown(label)}, which is none of {', '.join(labels)}")
    if len(set(named)) < len(named):
        twice = next(label for label in named if named.count(label) > 1)
        return Unparsed(f"ranks {twice} more than once")
    if len(named) < len(labels):
        return Unparsed(f"leaves out {', '.join(label for label in labels if label not in named)}")
    return places


def rank_scores(places: Sequence[Sequence[str]], labels: Sequence[str]) -> tuple[float, ...]:
    """Each label's rank from 1 (best) to 0, those that share a place its mean: (n − mean place) / (n − 1), places
    counted from 1. It is the share of the others that the answer beats, a tie counting ½."""
    n, above = len(labels), 0
    scores: dict[str, float] = {}
    for place in places:
        for label in place:
            scores[label] = (n - above - (len(place) + 1) / 2) / (n - 1)
        above += len(place)
    return tuple(scores[label] for label in labels)


def spoken(text: str) -> str | Unparsed:
    """A reply without the thinking that some models put before it, up to `</think>`. Drafts in it are no verdict."""
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    if text.lstrip().startswith("<think>"):
        return Unparsed("is thinking that never ends")
    return text


def _tagged(text: str, tag: str) -> str | Unparsed:
    """The text between the one `<tag>` and the one `</tag>`, white space around it stripped."""
    said = spoken(text)
    if isinstance(said, Unparsed):
        return said
    # any case and spacing counts as a tag, so that a second verdict in another spelling does not pass unseen
    found = list(re.finditer(rf"<\s*(/?)\s*{tag}\s*(/?)\s*>", said, re.IGNORECASE))
    if not found:
        return Unparsed(f"holds no <{tag}>…</{tag}>")
    if len(found) > 2:
        return Unparsed(f"holds more than one <{tag}>…</{tag}>")
    if [mark[0] for mark in found] != [f"<{tag}>", f"</{tag}>"]:
        return Unparsed(f"holds {' … '.join(_shown(mark[0]) for mark in found)} instead of <{tag}>…</{tag}>")
    return said[found[0].end() : found[1].start()].strip()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
