"""A contest at use: followed while the model writes it, and what of it is shown."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.competition import Construct, Contest, parse

_TAIL = 600
"""Characters in which a tag that has just ended surely begins; the parser's tags are shorter."""
MOST_FAULTS = 2
"""Faults told in one line."""


class ContestStream:
    """Follows the text of a contest and hands out only what stands behind it.

    What it hands out, put together, is `parse(text, construct).answer`: the same first closing tag ends the contest,
    the same white space is left off.

    Attributes:
        text: all that was written so far.
        part: the element that is being written: a persona, the judge's part, or "" before the first.
        answering: the contest is over.
    """

    def __init__(self, construct: Construct) -> None:
        self.text = ""
        self.part = ""
        self.answering = False
        self._construct = construct
        self._began = False  # the answer, with a character that is no white space
        self._held = ""  # white space that may turn out to be the answer's end
        parts = [*construct.names, construct.result]
        self._opening = re.compile(rf"<\s{{0,8}}({'|'.join(map(re.escape, parts))})\b", re.IGNORECASE)

    def add(self, piece: str) -> str:
        """The part of the answer that this piece of text brings."""
        self.text += piece
        if self.answering:
            return self._answer(piece)
        if ">" not in piece:
            return ""
        tail = self.text[-(_TAIL + len(piece)) :]
        if opened := self._opening.findall(tail):
            self.part = opened[-1]
        # A letter behind it makes the difference between no end and an end without an answer yet.
        found = parse(f"{tail}x", self._construct)
        if not found.answer_start or found.answer is None:
            return ""
        self.answering = True
        return self._answer(tail[found.answer_start :])

    def words(self) -> str:
        """What is going on, for a line of progress."""
        if self.answering:
            return "the answer comes"
        if not self.part:
            return "the contest begins"
        if self.part.casefold() == self._construct.result.casefold():
            return "the judge is deciding"
        return f"the {self.part.lower()} is working"

    def _answer(self, piece: str) -> str:
        text = self._held + piece
        if not self._began:
            text = text.lstrip()
        out = text.rstrip()
        self._held = text[len(out) :]
        self._began = self._began or bool(out)
        return out


def told(contest: Contest) -> tuple[str, str, bool]:
    """What a user is shown of a contest.

    Returns:
        The text, a line about what was wrong ("" when the answer can stand by itself), and whether there is an answer:
        only then the text is one, and not the contest itself.
    """
    if contest.answer is None:
        return contest.text.strip(), f"no answer behind the contest: {faults(contest)}", False
    if not contest.has_tags:
        return contest.answer, "no contest: the model answered straight away", True
    if contest.leaks:
        return contest.answer, f"tags of the contest in the answer: {', '.join(contest.leaks[:MOST_FAULTS])}", True
    return contest.answer, "", True


def faults(contest: Contest) -> str:
    """What is wrong with the form, in one line: the first faults, and how many more."""
    found = [fault.message for fault in contest.faults if fault.kind != "answer"]
    more = len(found) - MOST_FAULTS
    return "; ".join(found[:MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Work:
    """One part of a contest, for people to read.

    Attributes:
        tokens: how many it took.
        won: it is the winner's.
    """

    name: str
    text: str
    tokens: int
    won: bool


def works(contest: Contest, construct: Construct, ends: Sequence[int]) -> tuple[list[Work], Work | None]:
    """The personas' parts in the construct's order, and the judge's; parts that are not there are left out.

    Args:
        ends: for each token, where it ends in the contest's text (`TokenContract.token_ends`).
    """

    def work(name: str, start: int, end: int, won: bool) -> Work:
        tokens = bisect_right(ends, end) - bisect_right(ends, start)
        return Work(name, contest.text[start:end].strip(), tokens, won)

    personas = [
        work(name, contest.sections[name].start, contest.sections[name].end, name == contest.winner)
        for name in construct.names
        if name in contest.sections
    ]
    judge = contest.result
    return personas, None if judge is None else work("judge", judge.start, judge.end, False)
