"""The table of built-in rewards, and making one from a recipe's args."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from preftune.competition import Construct
from preftune.config import RewardConfig
from preftune.errors import UsageError
from preftune.rewards import (
    code,
    competition,
    competition_answer,
    competition_copies,
    competition_text,
    constraints,
    judge,
    learned,
    logic,
    math,
    pick,
    text,
)
from preftune.rewards.contest import ContestReward, PersonaReward

FROM_RECIPE = "construct"
"""Field that no args fill: the contest that the recipe's section `competition` describes."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in reward: `make` is a frozen dataclass whose fields are the recipe's args."""

    make: type[Any]
    summary: str

    @property
    def args(self) -> dict[str, str]:
        """Argument → its type and default, for help and docs."""
        out = {}
        for field in dataclasses.fields(self.make):
            if field.name == FROM_RECIPE:
                continue
            default = "required" if field.default is dataclasses.MISSING else f"default {field.default!r}"
            out[field.name] = f"{field.type}, {default}"
        return out


BUILTINS: dict[str, Builtin] = {
    "accuracy": Builtin(math.Accuracy, "1 when the final answer equals the answer column, as numbers or as text"),
    "code": Builtin(code.CodeReward, "share of the row's tests that the program passes, run in a sandbox"),
    "competition-answer": Builtin(
        competition_answer.Answer,
        "1 when the answer behind the contest is right, -1 when competition tags leak into it",
    ),
    "competition-copied": Builtin(competition_copies.Copied, "1 when a persona copies an earlier one: a measure"),
    "competition-length": Builtin(competition.Length, "0 to 1 by length, per persona or of the whole contest"),
    "competition-originality": Builtin(
        competition_copies.Originality, "0.5 for a working of its own, -0.5 for a copy of an earlier persona's"
    ),
    "competition-reflection": Builtin(competition_text.Reflection, "0 to 1 by words of checking, doubt and correction"),
    "competition-reflective-winner": Builtin(
        competition_text.ReflectiveWinner, "1 when the winner is a persona that checks and corrects itself"
    ),
    "competition-structure": Builtin(competition.Structure, "1 for a strict contest, 0.5 with all tags in order"),
    "competition-tags": Builtin(competition.Tags, "0.1 an element in its place, less for duplicates and missing ones"),
    "competition-voice": Builtin(competition_text.Voice, "0 to 1: how much of its text a persona speaks as itself"),
    "competition-winner": Builtin(competition.Winner, "1 when the winner is exactly a persona's name, 0.5 among words"),
    "competition-winner-right": Builtin(
        competition_answer.WinnerRight, "1 when the winner's own working comes to the right answer: a measure"
    ),
    "competition-won": Builtin(competition.Won, "1 when the persona wins: a measure of the judge's bias"),
    "constraints": Builtin(
        constraints.Constraints, "share of the row's constraints that the completion follows (words, form, language, …)"
    ),
    "exact": Builtin(text.Exact, "1 when the whole completion is the answer"),
    "format": Builtin(text.Tags, "1 when the completion is the given tags in order, each once, and nothing else"),
    "json-schema": Builtin(text.JsonSchema, "1 when the completion is JSON that the schema allows"),
    "judge": Builtin(judge.JudgeReward, "0 to 1 by a language model's verdict: pairwise, pointwise or listwise"),
    "judge-pick": Builtin(pick.JudgePick, "1 when a verdict on a contest (data.contest) names a right answer"),
    "knights-knaves": Builtin(logic.KnightsKnaves, "1 when everyone is rightly called a knight or a knave"),
    "length": Builtin(text.Length, "1 within limits of tokens, characters or words, with linear ramps outside"),
    "math-equal": Builtin(math.MathEqual, "1 when math-verify finds the final expression equal to the answer"),
    "reasoning-answer": Builtin(math.ReasoningAnswer, "-4.5 to 5 by how close the solution is to the answer"),
    "reasoning-format-approx": Builtin(math.ReasoningFormatApprox, "-3 to 1.5: each of three tags exactly once"),
    "reasoning-format-exact": Builtin(math.ReasoningFormatExact, "3 when working and solution are well formed"),
    "reasoning-number": Builtin(math.ReasoningNumber, "-2.5 to 3.5 by the first number in the solution"),
    "regex": Builtin(text.Regex, "1 when a pattern is found"),
    "reward-model": Builtin(learned.LearnedReward, "the score of a reward model: a folder, a hub id, or stage:NAME"),
}


def reads_contest(name: str) -> bool:
    """Whether that built-in reads contests, so that the recipe must describe one."""
    return name in BUILTINS and issubclass(BUILTINS[name].make, ContestReward)


def make_builtins(config: RewardConfig, construct: Construct | None) -> Iterator[tuple[str, Any]]:
    """The built-in of a recipe's reward with its name in metrics; for one that scores personas one by one, and whose
    args name none, one for each persona, called NAME-PERSONA.

    Raises:
        UsageError: as `make_builtin`, and for a reward that reads contests where the recipe describes none, or lacks
            what the reward reads in one.
    """
    made = make_builtin(config.name, config.args)
    label = config.label or config.name
    if not isinstance(made, ContestReward):
        yield label, made
        return
    if construct is None:
        raise UsageError(
            f"reward {config.name!r} reads contests, and the recipe describes none; add `competition: {{}}` for "
            "pirate, knight and viking, or one of your own (docs/competition.md)"
        )
    made = dataclasses.replace(made, construct=construct)
    if not isinstance(made, PersonaReward):
        made.check()
        yield label, made
        return
    given = made.persona
    if given is not None:
        construct.persona(given)
    personas: tuple[str | None, ...] = (given,) if given else made.scored_personas(construct) or (None,)
    for persona in personas:
        one = dataclasses.replace(made, persona=persona)
        one.check()
        yield (label if persona is None or (given and config.label) else f"{label}-{persona}"), one


def make_builtin(name: str, args: Mapping[str, Any]) -> Any:
    """The built-in `name` with the recipe's args. Raises UsageError naming the reward, the argument and the remedy."""
    from pydantic import TypeAdapter, ValidationError

    cls = BUILTINS[name].make
    known = [field.name for field in dataclasses.fields(cls) if field.name != FROM_RECIPE]
    for arg in args:
        if arg not in known:
            near = difflib.get_close_matches(arg, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise UsageError(f"reward {name!r}: unknown argument {arg!r} under args; {hint}")
    try:
        return TypeAdapter(cls).validate_python(dict(args))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"reward {name!r}, args{'.' + field if field else ''}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
