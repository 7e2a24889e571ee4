"""What is wrong with a contest's form, in words. Linear in the number of tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from preftune.competition.construct import Construct

FaultKind: TypeAlias = Literal[
    "missing",
    "unopened",
    "unclosed",
    "duplicate",
    "order",
    "nested",
    "outside",
    "between",
    "before",
    "empty",
    "spelling",
    "leak",
    "answer",
]
"""What can be wrong with a contest's form:

    missing     the element has neither an opening nor a closing tag
    unopened    it has a closing tag alone
    unclosed    it has an opening tag alone
    duplicate   one of its tags stands there more than once
    order       it opens out of turn, or closes before it opens
    nested      it opens inside a persona's text
    outside     it opens or closes behind the end of the element that should hold it
    between     text between two elements, where none belongs
    before      text before the contest
    empty       it encloses nothing but white space
    spelling    a tag that is right but for case, white space or attributes
    leak        a tag behind the end of the contest, in the answer
    answer      no answer behind the contest
"""

MISPLACED: frozenset[FaultKind] = frozenset({"missing", "unopened", "unclosed", "order", "nested", "outside"})
"""An element with one of these faults is not rightly placed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a contest's form. `at`: offset in the text; its length where a thing is missing."""

    kind: FaultKind
    tag: str
    at: int
    message: str


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the contest in a text. `exact`: it is written as it should be."""

    name: str
    opens: bool
    start: int
    end: int
    exact: bool

    def __str__(self) -> str:
        return f"<{self.name}>" if self.opens else f"</{self.name}>"


def find_faults(text: str, tags: Sequence[Tag], inside: int, answer: str | None, construct: Construct) -> list[Fault]:
    """All faults, in the order of the text.

    Args:
        tags: all tags of the text, in order.
        inside: how many of them stand up to the end of the contest, that end with them.
        answer: what follows the contest, None when nothing does.
    """
    found = [
        *_counts(text, tags, construct),
        *_places(tags, inside, construct),
        *_texts(text, tags[:inside], construct),
    ]
    for number, tag in enumerate(tags):
        if not tag.exact:
            found.append(Fault("spelling", tag.name, tag.start, f"{text[tag.start : tag.end]!r} should be {tag}"))
        if number >= inside:
            found.append(Fault("leak", tag.name, tag.start, f"{tag} stands in the answer"))
    if answer is None:
        found.append(Fault("answer", construct.root, len(text), f"no answer stands behind </{construct.root}>"))
    return sorted(found, key=lambda fault: fault.at)


def copies(tags: Sequence[Tag]) -> dict[str, int]:
    """Element → how many times more than once it opens or closes, whichever is more often."""
    seen = Counter((tag.name, tag.opens) for tag in tags)
    out: dict[str, int] = {}
    for (name, _), times in seen.items():
        if times > 1:
            out[name] = max(out.get(name, 0), times - 1)
    return out


def _counts(text: str, tags: Sequence[Tag], construct: Construct) -> Iterator[Fault]:
    times = Counter((tag.name, tag.opens) for tag in tags)
    first: dict[str, Tag] = {}
    second: dict[str, Tag] = {}
    seen: set[tuple[str, bool]] = set()
    for tag in tags:
        first.setdefault(tag.name, tag)
        if (tag.name, tag.opens) in seen:
            second.setdefault(tag.name, tag)
        seen.add((tag.name, tag.opens))
    for element in construct.elements:
        opened, closed = times[element, True], times[element, False]
        if not opened and not closed:
            yield Fault("missing", element, len(text), f"<{element}> is missing")
        elif not opened:
            yield Fault("unopened", element, first[element].start, f"</{element}> has no <{element}> before it")
        elif not closed:
            yield Fault("unclosed", element, first[element].start, f"<{element}> is never closed")
        if max(opened, closed) > 1:
            tag = second[element]
            yield Fault("duplicate", element, tag.start, f"{tag} stands there {times[element, tag.opens]} times")


def _places(tags: Sequence[Tag], inside: int, construct: Construct) -> Iterator[Fault]:
    opening: dict[str, int] = {}  # the first opening tag of each element
    closing: dict[str, int] = {}  # the first closing tag behind that
    for number, tag in enumerate(tags):
        if tag.opens:
            opening.setdefault(tag.name, number)
        elif tag.name in opening:
            closing.setdefault(tag.name, number)
    for number, tag in enumerate(tags):
        if tag.opens or tag.name in closing or tag.name not in opening or number > opening[tag.name]:
            continue
        closing[tag.name] = number  # one fault an element
        yield Fault("order", tag.name, tag.start, f"{tag} stands before <{tag.name}>")
    # What is nested is out of turn and outside as well; one name for it is enough.
    blamed = set()
    for fault in _nested(tags, construct):
        blamed.add(fault.tag)
        yield fault
    for fault in _order(tags, {name: at for name, at in opening.items() if name not in blamed}, construct):
        blamed.add(fault.tag)
        yield fault
    root_end = inside - 1 if tags and not tags[inside - 1].opens and tags[inside - 1].name == construct.root else None
    for element in construct.elements[1:]:
        holder = construct.result if element == construct.winner else construct.root
        end = root_end if holder == construct.root else closing.get(holder)
        if end is None or element not in opening or element in blamed:
            continue
        last = max(opening[element], closing.get(element, 0))
        if last > end > opening.get(holder, -1):
            tag = tags[opening[element] if opening[element] > end else last]
            yield Fault("outside", element, tag.start, f"{tag} stands behind </{holder}>")


def _order(tags: Sequence[Tag], opening: dict[str, int], construct: Construct) -> Iterator[Fault]:
    """The fewest elements that would have to move for all to open in turn."""
    turn = {element: i for i, element in enumerate(construct.elements)}
    there = sorted(opening, key=opening.__getitem__)
    best: list[list[str]] = []  # the longest run in turn that ends in each element, the earliest of equals
    for element in there:
        before = [run for run in best if turn[run[-1]] < turn[element]]
        best.append([*max(before, key=len, default=[]), element])
    kept = max(best, key=len, default=[])
    for element in there:
        if element in kept:
            continue
        later = [k for k in kept if turn[k] > turn[element] and opening[k] < opening[element]]
        earlier = [k for k in kept if turn[k] < turn[element] and opening[k] > opening[element]]
        where = f"before <{later[0]}>" if later else f"behind <{earlier[-1]}>"
        yield Fault("order", element, tags[opening[element]].start, f"<{element}> should open {where}")


def _nested(tags: Sequence[Tag], construct: Construct) -> Iterator[Fault]:
    """Elements that open inside a persona's text: between its opening tag and the closing tag that belongs to it."""
    names, ends = set(construct.names), _pairs(tags)
    persona, end = "", -1
    for number, tag in enumerate(tags):
        if not tag.opens:
            continue
        if number < end:
            yield Fault("nested", tag.name, tag.start, f"{tag} stands inside <{persona}>")
        elif tag.name in names:
            persona, end = tag.name, ends[number]


def _pairs(tags: Sequence[Tag]) -> list[int]:
    """For each opening tag the closing tag that belongs to it: the next of its name, before it opens again; else −1."""
    ends = [-1] * len(tags)
    closing: dict[str, int] = {}
    for number in range(len(tags) - 1, -1, -1):
        tag = tags[number]
        if tag.opens:
            ends[number] = closing.pop(tag.name, -1)
        else:
            closing[tag.name] = number
    return ends


def _texts(text: str, tags: Sequence[Tag], construct: Construct) -> Iterator[Fault]:
    """Text where none belongs, and elements without any."""
    if tags and text[: tags[0].start].strip():
        yield Fault("before", construct.root, 0, "text stands before the contest")
    ends = _pairs(tags)
    holder_end = -1  # up to this tag a persona or the judge is speaking
    for number, (tag, following) in enumerate(pairwise(tags)):
        blank = not text[tag.end : following.start].strip()
        if tag.opens and tag.name != construct.root:
            if tag.name != construct.winner:
                holder_end = max(holder_end, ends[number])
            if blank and not following.opens and following.name == tag.name:
                yield Fault("empty", tag.name, tag.start, f"{tag} is empty")
        elif not blank and number >= holder_end:
            yield Fault("between", tag.name, tag.end, f"text stands between {tag} and {following}")
