"""Sampling thousands of tokens without an end: log-probs stay the trainer's, and each step costs what it must."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import transformers as tf

from preftune.config import SamplingConfig
from preftune.engine.forward import Engine
from preftune.records import Distribution, Prompt
from preftune.sampling.cache import Row
from preftune.sampling.local import LocalSampler, _Call
from tests.engine.plain import policy_of

torch.set_num_threads(1)


class NoEnd:
    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def sampler() -> LocalSampler:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192, eos_token_id=1, bos_token_id=None, pad_token_id=0,
        initializer_range=0.2,
    )  # fmt: skip
    return LocalSampler(Engine(policy_of(tf.LlamaForCausalLM(config))), NoEnd())


def test_two_thousand_tokens(sampler: LocalSampler) -> None:
    settings = SamplingConfig(max_tokens=2000)
    (group,) = sampler.sample([Prompt((3, 4, 5), "")], 2, settings, seed=1)
    assert [len(c.ids) for c in group.completions] == [2000, 2000]
    assert [c.finish for c in group.completions] == ["length", "length"]
    assert len(set(group.completions[0].ids)) > 32 and group.completions[0].ids != group.completions[1].ids
    (scores,) = sampler.engine.score([group], 8192)
    for completion, trainer in zip(group.completions, scores, strict=True):
        assert float((torch.tensor(completion.logprobs) - trainer).abs().max()) <= 1e-4


def test_a_beginning_does_not_depend_on_the_limit(sampler: LocalSampler) -> None:
    """The random numbers of a row are its own, however many are laid ready."""
    short, long = (
        sampler.sample([Prompt((3, 4, 5), "")], 1, SamplingConfig(max_tokens=n), seed=2)[0].completions[0].ids
        for n in (50, 300)
    )
    assert long[:50] == short


def test_what_was_seen_grows_with_the_row(sampler: LocalSampler) -> None:
    """The repetition penalty's memory, token by token, is the set of the prompt's and completion's tokens."""
    prompts = [Prompt((3, 4), ""), Prompt((7,), "")]
    from preftune.sampling.local import _Stop

    drawn = Distribution(repetition_penalty=1.3)
    call = _Call(prompts, 2, 40, 0, drawn, _Stop(NoEnd(), ()), 0, None)
    rows = [row for n in range(2) for row in call.rows(n)]
    assert all(isinstance(row, Row) and len(row.uniform) == 40 for row in rows)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        logits = torch.randn(len(rows), 64, generator=generator)
        seen = call._seen_tokens(rows, logits)
        assert seen is not None
        for row, mask in zip(rows, seen, strict=True):
            assert set(mask.nonzero()[:, 0].tolist()) == {*prompts[row.prompt].ids, *row.ids}
        call.extend(rows, logits)
        if step == 20:
            rows = rows[1:]  # one leaves: the others keep theirs
    assert call.finish(rows) == [True] * 3
    assert len(call._seen) == 1  # that of the row which left without ending
