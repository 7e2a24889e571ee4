"""Kinds of constraints on an answer, each a rule that a program can check.

    {"kind": "words", "at_most": 50}        {"kind": "contains", "words": ["tea"]}        {"kind": "no-commas"}

A kind is a frozen dataclass: its fields are the constraint's arguments, calling it with a text says whether the text
follows it. All are rules on text alone: no model, no network, and time that grows with the text's length.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from preftune.tasks import counting, languages

Check: TypeAlias = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a row. `check` is made from kind and args; two of the same are equal."""

    kind: str
    args: Mapping[str, Any]
    check: Check = dataclasses.field(compare=False)

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_short(value)}" for name, value in self.args.items())
        return f"{self.kind}: {told}" if told else self.kind


# ------------------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True)
class Counted(ABC):
    """Something occurs at least and at most so many times, both ends included."""

    at_least: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        if min(self.at_least or 0, self.at_most or 0) < 0:
            raise ValueError("at_least and at_most can't be negative")
        if self.at_least is not None and self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most ({self.at_most}) is less than at_least ({self.at_least})")

    def __call__(self, text: str) -> bool:
        found = self.count(text)
        return (self.at_least or 0) <= found and (self.at_most is None or found <= self.at_most)

    @abstractmethod
    def count(self, text: str) -> int:
        """How often it occurs."""


@dataclass(frozen=True)
class Words(Counted):
    """Number of words."""

    def count(self, text: str) -> int:
        return len(counting.words(text))


@dataclass(frozen=True)
class Sentences(Counted):
    """Number of sentences."""

    def count(self, text: str) -> int:
        return len(counting.sentences(text))


@dataclass(frozen=True)
class Characters(Counted):
    """Number of characters, white space at both ends left out."""

    def count(self, text: str) -> int:
        return len(text.strip())


@dataclass(frozen=True)
class Paragraphs(Counted):
    """Number of paragraphs, parted by blank lines or by `separator`."""

    separator: str | None = None

    def __post_init__(self) -> None:
        Counted.__post_init__(self)
        _not_blank(self.separator if self.separator is not None else "-", "separator")

    def count(self, text: str) -> int:
        return len(counting.paragraphs(text, self.separator))


@dataclass(frozen=True)
class Bullets(Counted):
    """Number of bullet points: lines that begin with a single `*`, or with `-`."""

    def count(self, text: str) -> int:
        return counting.bullets(text)


@dataclass(frozen=True)
class Placeholders(Counted):
    """Number of [placeholders] in square brackets."""

    def count(self, text: str) -> int:
        return counting.placeholders(text)


@dataclass(frozen=True)
class Highlights(Counted):
    """Number of *highlighted* parts between asterisks."""

    def count(self, text: str) -> int:
        return counting.highlights(text)


@dataclass(frozen=True)
class CapitalWords(Counted):
    """Number of words in CAPITALS alone."""

    def count(self, text: str) -> int:
        return counting.capital_words(text)


@dataclass(frozen=True)
class Sections(Counted):
    """Number of sections that `marker` and a number begin: "Section 1"."""

    marker: str = "Section"

    def __post_init__(self) -> None:
        Counted.__post_init__(self)
        _not_blank(self.marker, "marker")

    def count(self, text: str) -> int:
        return counting.sections(text, self.marker.strip())


@dataclass(frozen=True, kw_only=True)
class Keyword(Counted):
    """How often a word stands in the answer, in any case. `whole`: not as part of a longer word."""

    word: str
    whole: bool = True

    def __post_init__(self) -> None:
        Counted.__post_init__(self)
        _not_blank(self.word, "word")

    def count(self, text: str) -> int:
        return counting.occurrences(text, self.word.strip(), whole=self.whole)


@dataclass(frozen=True, kw_only=True)
class Letter(Counted):
    """How often a letter (or any one character) stands in the answer, in any case."""

    letter: str

    def __post_init__(self) -> None:
        Counted.__post_init__(self)
        if len(self.letter) != 1:
            raise ValueError(f"letter must be one character, got {self.letter!r}")

    def count(self, text: str) -> int:
        return text.casefold().count(self.letter.casefold())


# ------------------------------------------------------------------------------------------------------- words


@dataclass(frozen=True)
class Contains:
    """All of these words stand in the answer, in any case. `whole`: not as part of a longer word."""

    words: list[str]
    whole: bool = True

    def __post_init__(self) -> None:
        _some(self.words, "words")

    def __call__(self, text: str) -> bool:
        return all(counting.occurrences(text, word.strip(), whole=self.whole) for word in self.words)


@dataclass(frozen=True)
class Excludes:
    """None of these words stands in the answer, in any case."""

    words: list[str]
    whole: bool = True

    def __post_init__(self) -> None:
        _some(self.words, "words")

    def __call__(self, text: str) -> bool:
        return not any(counting.occurrences(text, word.strip(), whole=self.whole) for word in self.words)


@dataclass(frozen=True)
class StartsWith:
    """The answer begins with one of these texts, in any case."""

    text: str | list[str]

    def __post_init__(self) -> None:
        _some(_listed(self.text), "text")

    def __call__(self, text: str) -> bool:
        begins = text.strip().casefold()
        return any(begins.startswith(start.strip().casefold()) for start in _listed(self.text))


@dataclass(frozen=True)
class EndsWith:
    """The answer ends with one of these texts, in any case; a quotation mark may stand behind it."""

    text: str | list[str]

    def __post_init__(self) -> None:
        _some(_listed(self.text), "text")

    def __call__(self, text: str) -> bool:
        ends = text.strip().strip('"').casefold()
        return any(ends.endswith(end.strip().casefold()) for end in _listed(self.text))


@dataclass(frozen=True)
class OneOf:
    """One of these answers stands in the text, word for word."""

    answers: list[str]

    def __post_init__(self) -> None:
        _some(self.answers, "answers")

    def __call__(self, text: str) -> bool:
        return any(answer in text for answer in self.answers)


@dataclass(frozen=True)
class ParagraphStart:
    """Paragraph number `paragraph` (from 1) begins with `word`; with `paragraphs` there are exactly so many. Paragraphs
    are parted by blank lines."""

    paragraph: int
    word: str
    paragraphs: int | None = None

    def __post_init__(self) -> None:
        _not_blank(self.word, "word")
        if self.paragraph < 1 or (self.paragraphs is not None and self.paragraphs < self.paragraph):
            raise ValueError("paragraph must be 1 or more, and not over paragraphs")

    def __call__(self, text: str) -> bool:
        parts = counting.paragraphs(text)
        if len(parts) < self.paragraph or self.paragraphs not in (None, len(parts)):
            return False
        first = parts[self.paragraph - 1].split()[0].strip("\"'“”‘’«»*_([{<.,;:!?…")
        return first.casefold() == self.word.strip().casefold()


# ------------------------------------------------------------------------------------------------------- form


@dataclass(frozen=True)
class Uppercase:
    """No lower-case letter; with `language` also in that language."""

    language: str | None = None

    def __post_init__(self) -> None:
        _language(self.language)

    def __call__(self, text: str) -> bool:
        return text.isupper() and (self.language is None or languages.in_language(text, self.language))


@dataclass(frozen=True)
class Lowercase:
    """No capital letter; with `language` also in that language."""

    language: str | None = None

    def __post_init__(self) -> None:
        _language(self.language)

    def __call__(self, text: str) -> bool:
        return text.islower() and (self.language is None or languages.in_language(text, self.language))


@dataclass(frozen=True)
class NoCommas:
    """No comma."""

    def __call__(self, text: str) -> bool:
        return "," not in text


@dataclass(frozen=True)
class Json:
    """The whole answer is JSON; a ``` fence may stand around it."""

    def __call__(self, text: str) -> bool:
        try:
            json.loads(counting.without_fence(text).strip())
        except (ValueError, RecursionError):
            return False
        return True


@dataclass(frozen=True)
class Title:
    """A <<title>> in double angular brackets."""

    def __call__(self, text: str) -> bool:
        return counting.titles(text) > 0


@dataclass(frozen=True)
class TwoResponses:
    """Two different responses with `separator` between them, and nowhere else but at the ends."""

    separator: str = "******"

    def __post_init__(self) -> None:
        _not_blank(self.separator, "separator")

    def __call__(self, text: str) -> bool:
        parts = [part.strip() for part in text.split(self.separator)]
        inner = parts[1:-1]
        if not all(inner):
            return False
        said = [part for part in parts if part]
        return len(said) == 2 and said[0] != said[1]


@dataclass(frozen=True)
class Language:
    """The answer is in a language (ISO 639-1 code), told by its letters and small words."""

    language: str

    def __post_init__(self) -> None:
        _language(self.language)

    def __call__(self, text: str) -> bool:
        return languages.in_language(text, self.language)


@dataclass(frozen=True)
class Script:
    """More than `share` of the letters are of a script: Latin, Cyrillic, …; with share 1 all of them."""

    script: str
    share: float = languages.MAJORITY

    def __post_init__(self) -> None:
        if self.script not in languages.SCRIPTS:
            raise ValueError(f"no script is named {self.script!r}{_near(self.script, languages.SCRIPTS)}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share:g}")

    def __call__(self, text: str) -> bool:
        return languages.in_script(text, self.script, self.share)


@dataclass(frozen=True)
class Postscript:
    """A postscript: `marker` stands in the answer, in any case and with or without spaces inside (P. S.)."""

    marker: str = "P.S."

    def __post_init__(self) -> None:
        _not_blank(self.marker, "marker")

    def __call__(self, text: str) -> bool:
        letters = [re.escape(letter) for letter in self.marker.strip() if not letter.isspace()]
        return re.search(r"(?<!\w)" + r"\s?".join(letters), text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Quoted:
    """The whole answer stands in double quotation marks."""

    def __call__(self, text: str) -> bool:
        body = text.strip()
        return len(body) > 1 and body[0] == '"' and body[-1] == '"'


@dataclass(frozen=True)
class RepeatsPrompt:
    """The answer begins with this text, in any case: the request, repeated word for word."""

    prompt: str

    def __post_init__(self) -> None:
        _not_blank(self.prompt, "prompt")

    def __call__(self, text: str) -> bool:
        return text.strip().casefold().startswith(self.prompt.strip().casefold())


KINDS: dict[str, type[Any]] = {
    "words": Words,
    "sentences": Sentences,
    "paragraphs": Paragraphs,
    "characters": Characters,
    "paragraph-start": ParagraphStart,
    "contains": Contains,
    "excludes": Excludes,
    "keyword": Keyword,
    "letter": Letter,
    "starts-with": StartsWith,
    "ends-with": EndsWith,
    "one-of": OneOf,
    "uppercase": Uppercase,
    "lowercase": Lowercase,
    "capital-words": CapitalWords,
    "no-commas": NoCommas,
    "json": Json,
    "bullets": Bullets,
    "title": Title,
    "sections": Sections,
    "highlights": Highlights,
    "placeholders": Placeholders,
    "postscript": Postscript,
    "quoted": Quoted,
    "two-responses": TwoResponses,
    "repeats-prompt": RepeatsPrompt,
    "language": Language,
    "script": Script,
}
"""Name in the data → its rule."""


def make_constraint(kind: Any, args: Mapping[str, Any]) -> Constraint:
    """A constraint, its arguments checked. Arguments that are None are left out: a table has a column for each.

    Raises:
        ValueError: an unknown kind or argument, or a value that is none; says what is right.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"no constraint is named {_short(kind)}{_near(str(kind), KINDS)}")
    given = {name: value for name, value in args.items() if value is not None}
    known = [field.name for field in dataclasses.fields(KINDS[kind])]
    for name in given:
        if name not in known:
            raise ValueError(f"{kind} has no argument {name!r}{_near(name, known) if known else '; it takes none'}")
    try:
        return Constraint(kind, given, TypeAdapter(KINDS[kind]).validate_python(given))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        said = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{kind}{', ' + field if field else ''}: {said}") from None


def read_constraint(raw: Any) -> Constraint:
    """A constraint of a row: {"kind": …, argument: value, …}. Raises ValueError as `make_constraint` does."""
    if not isinstance(raw, Mapping) or "kind" not in raw:
        raise ValueError(
            f'a constraint is an object with a kind ({{"kind": "words", "at_most": 50}}), not {_short(raw)}'
        )
    return make_constraint(raw["kind"], {name: value for name, value in raw.items() if name != "kind"})


def _not_blank(text: str, field: str) -> None:
    if not text.strip():
        raise ValueError(f"{field} is empty")


def _some(texts: list[str], field: str) -> None:
    if not texts:
        raise ValueError(f"{field} is empty")
    for text in texts:
        _not_blank(text, field)


def _listed(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else text


def _language(code: str | None) -> None:
    if code is not None and code not in languages.LANGUAGES:
        known = ", ".join(languages.LANGUAGES)
        raise ValueError(f"the language {code!r} can't be told by letters and small words; known: {known}")


def _near(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(str(text).split())
    return text if len(text) <= 60 else text[:59] + "…"
