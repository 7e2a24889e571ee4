"""Rollouts of several turns: what the policy did not write is context and nothing else."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preftune.config import SamplingConfig
from preftune.engine.forward import Engine
from preftune.errors import UsageError
from preftune.records import Completion, Distribution, Finish, Group, Prompt
from preftune.sampling.base import Progress
from preftune.sampling.local import LocalSampler
from preftune.sampling.rollouts import ToolRollout, calculate, find_rollout
from preftune.tokens import TokenContract
from tests.engine import zoo
from tests.engine.plain import gradients, plain_values, policy_of, relative_l2

EOS = 2


class Letters:
    """One token a character: id 3 is a space, and so on through ASCII. EOS reads as nothing."""

    eos_ids = frozenset({EOS})

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(ord(c) - 29 for c in text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i + 29) for i in ids if i != EOS)


LETTERS = cast(TokenContract, Letters())


@dataclass
class Scripted:
    """A sampler that writes from a script: the text after each prompt's text. `$` is EOS. Stops and limits are kept."""

    script: dict[str, str]
    context_length: int | None = None
    calls: list[tuple[list[str], int, int, int]] = field(default_factory=list)

    def sample(
        self, prompts: Sequence[Prompt], n: int, settings: SamplingConfig, *, seed: int, policy_version: int = 0,
        temperature: float | None = None, progress: Progress | None = None,
    ) -> list[Group]:  # fmt: skip
        self.calls.append(([p.text for p in prompts], n, settings.max_tokens, seed))
        groups = []
        for p in prompts:
            text, finish = "", cast(Finish, "length")
            ids: list[int] = []
            for c in self.script[p.text]:
                ids.append(EOS if c == "$" else Letters().encode(c)[0])
                text += "" if c == "$" else c
                if c == "$" or any(s in text for s in settings.stop) or len(ids) == settings.max_tokens:
                    finish = "eos" if c == "$" else "stop" if any(s in text for s in settings.stop) else "length"
                    break
            one = Completion(
                tuple(ids), (True,) * len(ids), text, finish, tuple(-0.5 - i for i in range(len(ids))),
                Distribution(0.8), policy_version, "policy",
            )  # fmt: skip
            groups.append(Group(p, (one,) * n))
        return groups


def prompt(text: str) -> Prompt:
    return Prompt(LETTERS.encode(text), text, where=f"asked {text}")


def roll(
    script: dict[str, str], *asked: str, n: int = 1, context: int | None = 4096, **settings: Any
) -> tuple[list[Group], Scripted]:
    sampler = Scripted(script, context)
    rollout = ToolRollout(LETTERS, calculate)
    config = SamplingConfig(**{"max_tokens": 60, **settings})
    groups = rollout(sampler, [prompt(a) for a in asked], n, config, seed=9, policy_version=3)
    return groups, sampler


def test_a_call_is_answered_and_masked() -> None:
    first, answer, last = "I say <calc>17*3</calc>", "=51;", " so 51$"
    groups, sampler = roll({"Q": first + "never read", "Q" + first + answer: last}, "Q")
    (one,) = groups[0].completions
    assert groups[0].prompt == prompt("Q")
    assert one.text == first + answer + " so 51"
    assert one.ids == (*LETTERS.encode(first + answer + " so 51"), EOS)
    assert one.mask == (True,) * len(first) + (False,) * 4 + (True,) * len(last)
    written = [-0.5 - i for i in range(len(first))]
    assert one.logprobs == (*written, 0.0, 0.0, 0.0, 0.0, *written[: len(last)])
    assert (one.finish, one.source, one.policy_version) == ("eos", "policy", 3)
    assert one.distribution == Distribution(0.8)
    assert one.length == len(first) + len(last)
    assert [c[0] for c in sampler.calls] == [["Q"], ["Q" + first + answer]]
    assert sampler.calls[1][2] == 60 - len(first) - 4


def test_no_call_no_second_turn() -> None:
    groups, sampler = roll({"Q": "51$"}, "Q", n=3)
    assert [c.text for c in groups[0].completions] == ["51"] * 3
    assert len(sampler.calls) == 1


def test_several_calls_in_a_row_and_rows_apart() -> None:
    a, b = "<calc>2+2</calc>", "<calc>4*4</calc>"
    script = {
        "P": a, "P" + a + "=4;": b, "P" + a + "=4;" + b + "=16;": "$",
        "Q": "none$",
        "R": b, "R" + b + "=16;": "done$",
    }  # fmt: skip
    groups, sampler = roll(script, "P", "Q", "R")
    assert [g.completions[0].text for g in groups] == [a + "=4;" + b + "=16;", "none", b + "=16;done"]
    assert [g.completions[0].finish for g in groups] == ["eos"] * 3
    assert [len(c[0]) for c in sampler.calls] == [3, 2, 1]
    assert len({c[3] for c in sampler.calls}) == 3  # each turn draws anew


def test_turns_are_limited() -> None:
    call = "<calc>1+1</calc>"
    script = {"P" + (call + "=2;") * i: call for i in range(9)}
    for turns in (1, 2, 4):
        groups, sampler = roll(script, "P", max_turns=turns, max_tokens=200)
        (one,) = groups[0].completions
        assert one.text == (call + "=2;") * (turns - 1) + call
        assert one.finish == "stop"
        assert len(sampler.calls) == turns


def test_the_tools_words_count_against_the_token_limit() -> None:
    call, answer = "<calc>1+1</calc>", "=2;"  # 16 and 3 tokens
    script = {"P": call, "P" + call + answer: "abcdefgh$"}
    texts = {}
    for limit in (16, 18, 19, 20, 23, 28):
        groups, _ = roll(script, "P", max_tokens=limit)
        (one,) = groups[0].completions
        assert len(one.ids) <= limit
        texts[limit] = (one.text, one.finish)
    assert texts == {
        16: (call, "length"), 18: (call, "length"), 19: (call, "length"),
        20: (call + answer + "a", "length"),
        23: (call + answer + "abcd", "length"),
        28: (call + answer + "abcdefgh", "eos"),
    }  # fmt: skip


@pytest.mark.parametrize(("context", "calls"), [(None, 3), (61, 3), (100, 2)])
def test_no_row_is_sent_beyond_the_models_positions(context: int | None, calls: int) -> None:
    """A long conversation beside a short one: the second turn is one call only where the model has room for it. Of a
    sampler that can't tell, what fitted in the first turn is known to fit."""
    call = "<calc>1+1</calc>"
    long = "x" * 30 + call
    script = {"P": long, "P" + long + "=2;": "y" * 99, "Q": call, "Q" + call + "=2;": "z" * 99}
    groups, sampler = roll(script, "P", "Q", "P", max_tokens=60, context=context)
    assert [len(g.completions[0].ids) for g in groups] == [60, 60, 60]
    assert [g.completions[0].text[-1] for g in groups] == ["y", "z", "y"]
    for texts, _, limit, _ in sampler.calls:
        assert max(map(len, texts)) + limit <= (context or 61)
    assert len({c[3] for c in sampler.calls}) == len(sampler.calls) == calls


def test_rows_of_one_call_keep_their_own_limits() -> None:
    """The shorter prompt leaves room to go with the longer one's limit; what is over is cut and says so."""
    a, b = "<calc>1+1</calc>", "xx<calc>1+1</calc>"
    script = {"A" * 9: a, "A" * 9 + a + "=2;": "y" * 99, "B": b, "B" + b + "=2;": "z" * 99}
    groups, sampler = roll(script, "A" * 9, "B", max_tokens=40)
    assert len(sampler.calls) == 2
    assert [(len(g.completions[0].ids), g.completions[0].finish) for g in groups] == [(40, "length")] * 2
    (one,) = groups[1].completions
    assert one.text == b + "=2;" + "z" * 19
    assert one.logprobs is not None and len(one.logprobs) == len(one.mask) == 40


def test_a_closing_tag_without_an_opening_one() -> None:
    script = {"P": "17</calc>", "P17</calc>=no call was opened;": "$"}
    groups, _ = roll(script, "P")
    assert groups[0].completions[0].text == "17</calc>=no call was opened;"
    # An earlier turn's opening tag does not open this one's call.
    a = "<calc>1+1</calc>"
    script = {"P": a, "P" + a + "=2;": "</calc>", "P" + a + "=2;</calc>=no call was opened;": "$"}
    groups, _ = roll(script, "P")
    assert groups[0].completions[0].text == a + "=2;</calc>=no call was opened;"


def test_a_closing_tag_with_more_in_the_same_token() -> None:
    class Pairs(Scripted):
        def sample(self, *args: Any, **kwargs: Any) -> list[Group]:
            groups = super().sample(*args, **kwargs)
            return [Group(g.prompt, tuple(map(longer, g.completions))) if g.prompt.text == "P" else g for g in groups]

    def longer(c: Completion) -> Completion:
        return Completion((*c.ids[:-1], 90), c.mask, c.text + "!", c.finish)

    call = "<calc>1+1</calc>"
    sampler = Pairs({"P": call, "P" + call + "!=2;": "ok$"})
    (group,) = ToolRollout(LETTERS, calculate)(
        sampler, [prompt("P")], 1, SamplingConfig(max_tokens=60), seed=0, policy_version=0
    )
    assert group.completions[0].text == call + "!=2;ok"
    assert group.completions[0].logprobs is None  # the first turn had none


def test_a_users_stop_string_still_ends_a_completion() -> None:
    groups, sampler = roll({"P": "ab##<calc>1+1</calc>"}, "P", stop=["##"])
    assert (groups[0].completions[0].text, groups[0].completions[0].finish) == ("ab##", "stop")
    assert len(sampler.calls) == 1


def test_other_tags_and_tools() -> None:
    rollout = ToolRollout(LETTERS, str.upper, opening="[", closing="]", answer="({})")
    sampler = Scripted({"P": "say [abc]", "Psay [abc](ABC)": "$"})
    (group,) = rollout(sampler, [prompt("P")], 2, SamplingConfig(), seed=0, policy_version=0)
    assert [c.text for c in group.completions] == ["say [abc](ABC)"] * 2


# --- through a real model -------------------------------------------------------------------------------------


TEMPERATURE = 2.0


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
def test_spans_of_others_have_no_loss_but_are_context(kind: str) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    rollout = ToolRollout(LETTERS, lambda text: str(len(text)), opening="a", closing="e", answer="={};")
    prompts = [prompt("ask this"), prompt("or a longer question"), prompt("?")]
    config = SamplingConfig(max_tokens=60, max_turns=4, temperature=TEMPERATURE)
    groups = rollout(LocalSampler(engine, Letters()), prompts, 6, config, seed=1, policy_version=0)
    flat = [c for g in groups for c in g.completions]
    assert sum(not all(c.mask) for c in flat) >= 3, "the model calls too seldom for this test to tell anything"
    for one in flat:
        assert one.logprobs is not None
        foreign = [lp for lp, wrote in zip(one.logprobs, one.mask, strict=True) if not wrote]
        assert foreign == [0.0] * len(foreign)
        assert len(one.ids) <= 60
    # The sampler's log-probs in every turn are the trainer's over the whole conversation.
    score = engine.score(groups, 1000, temperature=TEMPERATURE)
    for i, group in enumerate(groups):
        for j, one in enumerate(group.completions):
            mine = [lp for lp, wrote in zip(one.logprobs or (), one.mask, strict=True) if wrote]
            torch.testing.assert_close(torch.tensor(mine), score[i][j], atol=1e-4, rtol=0)
    # The gradient is that of full logits at the policy's own tokens, each weighted by its completion.
    weight = {(i, j): math.sin(3.0 * i + j) for i, g in enumerate(groups) for j in range(len(g.completions))}
    total = torch.zeros(())
    for packed in engine.pack(groups, 400):
        out = engine.forward(packed, temperature=TEMPERATURE).logprobs_T
        total = total + (out * torch.tensor([weight[m] for m in packed.members])[packed.sequence_T]).sum()
    got = gradients(engine.policy.model, total)
    plain = zoo.tiny_model(kind)
    values, _ = plain_values(plain, groups, temperature=TEMPERATURE)
    want = gradients(plain, torch.stack([weight[m] * v.sum() for m, v in values.items()]).sum())
    assert relative_l2(got, want) <= 5e-5


# --- the calculator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+1", "2"), (" 17 * 3 ", "51"), ("2*(3+4)-5", "9"), ("7/2", "3.5"), ("8/2", "4"), ("7//2", "3"), ("7%3", "1"),
        ("-3+5", "2"), ("--3", "3"), ("+4", "4"), ("1/3", "0.333333"), ("2.50*4", "10"), ("1 000 + 1", "1001"),
        ("0.1+0.2", "0.3"), ("12345678*87654321", "1082152022374638"), ("1000000/7", "142857"), ("-7//2", "-4"),
        ("", "error"), ("   ", "error"), ("1/0", "error"), ("5%0", "error"), ("1//0", "error"), ("2**3", "error"),
        ("9**9**9", "error"), ("(1", "error"), ("1+", "error"), ("()", "error"), ("1(2)", "error"), ("...", "error"),
        ("abc", "error"), ("1e9", "error"), ("1_0", "error"), ("1j", "error"), ("007", "error"), ("1,2", "error"),
        ("__import__('os').getcwd()", "error"), ("[1]", "error"), ("1 if 1 else 2", "error"), ("1;2", "error"),
        ("1<2", "error"), ("0x10", "error"), ("٣+١", "error"), ("²", "error"), ("1\n+1", "error"), ("\x00", "error"),
        ("9" * 201, "error"), ("(" * 100 + "1" + ")" * 99, "error"),
    ],
)  # fmt: skip
def test_calculator_worked_by_hand(text: str, answer: str) -> None:
    assert calculate(text) == answer


def test_calculator_takes_what_its_length_limit_allows() -> None:
    assert calculate("9" * 200) == "9" * 200
    assert calculate("-" * 199 + "1") == "-1"
    assert calculate("(" * 90 + "1" + ")" * 90) == "1"
    biggest = "*".join(["9" * 99] * 2)
    assert calculate(biggest) == str((10**99 - 1) ** 2)
    assert calculate("9" * 150 + "*1." + "0" * 40) == str(int(float("9" * 150)))
    assert calculate(("9" * 180) + "/.00000000000001") != ""


SUM = st.text(alphabet="0123456789.+-*/%() ", max_size=210)


@settings(max_examples=400, deadline=1000)
@given(SUM | st.text(max_size=220))
@example("-" * 200)
@example("(" * 200)
@example("9*" * 99 + "9")
@example("1/." + "0" * 196 + "1")
@example("9" * 199 + ".")
@example("9" * 99 + "./." + "0" * 96 + "1")
def test_calculator_never_raises_and_stays_small(text: str) -> None:
    answer = calculate(text)
    assert len(answer) <= 320
    assert answer == "error" or math.isfinite(float(answer))


NUMBERS = st.integers(0, 99_999).map(str)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(
        lambda parts: f"({parts[0]}{parts[1]} {parts[2]})"
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(SUMS)
def test_calculator_is_right_on_whole_numbers(text: str) -> None:
    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)  # type: ignore[arg-type]
        assert isinstance(node, ast.BinOp)
        a, b = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.FloorDiv():
                return Fraction(a // b)
            case _:
                return a % b

    try:
        want = str(value(ast.parse(text, mode="eval").body))
    except ZeroDivisionError:
        want = "error"
    assert calculate(text) == want


# --- finding a rollout ----------------------------------------------------------------------------------------


def test_find_rollout(tmp_path: Path) -> None:
    assert find_rollout(SamplingConfig(), LETTERS, None) is None
    tool = find_rollout(SamplingConfig(rollout="calculator"), LETTERS, None)
    assert isinstance(tool, ToolRollout)
    assert tool.tool is calculate
    (tmp_path / "mine.py").write_text("def make(contract):\n    return ('made with', contract)\n", encoding="utf-8")
    made = find_rollout(SamplingConfig(rollout="mine.py:make"), LETTERS, tmp_path)
    assert cast(Any, made) == ("made with", LETTERS)
    for name, why in (
        ("calculater", "neither calculator nor"),
        ("mine.py:nothing", "has no 'nothing'"),
        ("absent.py:make", "can't be imported"),
        ("no.such.module:make", "can't be imported"),
    ):
        with pytest.raises(UsageError, match=why):
            find_rollout(SamplingConfig(rollout=name), LETTERS, tmp_path)
