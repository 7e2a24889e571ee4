"""Rows filled up in half precision: results and gradients stay, sizes come again, fewer kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preftune.engine.even import STEP, even, rounded
from preftune.engine.forward import Engine
from preftune.engine.pack import pack
from tests.engine import zoo
from tests.engine.plain import engine_values, gradients, policy_of, relative_l2, some_groups, weighted_sum

KERNELS = """
import os, sys, torch
from preftune.engine.even import keep_fewer_kernels
if sys.argv[1] == "fewer":
    assert keep_fewer_kernels(half=True) and not keep_fewer_kernels(half=True)
w, x = torch.randn(64, 64, dtype=torch.bfloat16), torch.randn(900, 64, dtype=torch.bfloat16)
def resident():
    return int(open("/proc/self/statm").read().split()[1])
x[:7] @ w
before = resident()
for rows in range(100, 800):
    x[:rows] @ w
print(resident() - before)
"""


@given(st.integers(0, 5000))
def test_lengths_are_rounded_up_by_an_eighth_at_most_and_to_few(length: int) -> None:
    assert length <= rounded(length) <= max(length * 1.125, length + 8)
    assert rounded(rounded(length)) == rounded(length)


def test_few_lengths_are_left() -> None:
    assert len({rounded(n) for n in range(1, 1025)}) <= 45


def test_a_filled_row_holds_the_same_and_reads_the_same() -> None:
    (packed,) = pack(some_groups(), 1000)
    full = even(packed)
    assert full.tokens % STEP == 0 and len(full.target_T) % STEP == 0
    n, t = packed.tokens, len(packed.target_T)
    assert torch.equal(full.input_ids_N[:n], packed.input_ids_N)
    assert torch.equal(full.position_ids_N[:n], packed.position_ids_N)
    assert torch.equal(full.source_T[:t], packed.source_T) and torch.equal(full.target_T[:t], packed.target_T)
    assert full.segments[:-1] == packed.segments
    assert (full.segments[-1].start, full.segments[-1].end) == (n, full.tokens)
    assert even(full) is full


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma2", "qwen3_moe"])
def test_bf16_on_a_cpu_gives_what_it_gives_without_filling(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = some_groups()
    exact = Engine(policy_of(zoo.tiny_model(kind)))
    want, _ = engine_values(exact, groups)
    slopes = gradients(exact.policy.model, weighted_sum(want))
    off: list[float] = []
    for fill in (True, False):
        engine = Engine(policy_of(zoo.tiny_model(kind)), bf16=True)
        if not fill:
            monkeypatch.setattr("preftune.engine.forward.even", lambda packed: packed)
        (packed,) = engine.pack(groups, 1000)
        values = engine.forward(packed, with_entropy=True)
        assert len(values.logprobs_T) == len(packed.target_T)
        assert values.entropy_T is not None and len(values.entropy_T) == len(packed.target_T)
        mine, _ = engine_values(engine, groups)
        off.append(relative_l2(gradients(engine.policy.model, weighted_sum(mine)), slopes))
    assert off[0] <= 1.5 * off[1] + 0.01


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_fewer_kernels_are_kept() -> None:
    def pages(mode: str) -> int:
        # A run in this process has asked already, for its children too.
        env = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
        done = subprocess.run(
            [sys.executable, "-c", KERNELS, mode], capture_output=True, text=True, check=True, env=env
        )
        return int(done.stdout)

    if not torch.backends.mkldnn.is_available() or pages("all") < 10_000:
        pytest.skip("16-bit products are not compiled on this machine")
    assert pages("fewer") < pages("all") / 2


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.engine.even import keep_fewer_kernels

    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    assert not keep_fewer_kernels(half=True)
