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

    A completion ends when the policy ends it, when its tokens (the tool's too, so that what fits the model at the
    start fits at the end) reach `sampling.max_tokens`, or after `sampling.max_turns` turns (then it ends like one
    cut by a stop string). A call whose answer has no room ends its completion as one cut for length.

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
        rows = [list(g.completions) for g in groups]
        turns = [[0] * n for _ in rows]  # where each completion's last turn begins in its text
        # The model takes what fitted in the first turn at least, and more when the sampler can tell.
        fitted = settings.max_tokens + max((len(p.ids) for p in prompts), default=0)
        most = max(fitted, getattr(sampler, "context_length", None) or 0)
        for turn in range(1, settings.max_turns):
            going: list[tuple[int, int]] = []
            for i, row in enumerate(rows):
                for j, completion in enumerate(row):
                    if completion.finish == "stop" and self.closing in completion.text[turns[i][j] :]:
                        row[j] = self._answered(completion, turns[i][j], settings.max_tokens)
                        turns[i][j] = len(row[j].text)
                        if row[j].finish == "stop":
                            going.append((i, j))
            if not going:
                break
            further = [
                replace(prompts[i], ids=prompts[i].ids + rows[i][j].ids, text=prompts[i].text + rows[i][j].text)
                for i, j in going
            ]
            room = [settings.max_tokens - len(rows[i][j].ids) for i, j in going]
            for part, call in enumerate(_calls([len(p.ids) for p in further], room, most)):
                drawn = sampler.sample(
                    [further[k] for k in call], 1,
                    stops.model_copy(update={"max_tokens": max(room[k] for k in call)}),
                    # Far from the seeds of other steps, so that no draw of theirs comes again here.
                    seed=seed + (turn << 40) + (part << 50), policy_version=policy_version, temperature=temperature,
                )  # fmt: skip
                for k, group in zip(call, drawn, strict=True):
                    i, j = going[k]
                    rows[i][j] = _joined(rows[i][j], _at_most(group.completions[0], room[k], self.contract))
        return [Group(g.prompt, tuple(row)) for g, row in zip(groups, rows, strict=True)]

    def _answered(self, completion: Completion, turn: int, max_tokens: int) -> Completion:
        """The completion with the tool's answer to the call in its last turn, which begins at `turn` in its text."""
        # Behind the closing tag there may be what the same token holds besides.
        asked = completion.text[turn:].rpartition(self.closing)[0]
        _, opened, asked = asked.rpartition(self.opening)
        answer = self.answer.format(self.tool(asked) if opened else "no call was opened")
        ids = self.contract.encode(answer)
        if len(completion.ids) + len(ids) >= max_tokens:
            return replace(completion, finish="length")
        nothing = (0.0,) * len(ids)
        return replace(
            completion,
            ids=completion.ids + ids,
            mask=completion.mask + (False,) * len(ids),
            text=completion.text + answer,
            logprobs=None if completion.logprobs is None else completion.logprobs + nothing,
        )


def _calls(lengths: Sequence[int], room: Sequence[int], most: int) -> list[list[int]]:
    """Split prompts into calls of the sampler. All prompts of a call get the largest room among them, and none may
    reach beyond `most` tokens that way: the model may have no more positions. Mostly it is one call."""
    out: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lambda k: -room[k]):
        for call in out:
            if lengths[k] + room[call[0]] <= most:
                call.append(k)
                break
        else:
            out.append([k])
    return out


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
