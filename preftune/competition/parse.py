"""Reading a contest that a model wrote: strict about what it reports, tolerant in what it finds. Never raises on text.

All in linear time: a model's text may be anything, also a hundred thousand opening tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from preftune.competition.construct import Construct
from preftune.competition.faults import Fault, Tag, copies, find_faults
from preftune.competition.words import is_spaceless


@dataclass(frozen=True, slots=True)
class Section:
    """What an element encloses: `text` is the completion's text from `start` to `end`, white space and all.

    It ends at the next tag of the contest, so no tag stands in it and no two sections overlap; only the judge's part
    has the winner's tag inside. `closed`: the tag that ends it is its own closing tag.
    """

    text: str
    start: int
    end: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Contest:
    """What stands in a completion.

    Attributes:
        span: from the contest's first tag to its end, both tags with it; empty in a text without tags.
        sections: persona → its first section; personas that have none are absent.
        result: the judge's part, the winner's tag with it.
        winner_text: what the winner's tag encloses, stripped; None without one.
        winner: the persona that it names, with other text around or without; None when it names none, or several.
        answer: what stands behind the contest, stripped: what a user is shown. None where the contest does not end, or
            nothing follows. A text without any tag is all answer.
        answer_start: where the answer's part of the text begins.
        ended: the contest has its closing tag.
        faults: what is wrong with the form, in the order of the text; empty for a strict contest.
        leaks: competition tags in the answer, as written.
        copies: element → how many times too often it stands there; elements that do so alone.
        ordered: all tags are there, each once and in their order; other faults aside, and what follows the contest.
    """

    text: str
    span: tuple[int, int]
    sections: Mapping[str, Section]
    result: Section | None
    winner_text: str | None
    winner: str | None
    answer: str | None
    answer_start: int
    ended: bool
    faults: tuple[Fault, ...]
    leaks: tuple[str, ...]
    copies: Mapping[str, int]
    ordered: bool

    @property
    def strict(self) -> bool:
        """Whether nothing is wrong with the form."""
        return not self.faults

    @property
    def has_tags(self) -> bool:
        """Whether any tag of the contest stands in the text."""
        return self.span[0] < self.span[1]

    @property
    def winner_exact(self) -> bool:
        """Whether the winner's tag encloses a persona's name and nothing else."""
        return self.winner is not None and self.winner_text == self.winner


def parse(text: str, construct: Construct) -> Contest:
    """Read a completion. Never raises on account of `text`."""
    tags = _tags(text, construct)
    # The first one, so that what is being written can be shown once it has come.
    end = next((n for n, tag in enumerate(tags) if tag.name == construct.root and not tag.opens), None)
    inside = len(tags) if end is None else end + 1
    answer_start = tags[end].end if end is not None else len(text) if tags else 0
    answer = text[answer_start:].strip() or None
    sections = _sections(text, tags[:inside], construct)
    winner = sections.pop(construct.winner, None)
    winner_text = None if winner is None else winner.text.strip()
    result = sections.pop(construct.result, None)
    return Contest(
        text=text,
        span=(tags[0].start, tags[inside - 1].end if end is not None else len(text)) if tags else (0, 0),
        sections=sections,
        result=result,
        winner_text=winner_text,
        winner=None if winner_text is None else named(winner_text, construct),
        answer=answer,
        answer_start=answer_start,
        ended=end is not None,
        faults=tuple(find_faults(text, tags, inside, answer, construct)),
        leaks=tuple(text[tag.start : tag.end] for tag in tags[inside:]),
        copies=copies(tags),
        ordered=tuple((tag.name, tag.opens) for tag in tags[:inside]) == _expected(construct),
    )


def named(text: str, construct: Construct) -> str | None:
    """The persona that a text names as a whole word, in any case; None when it names none, or more than one."""
    by_name = {name.casefold(): name for name in construct.names}
    # What equals a name by the regular expression's case rules alone (ı for i) is no name.
    found = {by_name.get(match.casefold()) for match in _names(construct.names).findall(text)} - {None}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=64)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    # A name in Chinese may stand in the middle of a sentence: it has no white space around.
    every = []
    for name in sorted(names, key=len, reverse=True):
        left = "" if is_spaceless(name[0]) else r"(?<![\w-])"
        right = "" if is_spaceless(name[-1]) else r"(?![\w-])"
        every.append(f"{left}{re.escape(name)}{right}")
    return re.compile("|".join(every), re.IGNORECASE)


@lru_cache(maxsize=64)
def _pattern(elements: tuple[str, ...]) -> re.Pattern[str]:
    every = "|".join(re.escape(element) for element in sorted(elements, key=len, reverse=True))
    # Bounded white space and attributes: a text of `<   <   <` must not take quadratic time.
    return re.compile(rf"<\s{{0,8}}(/?)\s{{0,8}}({every})(?:\s[^<>]{{0,200}})?\s{{0,8}}/?>", re.IGNORECASE)


def _tags(text: str, construct: Construct) -> list[Tag]:
    canonical = {element.casefold(): element for element in construct.elements}
    out = []
    for match in _pattern(construct.elements).finditer(text):
        name = canonical.get(match[2].casefold())
        if name is None:  # equal to an element by the regular expression's case rules alone
            continue
        opens = not match[1]
        out.append(Tag(name, opens, *match.span(), match[0] == (f"<{name}>" if opens else f"</{name}>")))
    return out


@lru_cache(maxsize=64)
def _expected(construct: Construct) -> tuple[tuple[str, bool], ...]:
    root, result, winner = construct.root, construct.result, construct.winner
    personas = [(name, opens) for name in construct.names for opens in (True, False)]
    verdict = [(result, True), (winner, True), (winner, False), (result, False)]
    return (root, True), *personas, *verdict, (root, False)


def _sections(text: str, tags: Sequence[Tag], construct: Construct) -> dict[str, Section]:
    """The first section of every element but the root."""
    out: dict[str, Section] = {}
    for number, tag in enumerate(tags):
        if not tag.opens or tag.name in out or tag.name == construct.root:
            continue
        following = number + 1
        if tag.name == construct.result:  # the winner's element is part of it
            following = next((n for n in range(following, len(tags)) if tags[n].name != construct.winner), len(tags))
        end = tags[following] if following < len(tags) else None
        stop = len(text) if end is None else end.start
        closed = end is not None and not end.opens and end.name == tag.name
        out[tag.name] = Section(text[tag.end : stop], tag.end, stop, closed)
    return out
