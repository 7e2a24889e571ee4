"""What a judge goes by: two built-in rubrics, or the user's own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import UsageError

FILES = (".md", ".txt")


@dataclass(frozen=True, slots=True)
class Rubric:
    """What counts, and what the scores mean.

    Attributes:
        criteria: all modes show it.
        levels: what the scores mean; only pointwise shows it. Empty for a rubric of the user's own, whose text says so.
        low, high: ends of the scale of whole numbers; pointwise alone.
    """

    criteria: str
    levels: str
    low: int
    high: int


RUBRICS: dict[str, Rubric] = {
    "quality": Rubric(
        criteria="""\
- Right: facts, reasoning and results are correct; a wrong result is the gravest fault. Check them yourself.
- To the point: it does what was asked, all of it, within the limits that were set.
- Clear: it can be followed, and says neither less nor more than is useful. Length by itself is no merit.
- Harmless: it does no harm, and does not refuse what is harmless.""",
        levels="""\
10: right, complete and clear; nothing to mend
8-9: right and complete; small blemishes of wording or order
6-7: right in the main; something of weight is missing or unclear
4-5: partly right; an error or a gap that misleads
2-3: mostly wrong, or mostly beside the point
1: almost nothing of use
0: nothing of use: empty, unintelligible, beside the point or harmful""",
        low=0,
        high=10,
    ),
    "olympiad": Rubric(
        criteria="""\
- Only what is proved counts. A right final answer without a proof earns next to nothing where a proof is asked for.
- Read every step: does it follow, are all cases treated, are the theorems that it cites true and applicable?
- Any complete and correct way counts in full, whether or not it is the usual one.
- A gap that the same idea closes at once is small; a step that is as hard as the problem itself is not a gap but a
  missing proof.
- Guesses, examples and restatements of the problem are no progress.""",
        levels="""\
7: complete and correct
6: complete but for a small slip or omission that is mended at once
5: complete idea with a gap of some weight, or one minor case missing
3-4: a decisive step is proved, but much of the proof is missing
2: real progress: a useful lemma is proved, or an important case solved
1: a first step in a right direction that is not obvious
0: no progress towards a proof""",
        low=0,
        high=7,
    ),
}


def rubric_problem(value: str) -> str:
    """What is wrong with the recipe's `rubric`, "" when nothing is. Reads no file."""
    if value in RUBRICS or value.endswith(FILES):
        return ""
    if not value.strip():
        return "rubric is empty"
    if len(value.split()) > 1:
        return ""
    near = difflib.get_close_matches(value, RUBRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the built-in ones are {', '.join(RUBRICS)}."
    return f"rubric {value!r} is no built-in one; {hint} Your own is a .md or .txt file, or a text of several words"


def read_rubric(value: str, scale: tuple[int, int] | None) -> Rubric:
    """The rubric that the settings name. Raises UsageError for a file that can't be read."""
    if value in RUBRICS:
        return RUBRICS[value]
    text = value
    if value.endswith(FILES) and len(value.split("\n")) == 1:
        try:
            text = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(f"rubric: can't read the file {value}: {why}") from None
        if not text.strip():
            raise UsageError(f"rubric: the file {value} is empty")
    low, high = scale or (0, 1)
    return Rubric(text.strip(), "", low, high)
