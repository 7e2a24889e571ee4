"""The table of built-in rewards, and making one from a recipe's args."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.errors import UsageError
from preftune.rewards import judge, learned, math, text


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
            default = "required" if field.default is dataclasses.MISSING else f"default {field.default!r}"
            out[field.name] = f"{field.type}, {default}"
        return out


BUILTINS: dict[str, Builtin] = {
    "accuracy": Builtin(math.Accuracy, "1 when the final answer equals the answer column, as numbers or as text"),
    "exact": Builtin(text.Exact, "1 when the whole completion is the answer"),
    "format": Builtin(text.Tags, "1 when the completion is the given tags in order, each once, and nothing else"),
    "json-schema": Builtin(text.JsonSchema, "1 when the completion is JSON that the schema allows"),
    "judge": Builtin(judge.JudgeReward, "0 to 1 by a language model's verdict: pairwise, pointwise or listwise"),
    "length": Builtin(text.Length, "1 within limits of tokens, characters or words, with linear ramps outside"),
    "math-equal": Builtin(math.MathEqual, "1 when math-verify finds the final expression equal to the answer"),
    "reasoning-answer": Builtin(math.ReasoningAnswer, "-4.5 to 5 by how close the solution is to the answer"),
    "reasoning-format-approx": Builtin(math.ReasoningFormatApprox, "-3 to 1.5: each of three tags exactly once"),
    "reasoning-format-exact": Builtin(math.ReasoningFormatExact, "3 when working and solution are well formed"),
    "reasoning-number": Builtin(math.ReasoningNumber, "-2.5 to 3.5 by the first number in the solution"),
    "regex": Builtin(text.Regex, "1 when a pattern is found"),
    "reward-model": Builtin(learned.LearnedReward, "the score of a reward model: a folder, a hub id, or stage:NAME"),
}


def make_builtin(name: str, args: Mapping[str, Any]) -> Any:
    """The built-in `name` with the recipe's args. Raises UsageError naming the reward, the argument and the remedy."""
    from pydantic import TypeAdapter, ValidationError

    cls = BUILTINS[name].make
    known = [field.name for field in dataclasses.fields(cls)]
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
