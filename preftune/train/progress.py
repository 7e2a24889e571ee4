"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

LINE_EVERY = 15.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """One bar at a time; `tick` moves it. Writes to standard error."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._rich: Any = None
        self._task: Any = None
        self._label = ""
        self._start = self._said = time.monotonic()
        self._from = 0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
            from rich.text import Text

            class Rate(ProgressColumn):
                def render(self, task: Any) -> Text:
                    return Text(f"{task.speed:.2f}/s" if task.speed else "–/s", style="cyan")

            self._rich = __import__("rich.progress").progress.Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def begin(self, label: str, done: int = 0) -> None:
        """Start a new bar, with `done` finished before its clock began (after a resume or a measurement)."""
        self._label, self._start, self._from = label, time.monotonic(), done
        self._said = 0.0
        if self._rich is not None:
            if self._task is not None:
                self._rich.remove_task(self._task)
            from rich.markup import escape

            self._task = self._rich.add_task(escape(f"{self.title} · {label}"), total=None, completed=done, note="")

    def tick(self, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` are finished; None where nobody knows how many there are."""
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done == self._from or (now - self._said < LINE_EVERY and (total is None or done < total)):
            return  # nothing done since the bar began, or too soon for another line
        self._said = now
        spent = now - self._start
        rate = (done - self._from) / spent if spent > 0 else 0.0
        if total is None:
            told = f"{done}, {rate:.2f}/s"
        else:
            told = f"{done}/{total}, {rate:.2f}/s, {(total - done) / rate if rate > 0 else 0.0:.0f} s left"
        print(
            f"{self.title} · {self._label}: {told} {note}",
            file=sys.stderr,
            flush=True,
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._rich is not None:
            from rich.markup import escape

            self._rich.console.print(f"[dim]{escape(self.title)}[/dim] {escape(text)}", highlight=False)
        else:
            print(f"{self.title} {text}", file=sys.stderr, flush=True)
