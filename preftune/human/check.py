"""Checking what raters sent: all that is wrong is found in one go, and nothing is taken in before all is right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.human.files import Row, Sent, read_sent, same_text
from preftune.human.ratings import Rating, are_ranks
from preftune.human.rounds import Answer, Round
from preftune.recipes.schema import nearest

UNNAMED = "unnamed"
"""The rater of a round with a single one who gave no name."""
_ID = re.compile(r"r(\d+)-\d{3,}[a-z]+-[0-9a-f]{6}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checked:
    """Files that are in order.

    Attributes:
        ratings: all of the round, those of earlier imports first.
        new, known: ratings of these files that were not there before, and that were.
        replaced: ratings of earlier imports that `replace` took away.
        left_out: rater → numbers of the prompts (from 1) that he has not rated wholly.
        notes: sentences to print.
    """

    ratings: tuple[Rating, ...]
    new: int
    known: int
    replaced: int
    left_out: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def check_files(
    round_: Round, paths: Sequence[Path], stored: Sequence[Rating], *, partial: bool = False, renew: bool = False
) -> Checked:
    """Read and check raters' files against the round and against what was imported before.

    Args:
        stored: ratings of earlier imports. What a rater sends now adds to what he sent before.
        partial: prompts that a rater has not rated wholly are left out instead of being an error.
        renew: a rater's earlier ratings give way to those of these files.

    Raises:
        DataError: everything that is wrong, each with file and line.
    """
    return _Check(round_, stored, partial, renew).run(paths)


class _Check:
    """One import. Problems are gathered in the order of the files."""

    def __init__(self, round_: Round, stored: Sequence[Rating], partial: bool, renew: bool) -> None:
        self.round, self.stored, self.partial, self.renew = round_, list(stored), partial, renew
        self.rate = round_.human.rate
        self.answers = {answer.id: answer for answer in round_.answers}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.given: dict[tuple[str, str], Rating] = {}
        self.places: dict[tuple[str, str], str] = {}  # (rater, id) → the row with a hole
        self.raters: dict[str, str] = {}  # rater → where the name stands first
        self.spoiled: set[tuple[str, str]] = set()  # faults that are told already, so not missing on top of that

    def run(self, paths: Sequence[Path]) -> Checked:
        sent = [read_sent(path) for path in paths]
        for one in sent:
            self.problems += one.problems
            if one.rows and self._columns(one):
                self._file(one, alone=len(sent) == 1)
        self._names()
        before = {(one.rater, one.id): one for one in self.stored}
        replaced = 0
        if self.renew:
            gone = [key for key in before if key[0] in self.raters]
            replaced = len(gone)
            before = {key: one for key, one in before.items() if key[0] not in self.raters}
        self._against(before)
        merged = {**before, **{key: _newer(before.get(key), one) for key, one in self.given.items()}}
        if self.rate == "rank":
            self._ranks(merged)
        # of a file that breaks off, nothing is known to be missing
        left_out = {} if any(one.broken for one in sent) else self._missing(merged)
        if self.problems:
            count = len(self.problems)
            raise DataError(
                f"{count} problem{'s' if count > 1 else ''} in what was sent; nothing was imported, and everything "
                "imported before is kept. Mend this and import again:\n  " + "\n  ".join(self.problems)
            )
        known = sum(key in before for key in self.given)
        return Checked(tuple(merged.values()), len(self.given) - known, known, replaced, left_out, tuple(self.notes))

    # --- one file ---------------------------------------------------------------------------------------------

    def _columns(self, sent: Sent) -> bool:
        """Whether the file has the columns that the round needs, and no others."""
        right, wrong = self.rate, "rank" if self.rate == "score" else "score"
        known = ["id", "prompt", "answer", right, "rater", "comment"]
        found = [name for name in sent.columns if name]
        before = len(self.problems)
        for name in ("id", "answer", right):
            if name not in found:
                close = nearest(name, [other for other in found if other not in known])
                hint = f"; is it the one named {close!r}?" if close else f"; it has {', '.join(found)}"
                self.problems.append(f"{sent.path}:1: no column named {name!r}{hint}")
        for name in found:
            if name in known or (name == wrong and right not in found):
                continue
            rows = [row for row in sent.rows if _text(row.values.get(name))]
            if rows and name == wrong:
                self.problems.append(
                    f"{rows[0].where}: a {wrong} in a round that is rated by {right}; empty the column {wrong!r}, and "
                    f"{self._asked()}"
                )
            elif rows:
                self.problems.append(
                    f"{rows[0].where}: the column {name!r} is not known; move its text to `comment`, or remove it"
                )
        return len(self.problems) == before

    def _file(self, sent: Sent, *, alone: bool) -> None:
        if not any(_text(row.values.get(self.rate)) for row in sent.rows):
            self.problems.append(
                f"{sent.path}: no answer is rated: the column {self.rate!r} is empty in all {len(sent.rows)} rows; "
                f"{self._asked()}"
            )
            return
        default = self._default_rater(sent, alone)
        unnamed: list[Row] = []
        for row in sent.rows:
            answer = self._answer(row)
            rater = _text(row.values.get("rater")) or default
            value = self._value(row)
            if rater:
                self.raters.setdefault(rater, row.where)
            elif value is not None:
                unnamed.append(row)
            if answer is None or not rater:
                continue
            key = rater, answer.id
            if not self._same(row, answer) or (value is not None and math.isnan(value)):
                self.spoiled.add(key)
            elif value is None:
                self.places.setdefault(key, row.where)
            elif key in self.given:
                self.problems.append(
                    f"{row.where}: {rater} rates {answer.id} a second time, after {self.given[key].where}; keep one"
                )
            else:
                self.given[key] = Rating(answer.id, rater, value, _text(row.values.get("comment")), row.where)
        if unnamed:
            self.problems.append(
                f"{unnamed[0].where}: no name in `rater`, here and in {len(unnamed) - 1} further rated rows; with "
                "several raters every file needs one (a single name in a file counts for all of its rows)"
            )

    def _default_rater(self, sent: Sent, alone: bool) -> str:
        """Who rated the rows without a name: the only name in the file; without any, the round's only rater."""
        names = sorted({name for row in sent.rows if (name := _text(row.values.get("rater")))})
        if len(names) == 1:
            return names[0]
        others = {one.rater for one in self.stored} - {UNNAMED}
        if names or others or not alone or self.round.human.raters > 1:
            return ""
        self.notes.append(f"{sent.path} names no rater; its ratings are kept under {UNNAMED!r}")
        return UNNAMED

    def _answer(self, row: Row) -> Answer | None:
        name = _text(row.values.get("id"))
        answer = self.answers.get(name)
        if answer is None:
            match = _ID.fullmatch(name)
            if not name:
                self.problems.append(f"{row.where}: no id; put back the one that stood there")
            elif match and int(match[1]) != self.round.number:
                self.problems.append(
                    f"{row.where}: {name} is an answer of round {match[1]}, and this is round {self.round.number}"
                )
            else:
                close = nearest(name, list(self.answers), cutoff=0.9)
                hint = f"did you mean {close}?" if close else "was it exported from another folder?"
                self.problems.append(f"{row.where}: unknown id {name!r}; {hint}")
            return None
        return answer

    def _same(self, row: Row, answer: Answer) -> bool:
        cell = row.values.get("answer")
        if same_text("" if cell is None else str(cell), answer.text):
            return True
        self.problems.append(
            f"{row.where}: the answer's text is not the one that {answer.id} had; was one column sorted alone? Put "
            "the exported text back"
        )
        return False

    def _value(self, row: Row) -> float | None:
        """The rating; None for a hole, NaN for what is no rating, which is a problem."""
        raw = row.values.get(self.rate)
        if _text(raw) == "":
            return None
        value = _number(raw, row.decimal_comma)
        if value is None:
            self.problems.append(f"{row.where}: {self.rate} {_shown(raw)} is not a number; {self._asked()}")
            return math.nan
        if self.rate == "score" and not self.round.human.low <= value <= self.round.human.high:
            self.problems.append(f"{row.where}: score {value:g} is out of range; {self._asked()}")
            return math.nan
        if self.rate == "rank" and (value != int(value) or value < 1):
            self.problems.append(f"{row.where}: rank {_shown(raw)} is not a whole number from 1 on; {self._asked()}")
            return math.nan
        return value

    def _asked(self) -> str:
        if self.rate == "rank":
            return "give 1 to a prompt's best answer, 2 to the next, the same rank to equal ones"
        return f"give a number from {self.round.human.low:g} to {self.round.human.high:g}"

    # --- all files --------------------------------------------------------------------------------------------

    def _names(self) -> None:
        known = {one.rater.casefold(): one.rater for one in self.stored}
        for rater, where in self.raters.items():
            other = known.setdefault(rater.casefold(), rater)
            if other != rater:
                self.problems.append(f"{where}: rater {rater!r} and {other!r} differ in case alone; write one of them")

    def _against(self, before: dict[tuple[str, str], Rating]) -> None:
        for key, one in self.given.items():
            old = before.get(key)
            if old is not None and old.value != one.value:
                self.problems.append(
                    f"{one.where}: {one.rater} gave {one.id} {old.value:g} before ({old.where}), now {one.value:g}; "
                    "put that back, or import with --replace to take this file's ratings instead of his earlier ones"
                )

    def _ranks(self, merged: dict[tuple[str, str], Rating]) -> None:
        """A rater's ranks of a prompt must be ranks of as many answers."""
        for rater in self.raters:
            for prompt, answers in self.round.prompts.items():
                mine = [merged.get((rater, answer.id)) for answer in answers]
                given = [one for one in mine if one is not None]
                values = [one.value for one in given]
                if len(given) < len(answers):
                    high = [one for one in given if one.value > len(answers)]
                    self.problems += [
                        f"{one.where}: rank {one.value:g}, but prompt {prompt + 1} has {len(answers)} answers"
                        for one in high
                    ]
                elif not are_ranks(values):
                    self.problems.append(
                        f"{given[0].where}: {rater}'s ranks of the {len(answers)} answers to prompt {prompt + 1} are "
                        f"{', '.join(f'{value:g}' for value in values)}; {self._asked()}, without gaps"
                    )

    def _missing(self, merged: dict[tuple[str, str], Rating]) -> dict[str, tuple[int, ...]]:
        """Rater → prompts not rated wholly, of the raters in these files; a problem each unless `partial`."""
        out: dict[str, tuple[int, ...]] = {}
        for rater in self.raters:
            holes: dict[int, list[str]] = {}
            for prompt, answers in self.round.prompts.items():
                gone = [a.id for a in answers if (rater, a.id) not in merged and (rater, a.id) not in self.spoiled]
                if gone:
                    holes[prompt + 1] = gone
            if not holes:
                continue
            out[rater] = tuple(holes)
            if self.partial:
                continue
            count = sum(map(len, holes.values()))
            lines = [
                f"{self._place(rater, name)} ({name}, prompt {prompt})"
                for prompt, gone in holes.items()
                for name in gone
            ]
            self.problems.append(
                f"{rater} gave no {self.rate} to {count} of {len(self.answers)} answers, in {len(holes)} of "
                f"{len(self.round.prompts)} prompts. Fill them in, or import with --partial, which keeps the rest and "
                "leaves these prompts out:\n    " + "\n    ".join(lines)
            )
        return out

    def _place(self, rater: str, name: str) -> str:
        return self.places.get((rater, name)) or "no row"


def _newer(old: Rating | None, new: Rating) -> Rating:
    """The rating of two equal ones; a comment is kept when the newer file has none."""
    return new if old is None or new.comment else replace(new, comment=old.comment)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _shown(raw: Any) -> str:
    text = str(raw).strip() if isinstance(raw, str) else str(raw).lower() if isinstance(raw, bool) else str(raw)
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _number(raw: Any, decimal_comma: bool) -> float | None:
    """A finite number, from JSON or as text; None for anything else, true and false included."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int | float):
        try:
            return float(raw) if math.isfinite(raw) else None
        except OverflowError:
            return None
    if not isinstance(raw, str):
        return None
    text = raw.strip()
    if decimal_comma and _WITH_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return float(text) if _NUMBER.fullmatch(text) and math.isfinite(float(text)) else None
