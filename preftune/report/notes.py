"""What rewards, judges and critics wrote about a completion, made ready for a page. All of it is untrusted text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.report.read import Sample, as_number
from preftune.report.words import number

FOLD = 600
"""Characters of a text from which on it is folded."""
LONGEST = 20_000
SHORT = 40
"""Characters of a text that still is a chip."""
GMPO = ("explanation", "reward", "truth", "baseline", "advantage", "temperature", "weight", "joint")
"""Names that GMPO writes (preftune/train/gmpo.py, preftune/rewards/critic.py)."""
MOST = 20
"""Notes shown of one completion."""


@dataclass(frozen=True, slots=True)
class Note:
    """A text about a completion."""

    heading: str
    text: str

    @property
    def is_long(self) -> bool:
        return len(self.text) > FOLD


@dataclass(frozen=True, slots=True)
class Notes:
    """Texts, and short values as (name, value)."""

    texts: tuple[Note, ...]
    chips: tuple[tuple[str, str], ...]


def notes_of(sample: Sample) -> Notes:
    """A sample's notes: a judge's reply and a critic's explanation as texts, short values as chips."""
    texts: list[Note] = []
    chips: list[tuple[str, str]] = []
    for name, value in list(sample.notes.items())[:MOST]:
        if name == "judge" and isinstance(value, Mapping):
            _judge(value, texts, chips)
        elif name == "joint" and isinstance(value, Mapping):
            texts.append(Note("The critic on all answers together", joint(value)))
        elif name in ("reward", "truth") and name in GMPO and "explanation" in sample.notes:
            continue  # the breakdown has them
        elif name == "explanation" and isinstance(value, str):
            texts.append(Note("Critic", cut(value) or "[it wrote nothing]"))
        else:
            _other(str(name), value, texts, chips)
    return Notes(tuple(note for note in texts if note.text), tuple(chips))


def _judge(value: Mapping[str, Any], texts: list[Note], chips: list[tuple[str, str]]) -> None:
    seen, said = value.get("seen_as"), value.get("says")
    heading = "Judge" if not seen or seen == "answer" else f"Judge (this is {short(seen)})"
    texts.append(Note(heading, cut(str(said or ""))))
    if (score := as_number(value.get("score"))) is not None:
        chips.append(("judge's score", number(score)))
    if (votes := as_number(value.get("votes"))) is not None and votes > 1:
        chips.append(("votes", number(votes)))
    if failed := as_number(value.get("failed")):
        chips.append(("without a verdict", number(failed)))


def _other(name: str, value: Any, texts: list[Note], chips: list[tuple[str, str]]) -> None:
    if value is None or value == "":
        return
    if isinstance(value, bool):
        chips.append((short(name), "yes" if value else "no"))
    elif (found := as_number(value)) is not None:
        chips.append((short(name), number(found)))
    elif isinstance(value, str) and len(value) <= SHORT and "\n" not in value:
        chips.append((short(name), value))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str) and len(text) > 2 * SHORT:
            text = json.dumps(value, ensure_ascii=False, indent=1)
        texts.append(Note(short(name), cut(text)))


def joint(value: Mapping[str, Any]) -> str:
    """What a critic wrote about all answers to a prompt at once: its own numbers, then its explanation."""
    numbers = [(name, finite(value.get(name))) for name in ("reward", "baseline", "temperature")]
    said = ", ".join(f"{name} {number(found)}" for name, found in numbers if found is not None)
    return cut("\n".join(part for part in (said, str(value.get("explanation") or "")) if part))


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    found = as_number(value)
    return found if found is not None and math.isfinite(found) else None


def short(text: object) -> str:
    """One line for a heading."""
    line = " ".join(str(text).split())
    return line if len(line) <= SHORT else line[: SHORT - 1] + "…"


def cut(text: str) -> str:
    """At most LONGEST characters, and how many were left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n[{len(text) - LONGEST:,} more characters]"
