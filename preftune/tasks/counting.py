"""What constraints count in a text. Each function is a rule on text alone; counts are those of IFEval where it has them
(Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"), but for sentences (see there)."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*(?=\s|$)|[。！？]+")
_LATIN = "mr mrs ms dr prof st jr sr vs no vol fig eq al approx dept est e.g i.e a.m p.m u.s u.k"
_CYRILLIC = "т.е т.д т.п т.к г гг см рис стр им ул"
_ABBREVIATIONS = frozenset((*_LATIN.split(), *_CYRILLIC.split()))
"""Words that a full stop follows without ending the sentence, unless they are its last."""
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-)", re.MULTILINE)
_TITLE = re.compile(r"<<([^\n<>]*)>>")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_NEAR = 200
"""Characters before a stop that are looked at: a word is shorter, and a text of stops alone must not take for ever."""
_BOLD = re.compile(r"\*\*([^\n*]+)\*\*")
_ITALIC = re.compile(r"(?<!\*)\*([^\n*]+)\*(?!\*)")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as in IFEval: "don't" is two."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences: they end in a full stop, a question or an exclamation mark before white space or the text's end.

    The stops of known abbreviations, of single capital letters (initials) and of list numbers (`1.` at a line's start)
    end none. A rest without a stop is a sentence, too. IFEval asks nltk's trained splitter instead, which parts other
    texts in rare cases.
    """
    out: list[str] = []
    start, whole = 0, len(text.rstrip())
    word = _WORD.search(text)
    for end in _END.finditer(text):
        if word is None:
            return out
        stop = end[0].strip("\"'”’»)]")
        if word.start() > end.start() or (end.end() < whole and stop == "." and _goes_on(text, end.start())):
            continue
        out.append(text[start : end.end()].strip())
        start = end.end()
        word = _WORD.search(text, start)
    return [*out, text[start:].strip()] if word is not None else out


def _goes_on(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to the word before it."""
    line = text[max(0, stop - _NEAR) : stop].rpartition("\n")[2]
    word = line.split()[-1].strip("\"'“‘«([") if line.split() else ""
    initial = len(word) == 1 and word.isupper() and word != "I"
    return word.lower() in _ABBREVIATIONS or initial or (word.isdigit() and line.strip() == word)


def paragraphs(text: str, separator: str | None = None) -> list[str]:
    """Parts between blank lines, or between `separator`s. An empty part is none, but between separators it counts."""
    if separator is None:
        return [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    parts = [part.strip() for part in text.split(separator)]
    return [part for place, part in enumerate(parts) if part or 0 < place < len(parts) - 1]


def occurrences(text: str, phrase: str, *, whole: bool) -> int:
    """How often a word or phrase stands in the text, in any case. `whole`: not as a part of a longer word."""
    pattern = re.escape(phrase)
    if whole:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return len(re.findall(pattern, text, re.IGNORECASE))


def capital_words(text: str) -> int:
    """Words all of whose letters are capitals; "A" and "I" are."""
    return sum(word.isupper() for word in words(text))


def bullets(text: str) -> int:
    """Lines that begin with a single `*`, or with `-`."""
    return len(_BULLET.findall(text))


def placeholders(text: str) -> int:
    """[Pieces in square brackets] on one line."""
    return len(_PLACEHOLDER.findall(text))


def highlights(text: str) -> int:
    """*Pieces between asterisks*, single or double, that are not blank."""
    bold = [found for found in _BOLD.findall(text) if found.strip()]
    rest = _BOLD.sub(" ", text)
    return len(bold) + sum(bool(found.strip()) for found in _ITALIC.findall(rest))


def titles(text: str) -> int:
    """<<Titles>> in double angular brackets, on one line and not blank."""
    return sum(bool(found.strip()) for found in _TITLE.findall(text))


def sections(text: str, marker: str) -> int:
    """Places that read `marker` and a number: "Section 1", "Section 2"."""
    return len(re.findall(rf"{re.escape(marker)}[ \t]?\d+", text))


def without_fence(text: str) -> str:
    """The text without a ``` fence around the whole of it."""
    body = text.strip()
    if len(body) < 6 or not (body.startswith("```") and body.endswith("```")):
        return text
    inside = body[3:-3]
    first, line_break, rest = inside.partition("\n")
    return rest if line_break and (not first.strip() or first.strip().isalnum()) else inside
