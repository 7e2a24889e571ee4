"""Multi-turn rollouts: the policy writes, something answers, the policy goes on.

What others wrote (a tool's result) is part of the completion but masked: context for the policy, never trained on,
and absent from log-prob sums, entropy and lengths.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.config import SamplingConfig
from preftune.errors import UsageError
from preftune.records import Completion, Group, Prompt
from preftune.sampling.base import Rollout, Sampler
from preftune.tokens import TokenContract

Tool = Callable[[str], str]
"""Answers the text that the policy put into a call."""


class ToolRollout:
    """Turns of one tool. The policy calls it by writing `open … close`; the answer is inserted and it goes on.

    A completion ends when the policy ends it, when its own tokens reach `sampling.max_tokens`, or after
    `sampling.max_turns` turns (then it ends like one cut by a stop string).

    Args:
        contract: encodes the tool's answer.
        tool: called with the text of each call; must not raise.
        opening, closing: the tags of a call.
        answer: how the tool's answer is written, with one `{}`.
    """

    def __init__(
        self,
        contract: TokenContract,
        tool: Tool,
        *,
        opening: str = "<calc>",
        closing: str = "</calc>",
        answer: str = "={};",
    ) -> None:
        self.contract, self.tool = contract, tool
        self.opening, self.closing, self.answer = opening, closing, answer

    def __call__(
        self, sampler: Sampler, prompts: Sequence[Prompt], n: int, settings: SamplingConfig, *, seed: int,
        policy_version: int, temperature: float | None = None,
    ) -> list[Group]:  # fmt: skip
        """See `Rollout`."""
        stops = settings.model_copy(update={"stop": [*settings.stop, self.closing]})
        groups = sampler.sample(prompts, n, stops, seed=seed, policy_version=policy_version, temperature=temperature)
        rows = [[c for c in g.completions] for g in groups]
        for turn in range(1, settings.max_turns):
            calling = [(i, j) for i, row in enumerate(rows) for j, c in enumerate(row) if self._calls(c, settings)]
            if not calling:
                break
            answered = [self._answered(rows[i][j]) for i, j in calling]
            room = [settings.max_tokens - c.length for c in answered]
            further = [
                replace(prompts[i], ids=prompts[i].ids + c.ids, text=prompts[i].text + c.text)
                for (i, _), c in zip(calling, answered, strict=True)
            ]
            drawn = sampler.sample(
                further, 1, stops.model_copy(update={"max_tokens": max(room)}), seed=seed * 31 + turn,
                policy_version=policy_version, temperature=temperature,
            )  # fmt: skip
            for (i, j), before, group, left in zip(calling, answered, drawn, room, strict=True):
                rows[i][j] = _joined(before, _at_most(group.completions[0], left, self.contract))
        return [Group(g.prompt, tuple(row)) for g, row in zip(groups, rows, strict=True)]

    def _calls(self, completion: Completion, settings: SamplingConfig) -> bool:
        ended_in_call = completion.finish == "stop" and completion.text.rstrip().endswith(self.closing)
        return ended_in_call and completion.length < settings.max_tokens

    def _answered(self, completion: Completion) -> Completion:
        asked = completion.text.rstrip()[: -len(self.closing)]
        start = asked.rfind(self.opening)
        answer = self.tool(asked[start + len(self.opening) :]) if start >= 0 else "no call was opened"
        ids = self.contract.encode(self.answer.format(answer))
        nothing = (0.0,) * len(ids)
        return replace(
            completion,
            ids=completion.ids + ids,
            mask=completion.mask + (False,) * len(ids),
            text=completion.text + self.answer.format(answer),
            logprobs=None if completion.logprobs is None else completion.logprobs + nothing,
        )


def _joined(before: Completion, after: Completion) -> Completion:
    both = before.logprobs is not None and after.logprobs is not None
    return replace(
        after,
        ids=before.ids + after.ids,
        mask=before.mask + after.mask,
        text=before.text + after.text,
        logprobs=(before.logprobs or ()) + (after.logprobs or ()) if both else None,
    )


def _at_most(completion: Completion, tokens: int, contract: TokenContract) -> Completion:
    """The same draw under a smaller token limit: rows of one call share the largest of their limits."""
    if len(completion.ids) <= tokens:
        return completion
    ids = completion.ids[:tokens]
    logprobs = None if completion.logprobs is None else completion.logprobs[:tokens]
    return replace(
        completion,
        ids=ids,
        mask=completion.mask[:tokens],
        logprobs=logprobs,
        text=contract.decode(ids),
        finish="length",
    )


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def calculate(text: str) -> str:
    """A calculator's answer to model-written text: + - * / // % and brackets over numbers, nothing else.

    The text is parsed, never executed; what is no sum, too long, or has no finite result gives "error".
    """
    if len(text) > 200 or not re.fullmatch(r"[\d\s.+\-*/%()]*", text):
        return "error"
    try:
        value = _value(ast.parse(re.sub(r"(?<=\d)\s+(?=\d)", "", text).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return "error"
    if not math.isfinite(value):
        return "error"
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result: float = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        return result
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        negated: float = _OPERATORS[type(node.op)](_value(node.operand))
        return negated
    raise ValueError("not a sum")


def find_rollout(settings: SamplingConfig, contract: TokenContract, base_dir: Path | None) -> Rollout | None:
    """The recipe's multi-turn rollout, None for the plain sampler.

    `module:name` or `file.py:name` must be a factory: called with the token contract, it returns a Rollout.

    Raises:
        UsageError: there is none of that name.
    """
    name = settings.rollout
    if name is None:
        return None
    if name == "calculator":
        return ToolRollout(contract, calculate)
    home, _, function = name.rpartition(":")
    if not home:
        raise UsageError(f"sampling.rollout {name!r} is neither calculator nor module:factory nor path/file.py:factory")
    try:
        if home.endswith(".py"):
            path = (base_dir or Path.cwd()) / home
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise UsageError(f"sampling.rollout: {path} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(home)
    except (ImportError, FileNotFoundError) as error:
        raise UsageError(f"sampling.rollout {name!r} can't be imported: {error}") from error
    factory: Callable[[TokenContract], Rollout] | None = getattr(module, function, None)
    if factory is None:
        raise UsageError(f"sampling.rollout: {home} has no {function!r}")
    return factory(contract)
