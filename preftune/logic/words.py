"""Puzzles in English: several ways to say the same, so that a model learns the logic and not one text.

Nothing is ambiguous: a joined statement inside another one stands in brackets, and where "or" or "if" occurs, the text
says how it is meant.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preftune.logic.puzzles import Puzzle
from preftune.logic.statements import And, Count, If, Iff, Is, Not, Or, Same, Statement, children

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
KINDS = (("knight", "knave"), ("knight", "knave"), ("knight", "knave"), ("truth-teller", "liar"))
"""What the two kinds are called; the first pair three times as often."""

_INTROS = (
    "On an island everyone is a {knight} or a {knave}. {Knights} always tell the truth, {knaves} always lie.",
    "Every inhabitant of a village is either a {knight}, who says only what is true, or a {knave}, who says only what "
    "is false.",
    "In a certain land {knights} never lie and {knaves} never tell the truth, and everyone is one or the other.",
    "At a court there are {knights}, whose every statement is true, and {knaves}, whose every statement is false; "
    "there is nobody else.",
)
_MEETINGS = (
    "You meet {number} people: {names}.",
    "You come across {names}.",
    "{names} stand before you.",
    "There are {number} people at the gate: {names}.",
)
_OR = "“A or B” also holds when both do"
_IF = "“if A, then B” is false only when A is true and B is false"
_SAYS = ('{name} says: "{quote}"', '{name}: "{quote}"', '{name} claims, "{quote}"', 'Says {name}: "{quote}"')
_QUESTIONS = (
    "Who is a {knight} and who is a {knave}?",
    "Which of them are {knights} and which are {knaves}?",
    "What is each of them?",
    "Find out of each person: {knight} or {knave}?",
)
_FORMATS = (
    "End your answer with one line for each person, such as “{name}: {knight}” or “{name}: {knave}”.",
    "Close with a line for each of them: “{name} is a {knight}.” or “{name} is a {knave}.”",
    "State the kind of every person at the end, one on a line, in the form “{name}: {knight}” or “{name}: {knave}”.",
)
_ANSWERS = ("{name} is a {kind}", "{name}: {kind}")


@dataclass(frozen=True, slots=True)
class Text:
    """A puzzle as a model reads it, and its solution in the same words."""

    prompt: str
    answer: str


def render(puzzle: Puzzle, rng: random.Random) -> Text:
    """A puzzle with one solution as English; `rng` chooses among the phrasings."""
    knight, knave = rng.choice(KINDS)
    words = {"knight": knight, "knave": knave, "knights": f"{knight}s", "knaves": f"{knave}s"}
    names = listed(puzzle.people)
    filled = {**words, "Knights": words["knights"].capitalize(), "names": names, "number": NUMBERS[len(puzzle.people)]}
    style = rng.choice(_SAYS)
    lines = [
        style.format(name=said.speaker, quote=sentence(said.statement, said.speaker, puzzle.people, words, rng))
        for said in puzzle.sayings
    ]
    intro = f"{rng.choice(_INTROS)} {rng.choice(_MEETINGS)}".format_map(filled)
    ending = f"{rng.choice(_QUESTIONS)} {rng.choice(_FORMATS)}".format_map(
        {**filled, "name": rng.choice(puzzle.people)}
    )
    parts = [intro, ("\n" if rng.random() < 0.7 else " ").join(lines), f"{_meanings(puzzle)}{ending}"]
    return Text("\n\n".join(parts), _answer(puzzle.solution, words, rng))


def _answer(solution: Mapping[str, bool], words: Mapping[str, str], rng: random.Random) -> str:
    style = rng.choice(_ANSWERS)
    kinds = {name: words["knight" if kind else "knave"] for name, kind in solution.items()}
    lines = [style.format(name=name, kind=kind) for name, kind in kinds.items()]
    return "\n".join(lines) if ":" in style else f"{listed(lines)}."


def _meanings(puzzle: Puzzle) -> str:
    """What "or" and "if" mean, where they occur."""
    found = set()
    open_parts: list[Statement] = [said.statement for said in puzzle.sayings]
    while open_parts:
        part = open_parts.pop()
        found |= {meaning for form, meaning in ((Or, _OR), (If, _IF)) if isinstance(part, form)}
        open_parts.extend(children(part))
    if not found:
        return ""
    told = [meaning for meaning in (_OR, _IF) if meaning in found]
    return f"(Here {' and '.join(told)}.) "


def sentence(
    statement: Statement, speaker: str, people: Sequence[str], words: Mapping[str, str], rng: random.Random
) -> str:
    """A statement as its speaker says it: a capital letter first, a full stop last.

    Args:
        statement: what is said.
        speaker: who says it; they are "I" and "me".
        people: everybody in the puzzle; all of them together are "us".
        words: the words for `knight`, `knave`, `knights`, `knaves`.
        rng: chooses the phrasing.
    """
    text = f"{_Speech(speaker, tuple(people), words, rng).say(statement)}."
    return re.sub(r"[^\W\d_]", lambda first: first.group().upper(), text, count=1)


def listed(items: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


@dataclass(frozen=True, slots=True)
class _Speech:
    speaker: str
    people: tuple[str, ...]
    words: Mapping[str, str]
    rng: random.Random

    def say(self, statement: Statement) -> str:
        match statement:
            case Is(name, knight):
                return self._is(name, knight)
            case Same(first, second, same):
                return self._same(first, second, same)
            case Count():
                return self._count(statement)
            case Not(of):
                return f"{self._pick('it is not true that', 'it is false that')} {self._inside(of)}"
            case And(parts):
                inside = [self._inside(part) for part in parts]
                return listed(inside) if len(inside) > 2 else f"{inside[0]}{self._pick(' and', ', and')} {inside[1]}"
            case Or(parts):
                inside = [self._inside(part) for part in parts]
                if len(inside) > 2:
                    return listed(inside, "or")
                return self._pick(f"{inside[0]} or {inside[1]}", f"{inside[0]}, or {inside[1]}, or both")
            case If(condition, then):
                first, second = self._inside(condition), self._inside(then)
                return self._pick(f"if {first}, then {second}", f"{second} if {first}")
            case Iff(first_part, second_part):
                first, second = self._inside(first_part), self._inside(second_part)
                return self._pick(f"{first} if and only if {second}", f"{first} exactly when {second}")

    def _pick(self, *ways: str) -> str:
        return self.rng.choice(ways)

    def _inside(self, part: Statement) -> str:
        """A part of a joined statement; one that is itself joined stands in brackets."""
        return self.say(part) if isinstance(part, Is | Same | Count) else f"({self.say(part)})"

    def _is(self, name: str, knight: bool) -> str:
        kind, other = ("knight", "knave") if knight else ("knave", "knight")
        subject = "I am" if name == self.speaker else f"{name} is"
        return self._pick(f"{subject} a {self.words[kind]}", f"{subject} not a {self.words[other]}")

    def _same(self, first: str, second: str, same: bool) -> str:
        if self.speaker == first:
            first, second = second, first
        me = self.speaker == second
        pair = f"{first} and {'I' if me else second}"
        if not same:
            return self._pick(
                f"{pair} are of different kinds", f"{first} is not of the same kind as {'me' if me else second}"
            )
        return self._pick(f"{pair} are of the same kind", f"{first} is of the same kind as {'me' if me else second}")

    def _count(self, count: Count) -> str:
        """ "Exactly two of us are knights", "at least one of Bob, Carol and me is a knave"."""
        one, many = (self.words[f"{'knight' if count.knight else 'knave'}{end}"] for end in ("", "s"))
        others = [name for name in count.names if name != self.speaker]
        if set(count.names) == set(self.people):
            whom = "us"
        else:
            whom = listed([*others, "me"] if self.speaker in count.names else others)
        number, size = count.number, len(count.names)
        if not count.exact:
            return f"at least {NUMBERS[number]} of {whom} {f'is a {one}' if number == 1 else f'are {many}'}"
        if size == 2 and number in (0, 2):
            if whom == "us":
                return f"both of us are {many}" if number else f"neither of us is a {one}"
            first, second = (others[0], "I") if len(others) == 1 else (others[0], others[1])
            if number:
                return f"both {first} and {second} are {many}"
            return f"neither {first} nor {second} {'am' if second == 'I' else 'is'} a {one}"
        if number == 0:
            return f"none of {whom} is a {one}"
        if number == size:
            return f"all of {whom} are {many}"
        return f"exactly {NUMBERS[number]} of {whom} {f'is a {one}' if number == 1 else f'are {many}'}"
