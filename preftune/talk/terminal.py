"""What the user of a talk sees. Every text of a model, a file or a user goes through `visible` first."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Literal, TextIO, TypeAlias

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preftune.competition import Construct, Contest
from preftune.talk.answer import Answer, Budget
from preftune.talk.contest import Work, faults, works
from preftune.talk.visible import one_line, visible

ShowWork: TypeAlias = Literal["off", "folded", "columns"]
NARROWEST = 24
"""Columns of the terminal that a persona needs; with fewer they stand one above the other."""
REDRAW = 0.1
"""Seconds between changes of a passing line."""


class Screen:
    """Writes a talk: a `Listener` for answers, and lines beside them.

    Without a terminal nothing is coloured and no line passes; NO_COLOR leaves colours out everywhere.

    Args:
        out: answers.
        aside: everything else; may be the same.
        stream: show an answer while it comes, not when it is whole.
        show_work: of a contest, what is shown behind the answer.
    """

    def __init__(self, out: TextIO, aside: TextIO, *, stream: bool = True, show_work: ShowWork = "off") -> None:
        for file in (out, aside):
            # A terminal of another encoding shows what it can.
            with contextlib.suppress(AttributeError, ValueError):
                file.reconfigure(errors="replace")  # type: ignore[attr-defined]
        self.stream = stream
        self.show_work: ShowWork = show_work
        self._out = _console(out)
        self._aside = self._out if aside is out else _console(aside)
        self._passing = False
        self._drawn_at = 0.0
        self._open_line = False

    # ---------------------------------------------------------------------------------------------- answers

    def begins(self, budget: Budget) -> None:
        """See `Listener`."""
        self.dim(
            f"prompt {_tokens(budget.prompt)} · {budget.available:,} of {budget.window:,} available"
            + (f", {budget.limit:,} at most for the answer" if budget.limit < budget.available else "")
        )
        self.passing("reading …", now=True)

    def working(self, words: str, tokens: int) -> None:
        """See `Listener`."""
        if not self._open_line:
            self.passing(f"{words} … {_tokens(tokens)}")

    def says(self, text: str) -> None:
        """See `Listener`."""
        if self.stream:
            self._write(text)

    def end(self, answer: Answer, construct: Construct | None) -> None:
        """What follows an answer: the rest of its line, what was wrong, the count, and the contest if it is wanted."""
        if not self.stream:
            self._write(answer.text)
        self.close_line()
        if answer.note:
            kept = "" if answer.kept else "; this is no part of the talk"
            self.dim(f"note: {answer.note}{kept}")
        self.dim(_counts(answer))
        if answer.contest is not None and construct is not None and self.show_work != "off":
            self.contest(answer.contest, construct, answer.ends, self.show_work)

    def _write(self, text: str) -> None:
        self._clear()
        if text:
            self._out.file.write(visible(text))
            self._out.file.flush()
            self._open_line = not text.endswith("\n")

    def close_line(self) -> None:
        """End the line that is being written, a passing one included."""
        self._clear()
        if self._open_line:
            self._out.file.write("\n")
            self._out.file.flush()
            self._open_line = False

    # ---------------------------------------------------------------------------------------------- lines

    def dim(self, text: str) -> None:
        """A line beside the talk."""
        self._line(self._aside, Text(visible(text), style="dim"))

    def say(self, text: str) -> None:
        """A line of ours that was asked for."""
        self._line(self._aside, Text(visible(text)))

    def error(self, text: str) -> None:
        """What went wrong."""
        self._line(self._aside, Text.assemble(("error: ", "bold red"), visible(text)))

    def passing(self, text: str, *, now: bool = False) -> None:
        """A line that the next one takes the place of; nothing where there is no terminal."""
        if not self._aside.is_terminal or self._aside.is_dumb_terminal:
            return
        clock = time.monotonic()
        if not now and self._passing and clock - self._drawn_at < REDRAW:
            return
        self._drawn_at, self._passing = clock, True
        line = set_cell_size(visible(text), max(self._aside.width - 1, 1)).rstrip()
        self._aside.file.write("\r\x1b[2K" + (f"\x1b[2m{line}\x1b[0m" if self._aside.color_system else line))
        self._aside.file.flush()

    def _clear(self) -> None:
        if self._passing:
            self._aside.file.write("\r\x1b[2K")
            self._aside.file.flush()
            self._passing = False

    def _line(self, console: Console, text: Text) -> None:
        self.close_line()
        console.print(text, soft_wrap=True)

    @property
    def coloured(self) -> bool:
        """Whether the terminal gets colours."""
        return self._aside.color_system is not None

    # ---------------------------------------------------------------------------------------------- contests

    def contest(
        self, contest: Contest, construct: Construct, ends: Sequence[int], how: Literal["folded", "columns", "whole"]
    ) -> None:
        """A contest: a line for each part, its parts beside each other, or one below the other.

        Args:
            ends: where each token ends in its text.
        """
        personas, judge = works(contest, construct, ends)
        if not contest.has_tags:
            self.dim("there was no contest")
            return
        if how == "columns" and personas and self._out.width >= NARROWEST * len(personas):
            self._columns(personas)
        else:
            for work in personas:
                self._work(work, folded=how == "folded")
        if judge is not None:
            self._work(judge, folded=how == "folded")
        if contest.winner is None:
            named = "" if contest.winner_text is None else f": the judge named {one_line(contest.winner_text, 40)!r}"
            self.dim(f"no winner{named}")
        if told := faults(contest):
            self.dim(f"its form: {told}")
        if how == "folded":
            self.dim("/show-work unfolds it")

    def _columns(self, personas: Sequence[Work]) -> None:
        table = Table(expand=True, show_lines=False, highlight=False)
        for work in personas:
            table.add_column(_head(work), ratio=1, overflow="fold", header_style="")
        table.add_row(*(Text(visible(work.text)) for work in personas))
        self.close_line()
        self._out.print(table)

    def _work(self, work: Work, *, folded: bool) -> None:
        head = _head(work)
        self.close_line()
        if folded:
            # Not under 20: a line that is cut to nothing would say nothing.
            first = one_line(work.text, max(self._out.width - len(head) - 4, 20))
            self._out.print(Text("▸ ") + head + Text(f"  {first}", style="dim"), soft_wrap=True)
        else:
            self._out.print(Text("▾ ") + head, soft_wrap=True)
            self._out.print(Text(visible(work.text)), soft_wrap=True)


def _head(work: Work) -> Text:
    """Name, tokens, and whether it won: said, not coloured alone."""
    head = Text(visible(work.name), style="bold green" if work.won else "bold")
    head.append(f" · {_tokens(work.tokens)}", style="not bold")
    return head.append(" · winner" if work.won else "")


def _counts(answer: Answer) -> str:
    budget = answer.budget
    said = [f"answer {_tokens(answer.tokens)}", f"{budget.prompt + answer.tokens:,} of {budget.window:,} used"]
    if answer.rate is not None:
        said.append(f"{answer.rate:,.1f} tokens/s")
    if answer.finish == "length":
        said.append(f"cut at its limit of {_tokens(budget.limit)}")
    if answer.finish == "interrupted":
        said.append("stopped")
    return " · ".join(said)


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _console(file: TextIO) -> Console:
    plain = bool(os.environ.get("NO_COLOR"))
    # Markup and highlighting off: texts are not ours. rich's own NO_COLOR would keep bold and dim.
    return Console(file=file, markup=False, highlight=False, emoji=False, color_system=None if plain else "auto")
