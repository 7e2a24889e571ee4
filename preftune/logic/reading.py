"""Reads who is a knight and who a knave out of a model's text. Any text at all: it never raises.

A claim is a name or several, a linking word or sign, and a kind ("Ann is a knight", "Ann: knave", "| Ann | knight |",
"(1) Bob can't be a knight", "Ann and Bob are knaves", "neither is a knight", "all are knaves"), or a kind and its names
("Knights: Ann, Bob", "the knave is Cleo"). What a sentence only supposes ("if Ann is a knight, …"), asks, or lets
somebody say ("Ann says Bob is a knave") is no claim.

Each sentence becomes a short text with one letter per word, and regular expressions over that find the claims.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

Verdict: TypeAlias = bool | Literal["both"]
"""True a knight, False a knave, "both" where the text says both."""

KINDS = {"knight": True, "truth-teller": True, "truthteller": True, "truth teller": True, "knave": False, "liar": False}

_LETTERS = {
    "L": "is are am be was : = == → -> => ⇒ - – — |",
    "D": "not isn't aren't wasn't cannot can't no never ¬",
    "P": "(",
    "J": "and & nor but",
    ",": ",",
    "R": "or /",
    "X": "neither",
    "B": "both each",
    "A": "all everyone everybody",
    "O": "none nobody",
    "S": "if suppose supposing assume assuming imagine unless whether case except besides would were could might may",
    "Y": "say says said saying claim claims claimed claiming state states stated statement tells told asserts declares",
    "T": "so therefore hence thus",
    "": "a an the must has have to then indeed clearly definitely certainly surely really actually also too only "
    "either of them people two three four five six seven eight * _ \" “ ” ` ' ‘ ) [ ] { } \\ $",
}  # fmt: skip
"""Letter → the words that it stands for: link, denial, bracket, joiner, comma, or, neither, both, all, none, supposing,
saying, conclusion, and words that change nothing. Names are N, knights K, knaves V, any other word W."""

_CATEGORY = {word: letter for letter, words in _LETTERS.items() for word in words.split()}
_CATEGORY["no one"] = "O"
_CATEGORY |= {word: "K" if knight else "V" for kind, knight in KINDS.items() for word in (kind, f"{kind}s")}
_SINGULAR = {"is", "was", "isn't", "wasn't", "'s"}
_WORD = r"no one\b|truth[- ]tellers?\b|[^\W\d_]+(?:'t\b)?|'s\b|\d+|->|=>|==|[.!?;\n]|[^\w\s]|_"

_LIST = r"N(?:[,J]*+N)*+"
_CLAIM = re.compile(
    # A kind and its names. A last name that begins the next claim is left to it: "the knave is Bob and Ann is …".
    r"(?P<kind>[KV])(?P<are>L++)(?P<names>N(?:[,J]++N)*)(?![LDB]|P[KV])"
    # Names and their kind. Names alone are read over in one go, which keeps the search linear.
    rf"|(?P<subject>[XB]?+{_LIST}(?P<or>(?:[,J]*+R{_LIST})*+)|[XABO])(?:(?P<link>[LDPBT]*+)(?P<kinds>[KV](?:[,JR]*+D*+[KV])*+))?"
)
_HEADER = re.compile(r"[WL]*([KV])L")
_ITEM = re.compile(rf"L?{_LIST}")


def plain(text: str) -> str:
    """A text in the form in which names are compared: composed, without case, with one kind of apostrophe."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).replace("’", "'")


def read_assignment(text: str, people: Sequence[str], *, last_wins: bool) -> dict[str, Verdict]:
    """Each person's kind as a text claims it; people about whom it claims nothing are absent.

    Args:
        text: any text.
        people: names, no two of them equal by `plain`.
        last_wins: of several claims about one person the last counts. Otherwise two that differ make "both".
    """
    by_name = {plain(name): name for name in people}
    found: dict[str, Verdict] = {}
    heading: bool | None = None
    for words, letters in _sentences(plain(text), list(by_name)):
        claims: list[tuple[list[str], Verdict]]
        if heading is not None and _ITEM.fullmatch(letters):
            claims = [([word for word, letter in zip(words, letters, strict=True) if letter == "N"], heading)]
        else:
            header = _HEADER.fullmatch(letters)
            heading = None if header is None else header.group(1) == "K"
            claims = list(_claims(words, letters, list(by_name)))
        for names, verdict in claims:
            for name in names:
                before = found.get(by_name[name], verdict)
                found[by_name[name]] = verdict if last_wins or before == verdict else "both"
    return found


def _sentences(text: str, names: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """The sentences and lines that hold anything: their words and one letter for each. Questions are left out."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    tokens = re.findall(rf"(?<!\w)(?:{known})(?!\w)|{_WORD}", text.replace("\r", "\n"))
    words: list[str] = []
    letters: list[str] = []
    for token, after in pairwise([*tokens, "\n"]):
        if token in (".", "!", "?", ";", "\n"):
            if words and token != "?":
                yield words, "".join(letters)
            words, letters = [], []
            continue
        letter = _letter(token, after, names)
        if letter:
            words.append(token)
            letters.append(letter)
    if words:
        yield words, "".join(letters)


def _letter(token: str, after: str, names: Sequence[str]) -> str:
    if token in names:
        return "N"
    if token == "'s":  # "Ann's a knight", but not "Ann's statement"
        return "L" if after in ("a", "an", "the", "not") else "W"
    if token == "let" and after in names:
        return "S"
    return "" if token.isdigit() else _CATEGORY.get(token, "W")


def _claims(words: list[str], letters: str, everybody: list[str]) -> Iterator[tuple[list[str], Verdict]]:
    """What a sentence claims: names and what they are said to be."""
    if "S" in letters or re.search(r"A[,J]+N", letters):  # supposed; "all but Ann …"
        return
    letters = re.sub(r"NL(?=[XB]?N)", "NY", letters)  # `Ann: "Bob is a knave"`
    for match in _CLAIM.finditer(letters):
        spoken = letters.rfind("Y", 0, match.start())
        if spoken >= 0 and not re.search(r"[,T]", letters[spoken : match.start()]):
            continue
        if match["kind"]:
            named = [words[n] for n in range(*match.span("names")) if letters[n] == "N"]
            one = _SINGULAR & set(words[slice(*match.span("are"))])
            yield named[:1] if one else named, match["kind"] == "K"
            continue
        start, end = match.span()
        if not match["kinds"] or match["or"] or letters[start - 1 : start] == "R" or letters[end : end + 1] == "R":
            continue
        link = match["link"]
        subjects = [words[n] for n in range(*match.span("subject")) if letters[n] == "N"]
        if not link and len(subjects) != 1:
            continue
        if "B" not in link and match["subject"][0] not in "XBAO" and _SINGULAR & set(words[slice(*match.span("link"))]):
            subjects = subjects[-1:]
        if not subjects and letters[start - 1 : start] == "D":  # "not all are knights"
            continue
        denied = ("D" in link) != (match["subject"][0] in "XO")
        yield subjects or everybody, _verdict(match["kinds"], denied)


def _verdict(kinds: str, denied: bool) -> Verdict:
    """ "a knight" or "not a knave but a knight": each kind with the denial before it. "a knight or a knave" is both."""
    found: set[bool] = set()
    for denial, letter in re.findall(r"(D*)[,JR]*(D*[KV])", f"{'D' if denied else ''}{kinds}"):
        found.add((letter[-1] == "K") != bool(denial or letter[:-1]))
    return found.pop() if len(found) == 1 else "both"
