"""Contests to read: well-formed ones, and a second, independent description of what well-formed means."""

from __future__ import annotations

import re
from functools import cache

from preftune.competition import Construct
from preftune.config import CompetitionConfig

PKV = Construct.of()
COURT = Construct.of(CompetitionConfig(style="court"))
STRATEGIES = Construct.of(CompetitionConfig(style="strategies"))
EVERY = {"pirate-knight-viking": PKV, "court": COURT, "strategies": STRATEGIES}

SAID = {"pirate": "Arrr, 7 and 8 be 15.", "knight": "Hark, 15 it is.", "viking": "Odin says 15."}


def contest(
    construct: Construct = PKV, winner: str | None = None, answer: str = "The answer is 15.", **said: str
) -> str:
    """A well-formed contest; of a persona that is not given, some words."""
    texts = {name: said.get(name, SAID.get(name, f"The {name} finds 15.")) for name in construct.names}
    return construct.render(texts, "All are right.", construct.names[0] if winner is None else winner, answer)


@cache
def _any_case(letter: str) -> str:
    """All characters that case folding makes the same: the Kelvin sign is a k, a dotless i is no i."""
    same = (chr(code) for code in range(0x20000) if chr(code).casefold() == letter.casefold())
    return f"[{''.join(map(re.escape, same))}]"


def strict_pattern(construct: Construct) -> re.Pattern[str]:
    """The grammar of a strict contest as one regular expression, to `fullmatch`.

    Between the tags white space alone; in every element, and behind the contest, something else; no tag anywhere else,
    in whatever spelling.
    """
    names = "|".join("".join(map(_any_case, name)) for name in construct.elements)
    other = rf"(?:(?!<\s*/?\s*(?:{names})(?:\s[^<>]*)?\s*/?>).)*"

    def element(name: str) -> str:
        return rf"<{name}>(?!\s*</{name}>){other}</{name}>\s*"

    personas = "".join(element(name) for name in construct.names)
    judge = rf"<{construct.result}>{other}{element(construct.winner)}{other}</{construct.result}>"
    return re.compile(rf"\s*<{construct.root}>\s*{personas}{judge}\s*</{construct.root}>(?=.*\S){other}", re.DOTALL)
