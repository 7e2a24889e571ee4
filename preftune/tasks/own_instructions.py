"""The built-in instructions: requests in our own words, each with one to three constraints. Always the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from preftune.data.sources import Row

SIZE = 80
SEED = "preftune/instructions/1"
"""Another number makes another set: results of the two can't be compared."""

REQUESTS = (
    "Write a short description of {thing}.",
    "Explain to a child what {thing} is good for.",
    "Give advice to somebody who has never seen {thing}.",
    "Tell a small story in which {thing} plays a part.",
    "Write a note that you leave on the kitchen table about {thing}.",
    "Say why {thing} is better than its reputation.",
    "Describe {thing} as if you had lost it yesterday.",
    "Write an advertisement for {thing}.",
)
THINGS = (
    "an umbrella", "a night train", "a wooden spoon", "a public library", "a lighthouse", "an old bicycle", "a garden",
    "a cup of tea", "a paper map", "a thick blanket", "a market in the morning", "a ladder", "a pair of rubber boots",
    "a bridge over a river", "a letter from a friend", "a bakery", "an alarm clock", "a school bus", "a snow shovel",
    "a jar of honey",
)  # fmt: skip
WORDS = (
    "morning", "quiet", "window", "friend", "colour", "reason", "winter", "honest", "corner", "simple", "bright",
    "yesterday", "water", "careful",
)  # fmt: skip
FORBIDDEN = ("very", "nice", "good", "really", "thing", "important", "perfect", "amazing")
ENDINGS = ("That is all there is to say.", "Is there anything else?", "Now you know it.", "Try it yourself.")
LANGUAGES = {"de": "German", "ru": "Russian", "fr": "French", "es": "Spanish"}

Made: TypeAlias = tuple[str, dict[str, Any]]
"""What the request says, and the constraint that checks it."""


@dataclass(frozen=True, slots=True)
class _Template:
    """Makes one constraint. Of each family a row has one at most; `alone`: it goes with no other family but `words`."""

    family: str
    make: Callable[[random.Random], Made]
    alone: bool = False


def _words(rng: random.Random) -> Made:
    count = rng.choice((30, 50, 80, 120))
    if rng.random() < 0.5:
        return f"Use at most {count} words.", {"kind": "words", "at_most": count}
    return f"Use at least {count} words.", {"kind": "words", "at_least": count}


def _sentences(rng: random.Random) -> Made:
    count = rng.randint(2, 6)
    return f"Write exactly {count} sentences.", {"kind": "sentences", "at_least": count, "at_most": count}


def _paragraphs(rng: random.Random) -> Made:
    count = rng.randint(2, 4)
    text = f"Write {count} paragraphs, with a blank line between two of them."
    return text, {"kind": "paragraphs", "at_least": count, "at_most": count}


def _contains(rng: random.Random) -> Made:
    one, two = rng.sample(WORDS, 2)
    return f'The words "{one}" and "{two}" must occur.', {"kind": "contains", "words": [one, two]}


def _excludes(rng: random.Random) -> Made:
    one, two = rng.sample(FORBIDDEN, 2)
    return f'Do without the words "{one}" and "{two}".', {"kind": "excludes", "words": [one, two]}


def _keyword(rng: random.Random) -> Made:
    word, count = rng.choice(WORDS), rng.randint(2, 4)
    return f'Use the word "{word}" at least {count} times.', {"kind": "keyword", "word": word, "at_least": count}


def _letter(rng: random.Random) -> Made:
    letter, count = rng.choice("bkmvw"), rng.randint(3, 6)
    text = f'The letter "{letter}" must occur at least {count} times.'
    return text, {"kind": "letter", "letter": letter, "at_least": count}


def _bullets(rng: random.Random) -> Made:
    count = rng.randint(3, 5)
    text = f"Write it as exactly {count} bullet points, each on a line that begins with an asterisk."
    return text, {"kind": "bullets", "at_least": count, "at_most": count}


def _title(rng: random.Random) -> Made:
    return "Put a title in double angular brackets before it, such as <<A title>>.", {"kind": "title"}


def _placeholders(rng: random.Random) -> Made:
    count = rng.randint(2, 3)
    text = f"Leave at least {count} placeholders in square brackets, such as [name]."
    return text, {"kind": "placeholders", "at_least": count}


def _highlights(rng: random.Random) -> Made:
    count = rng.randint(1, 3)
    text = f"Highlight at least {count} part{'s' * (count > 1)} between asterisks, like *this*."
    return text, {"kind": "highlights", "at_least": count}


def _sections(rng: random.Random) -> Made:
    text = 'Write two sections, and begin them with "Part 1" and "Part 2".'
    return text, {"kind": "sections", "marker": "Part", "at_least": 2, "at_most": 2}


def _two(rng: random.Random) -> Made:
    return "Give two different answers, with six asterisks (******) between them.", {"kind": "two-responses"}


def _json(rng: random.Random) -> Made:
    return "Answer with JSON alone.", {"kind": "json"}


def _ends(rng: random.Random) -> Made:
    phrase = rng.choice(ENDINGS)
    return f'End with this sentence and nothing behind it: "{phrase}"', {"kind": "ends-with", "text": phrase}


def _postscript(rng: random.Random) -> Made:
    return 'Add a postscript that begins with "P.S." at the end.', {"kind": "postscript"}


def _quoted(rng: random.Random) -> Made:
    return "Put the whole answer into double quotation marks.", {"kind": "quoted"}


def _upper(rng: random.Random) -> Made:
    return "Write in capital letters alone.", {"kind": "uppercase"}


def _lower(rng: random.Random) -> Made:
    return "Use no capital letters at all.", {"kind": "lowercase"}


def _capitals(rng: random.Random) -> Made:
    count = rng.randint(2, 4)
    return f"Write at least {count} words in CAPITALS.", {"kind": "capital-words", "at_least": count}


def _no_commas(rng: random.Random) -> Made:
    return "Do not use any comma.", {"kind": "no-commas"}


def _language(rng: random.Random) -> Made:
    code = rng.choice(sorted(LANGUAGES))
    return f"Answer in {LANGUAGES[code]}.", {"kind": "language", "language": code}


TEMPLATES = (
    _Template("length", _words), _Template("length", _sentences), _Template("length", _paragraphs),
    _Template("words", _contains), _Template("words", _excludes), _Template("words", _keyword),
    _Template("words", _letter), _Template("form", _bullets), _Template("form", _title),
    _Template("form", _placeholders), _Template("form", _highlights), _Template("form", _sections),
    _Template("form", _two, alone=True), _Template("form", _json, alone=True), _Template("end", _ends),
    _Template("end", _postscript), _Template("end", _quoted), _Template("case", _lower),
    _Template("case", _upper), _Template("case", _capitals), _Template("marks", _no_commas),
    _Template("language", _language, alone=True),
)  # fmt: skip


@cache
def own_instructions() -> tuple[Row, ...]:
    """The rows, with `where` as `builtin:instructions[N]`."""
    rng = random.Random(SEED)
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < SIZE:
        request = rng.choice(REQUESTS).format(thing=rng.choice(THINGS))
        # Each kind in turn first, so that all of them occur as often.
        chosen = [TEMPLATES[len(rows) % len(TEMPLATES)]]
        for other in rng.sample(TEMPLATES, len(TEMPLATES)):
            if len(chosen) < 1 + len(rows) % 3 and _fits(other, chosen):
                chosen.append(other)
        made = [template.make(rng) for template in chosen]
        prompt = " ".join([request, *(text for text, _ in made)])
        if prompt not in seen:
            seen.add(prompt)
            values = {"prompt": prompt, "constraints": [constraint for _, constraint in made]}
            rows.append(Row(f"builtin:instructions[{len(rows)}]", values))
    return tuple(rows)


def _fits(other: _Template, chosen: list[_Template]) -> bool:
    """Whether a further constraint can be kept to together with those chosen."""
    together = [*chosen, other]
    families = [template.family for template in together]
    if len(set(families)) < len(families):
        return False
    if any(template.alone for template in together):
        # Words of ours are English, and JSON has a form of its own.
        return {*families} <= {"form", "words"} and all(t.make is not _language for t in together)
    # Sentences to end with, markers and titles have capitals and small letters.
    return not ({"case", "end"} <= {*families} or {"case", "form"} <= {*families})
