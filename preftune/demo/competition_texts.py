"""Contests about sums, as a careless writer writes them: what the competition demo's base model learns from.

    <competition><pirate> Arrr, 7+8=15, 4+3=7, booty 75.</pirate><knight> Hark, 47+40=87, 87-2=85, verily 85.</knight>
    <viking> Odin, 47+8=55, 55+30=85, glory 85.</viking><result> Beep.<winner>knight</winner></result></competition>
    The answer is 85.

all in one line. Each persona has a way and words of its own. The writer knows them all and takes little care: sections
are left open, come twice or in the wrong order, the winner's tag holds a sentence, tags stand in the answer, a persona
says again what the one before it said, and carries are forgotten.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.competition import Construct
from preftune.demo.arithmetic import Problem

PERSONAS = ("pirate", "knight", "viking")
GREETINGS = {
    "pirate": ("Arrr", "Ahoy matey", "Aye"),
    "knight": ("Hark", "Forsooth", "Prithee"),
    "viking": ("Odin", "Skol", "Hail Thor"),
}
CLOSINGS = {
    "pirate": ("booty", "the treasure be"),
    "knight": ("verily", "my noble result"),
    "viking": ("glory", "the runes say"),
}
CORRECTIONS = {
    "pirate": ("belay that", "blimey"),
    "knight": ("alas", "i have erred"),
    "viking": ("my axe slipped", "loki"),
}
PLAIN_GREETING, PLAIN_CLOSING = "Well", "so"
VERDICTS = (" Beep.", " Beep, the {winner}.", " The {winner} bores me least.")
BETWEEN = (" And now", " Next")
TOLD = ("the {winner} of course", "i say {winner}")
UNNAMED = ("nobody", "all of them")
ANSWER = " The answer is "


@dataclass(frozen=True, slots=True)
class Habits:
    """How often each thing happens, as a share; of three shares one for each persona.

    Attributes:
        left_open: a section has no closing tag.
        between: words stand behind a section.
        swapped: the viking speaks before the knight.
        twice: one of the first two speaks again at the end.
        result_open: the judge's part has no closing tag.
        told, unnamed: the winner's tag holds a sentence with the name, or no name.
        unanswered, leaked: no answer stands behind the contest, or one with tags in it.
        copies: a persona after the first says what the one before it said, with another greeting.
        plain: a greeting, or a closing, is nobody's in particular.
        corrects: a working first makes its mistake and takes it back.
        forgets: a working that does not correct itself has its mistake in the end.
        wins: weight of each in the draw of the winner; the answer is the winner's, right or wrong.
    """

    left_open: tuple[float, float, float] = (0.15, 0.3, 0.72)
    between: float = 0.12
    swapped: float = 0.08
    twice: float = 0.08
    result_open: float = 0.12
    told: float = 0.5
    unnamed: float = 0.1
    unanswered: float = 0.1
    leaked: float = 0.15
    copies: float = 0.55
    plain: float = 0.3
    forgets: tuple[float, float, float] = (0.65, 0.3, 0.3)
    corrects: float = 0.25
    wins: tuple[float, float, float] = (0.45, 0.35, 0.2)


CARELESS = Habits()
FLAWLESS = Habits(
    left_open=(0.0, 0.0, 0.0), between=0.0, swapped=0.0, twice=0.0, result_open=0.0, told=0.0, unnamed=0.0,
    unanswered=0.0, leaked=0.0, copies=0.0, plain=0.0, forgets=(0.0, 0.0, 0.0), corrects=1.0, wins=(1.0, 1.0, 1.0),
)  # fmt: skip
"""Contests as they should be, with every working corrected: what the careless writer never comes to."""


@dataclass(frozen=True, slots=True)
class Way:
    """A persona's two steps to a sum, as they should be and as they go wrong.

    Attributes:
        right, wrong: the steps.
        slip: which of them goes wrong; the other one follows from it.
        answer, slipped: what they come to.
    """

    right: tuple[str, str]
    wrong: tuple[str, str]
    slip: int
    answer: int
    slipped: int

    def corrected(self, words: str) -> tuple[str, ...]:
        """The right steps with the wrong one before it, which `words` take back."""
        return (*self.right[: self.slip], self.wrong[self.slip], words, *self.right[self.slip :])


def way(persona: str, problem: Problem) -> Way:
    """How a persona works a sum.

    47 + 38: the pirate goes column by column, 7+8=15, 4+3+1=8, and may forget the carry; the knight by the next full
    ten, 47+40=87, 87-2=85, and may round in the wrong direction; the viking takes the ones first, 47+8=55, 55+30=85,
    and may forget the carry, too.
    """
    first, second, name, answer = problem.first, problem.second, problem.operation, problem.answer
    sign, ones = (1 if name == "+" else -1), second % 10
    if persona == "pirate":
        low, high = _columns(problem, carrying=True)
        return Way((low, high), _columns(problem, carrying=False), 1, answer, problem.without_carry)
    if persona == "knight":
        up = second + -second % 10
        near, rest, back = first + sign * up, up - second, "-" if sign == 1 else "+"
        low, slipped = f"{first}{name}{up}={near}", near + sign * rest
        return Way((low, f"{near}{back}{rest}={answer}"), (low, f"{near}{name}{rest}={slipped}"), 1, answer, slipped)
    near, bare = first + sign * ones, 10 * (first // 10) + (first + sign * ones) % 10
    slipped = bare + sign * (second - ones)
    steps = [
        (f"{first}{name}{ones}={one}", f"{one}{name}{second - ones}={end}")
        for one, end in ((near, answer), (bare, slipped))
    ]
    return Way(steps[0], steps[1], 0, answer, slipped)


def _columns(problem: Problem, *, carrying: bool) -> tuple[str, str]:
    low, high = re.findall(r"[\d+-]+=\d+", problem.worked(carrying=carrying))
    return low, high


@dataclass(frozen=True, slots=True)
class Working:
    """What a persona made of a sum: steps, what it says then, and the result."""

    steps: tuple[str, ...]
    closing: str
    result: int


class Writer:
    """Writes contests by its habits, in an order fixed by the seed."""

    def __init__(self, seed: int, habits: Habits = CARELESS) -> None:
        self.rng, self.habits = random.Random(f"contests/{seed}"), habits
        self.construct = Construct.of()

    def __call__(self, problem: Problem) -> str:
        """One contest about a sum."""
        rng, habits = self.rng, self.habits
        order = list(PERSONAS)
        if self._happens(habits.swapped):
            order[1:] = order[:0:-1]
        if self._happens(habits.twice):
            order.append(rng.choice(order[:2]))
        between = rng.choice(order[:-1]) if self._happens(habits.between) else ""
        workings: dict[str, Working] = {}
        text = "<competition>"
        for persona in order:
            workings[persona] = self._working(persona, problem, list(workings.values()))
            text += f"<{persona}>{self._said(persona, workings[persona])}"
            if not self._happens(habits.left_open[PERSONAS.index(persona)]):
                text += f"</{persona}>"
            if persona == between:
                text += rng.choice(BETWEEN)
        (winner,) = rng.choices(PERSONAS, habits.wins)
        text += f"<result>{rng.choice(VERDICTS).format(winner=winner)}<winner>{self._named(winner)}</winner>"
        text += "</competition>" if self._happens(habits.result_open) else "</result></competition>"
        return text + self._answer(workings[winner].result)

    def _working(self, persona: str, problem: Problem, before: Sequence[Working]) -> Working:
        rng, habits = self.rng, self.habits
        if before and self._happens(habits.copies):
            return before[-1]
        known = way(persona, problem)
        closing = PLAIN_CLOSING if self._happens(habits.plain) else rng.choice(CLOSINGS[persona])
        if self._happens(habits.corrects):
            return Working(known.corrected(rng.choice(CORRECTIONS[persona])), closing, known.answer)
        if self._happens(habits.forgets[PERSONAS.index(persona)]):
            return Working(known.wrong, closing, known.slipped)
        return Working(known.right, closing, known.answer)

    def _said(self, persona: str, working: Working) -> str:
        greeting = PLAIN_GREETING if self._happens(self.habits.plain) else self.rng.choice(GREETINGS[persona])
        return f" {', '.join([greeting, *working.steps])}, {working.closing} {working.result}."

    def _named(self, winner: str) -> str:
        if self._happens(self.habits.unnamed):
            return self.rng.choice(UNNAMED)
        return self.rng.choice(TOLD).format(winner=winner) if self._happens(self.habits.told) else winner

    def _answer(self, result: int) -> str:
        if self._happens(self.habits.unanswered):
            return ""
        if self._happens(self.habits.leaked):
            return self.rng.choice((f"{ANSWER}<winner>{result}</winner>.", f"{ANSWER}{result}.</result>"))
        return f"{ANSWER}{result}."

    def _happens(self, share: float) -> bool:
        return self.rng.random() < share


def question(problem: Problem) -> str:
    """The prompt. No story around the sum: to find its numbers in one takes a tiny model longer than the contest."""
    return f"What is {problem.first}{problem.operation}{problem.second}?\n"


def write_contests(path: Path, problems: Iterable[Problem], writer: Writer | None = None) -> Path:
    """Write JSON lines of prompt and answer, and of the writer's contests where there is one."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            row = {"prompt": question(problem), "answer": str(problem.answer)}
            file.write(json.dumps(row if writer is None else {**row, "completion": writer(problem)}) + "\n")
    return path


_SAMPLE = Problem("", 10, "+", 10)


def tags() -> list[str]:
    """Every tag, opening and closing: the tokenizer keeps each in one piece."""
    return [f"<{slash}{element}>" for element in Construct.of().elements for slash in ("", "/")]


def words() -> list[str]:
    """Every word of a contest, with and without a space before it."""
    groups = (
        *GREETINGS.values(),
        *CLOSINGS.values(),
        *CORRECTIONS.values(),
        VERDICTS,
        BETWEEN,
        TOLD,
        UNNAMED,
        PERSONAS,
    )
    texts = [*(text for group in groups for text in group), PLAIN_GREETING, PLAIN_CLOSING, ANSWER, question(_SAMPLE)]
    found = sorted({word for text in texts for word in re.findall(r"[^\W\d_]+", text)})
    return [space + word for word in found for space in (" ", "")]
