"""From tokens to text that can be shown at once: whole characters, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preftune.token_ends import BROKEN

MOST_HELD = 16
"""Tokens that may wait for the rest of a character. A character has four bytes; what is still broken then stays so."""


class TextStream:
    """Follows one completion, token by token.

    A window of the last tokens is decoded each time, so that spaces between tokens come out as in the whole and the
    time is linear.

    Args:
        decode: ids → text, as the token contract decodes.
        stops: strings at which the text ends; they are no part of it.

    Attributes:
        text: what was handed out so far.
        ended: a stop string came.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.ended = False
        self._decode = decode
        self._stops = tuple(stops)
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text is known for good
        self._sent = 0  # characters behind them that were taken already
        self._held = ""  # text that may be the beginning of a stop string

    def add(self, token: int) -> str:
        """The text that may be shown now that this token is drawn; often "", never a broken character."""
        self._window.append(token)
        before = self._decode(self._window[: self._read])
        now = self._decode(self._window)
        broken = now.endswith(BROKEN)
        spent = len(self._window) - self._read >= MOST_HELD
        fresh = now[len(before) :]
        whole = fresh if spent else fresh.rstrip(BROKEN)
        new, self._sent = whole[self._sent :], max(self._sent, len(whole))
        if spent or (fresh and not broken):
            self._window, self._read, self._sent = self._window[self._read :], len(self._window) - self._read, 0
        return self._hand_out(new)

    def rest(self, whole: str) -> str:
        """What is still to be shown of the completion's whole text, up to its stop string."""
        text = cut_at(whole, self._stops)
        # A tokenizer whose text changes behind what was shown can't be called back: then the rest is unknown.
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text, self._held = text, ""
        return new

    def _hand_out(self, new: str) -> str:
        if self.ended:
            return ""
        text = self._held + new
        cut = cut_at(text, self._stops)
        self.ended = len(cut) < len(text)
        keep = 0 if self.ended else longest_beginning(cut, self._stops)
        out, self._held = cut[: len(cut) - keep], cut[len(cut) - keep :]
        self.text += out
        return out


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=len(text))]


def longest_beginning(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` with which one of the strings may begin."""
    longest = max(map(len, stops), default=0) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
