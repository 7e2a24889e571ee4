"""Where each token of a completion ends in its text."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

BROKEN = "\ufffd"
"""What decoding gives for a character whose last bytes are yet to come."""
PARTS = 4
"""A character has at most so many bytes, so one that so many tokens do not complete is none."""

Decode = Callable[[Sequence[int]], str]


def token_ends(ids: Sequence[int], text: str, decode: Decode, pieces: MutableMapping[int, str]) -> list[int]:
    """Offsets into `text`, one for each id and never falling: the number of characters up to and with that token.

    A token that ends in the middle of a character ends where the character begins; the token that completes it has it.
    The last one ends with the text.

    Args:
        text: what `ids` decode to.
        decode: ids → text, as the token contract decodes.
        pieces: what single ids decode to inside a text, kept from call to call.
    """
    out: list[int] = []
    at = 0
    while len(out) < len(ids):
        one = ids[len(out)]
        if one not in pieces:
            pieces[one] = _behind_itself([one], decode)
        piece = pieces[one]
        if at == 0 and text.startswith(begun := decode([one])):
            piece = begun
        if BROKEN not in piece and text.startswith(piece, at):
            at += len(piece)
            out.append(at)
            continue
        together = _character(ids, len(out), text, at, decode)
        if not together:
            return _stepwise(ids, len(text), decode)
        out += together
        at = out[-1]
    return out if at == len(text) else _stepwise(ids, len(text), decode)


def _character(ids: Sequence[int], place: int, text: str, at: int, decode: Decode) -> list[int]:
    """The ends of the tokens from `place` on that make whole characters only together; none when they make none."""
    ends: list[int] = []
    for last in range(place, min(place + 2 * PARTS, len(ids))):
        some = ids[place : last + 1]
        said = _behind_itself(some, decode) if at else decode(some)
        whole = said.rstrip(BROKEN)
        if not text.startswith(whole, at):
            return []
        ends.append(at + len(whole))
        if whole and whole == said:
            return ends
    return []


def _behind_itself(ids: Sequence[int], decode: Decode) -> str:
    """What ids add to a text that has begun: some tokenizers drop a text's first space."""
    return decode([*ids, *ids])[len(decode(ids)) :]


def _stepwise(ids: Sequence[int], length: int, decode: Decode) -> list[int]:
    """For texts that are not their tokens' texts one after another, or not whole characters at all.

    Decodes a window of the last few tokens, so the time is linear.
    """
    ends = [0]
    start = read = total = 0  # the window, how much of it is settled, and how long the settled text is
    for i in range(len(ids)):
        before, now = decode(ids[start:read]), decode(ids[start : i + 1])
        settled = i + 1 - read > PARTS or not now.endswith(BROKEN)
        grown = len(now if settled else now.rstrip(BROKEN)) - len(before)
        ends.append(min(max(total + grown, ends[-1]), length))
        if settled:
            total += grown
            # A token that says nothing is no context: behind it some tokenizers decode as at the beginning.
            if grown or i - start > 4 * PARTS:
                start = read
            read = i + 1
    # Whatever the windows missed belongs to the last token: nothing stands behind it.
    return [*ends[1:-1], length] if ids else []
