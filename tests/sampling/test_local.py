"""LocalSampler: greedy decoding is transformers' generate, sampled log-probs are the trainer's, and nothing but the
seed, the prompt and its place in the list decides what is drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as tf

from preftune.config import SamplingConfig
from preftune.engine.forward import Engine
from preftune.engine.head import decoder_of
from preftune.errors import SamplingError
from preftune.records import Completion, Distribution, Group, Prompt
from preftune.sampling.base import uniforms
from preftune.sampling.local import LocalSampler
from tests.engine import zoo
from tests.engine.plain import policy_of, random_ids

EOS = frozenset({2, 50})


class Words:
    """Token 3 reads "a", 4 "b", … and so on in a circle of letters; EOS reads as nothing."""

    def __init__(self, eos: frozenset[int] = EOS) -> None:
        self.eos_ids = eos

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + (i - 3) % 26) for i in ids if i not in self.eos_ids)


def sampler_of(kind: str, eos: frozenset[int] = EOS, **options: Any) -> LocalSampler:
    return LocalSampler(Engine(policy_of(zoo.tiny_model(kind)), **options), Words(eos))


def prompts_of(*lengths: int, seed: int = 1) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt(random_ids(rng, n), "", where=f"prompts.jsonl:{i}") for i, n in enumerate(lengths, 1)]


PROMPTS = prompts_of(7, 30, 1, 12, 12)
SHORT = prompts_of(3, 6, 5)
"""With six tokens more, within the 16 positions that the zoo's stretched rotary models were made for."""


def ids_of(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[c.ids for c in g.completions] for g in groups]


def generate(kind: str, prompt: Prompt, max_tokens: int, eos: frozenset[int] = EOS, **options: Any) -> tuple[int, ...]:
    """Greedy, by transformers, from a model that has run nothing before."""
    ids = torch.tensor([prompt.ids])
    settings = tf.GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=sorted(eos), pad_token_id=0, **options
    )
    with torch.no_grad():
        out = zoo.tiny_model(kind).generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tuple(out[0, len(prompt.ids) :].tolist())


def worst_gap(sampler: LocalSampler, groups: list[Group], temperature: float) -> float:
    """max |sampler's log-prob − trainer's|."""
    score = sampler.engine.score(groups, 1000, temperature=temperature)
    return max(
        float((torch.tensor(c.logprobs) - score[i][j]).abs().max())
        for i, g in enumerate(groups)
        for j, c in enumerate(g.completions)
    )


@pytest.fixture(scope="module")
def llama() -> LocalSampler:
    return sampler_of("llama")


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_greedy_is_generate_token_for_token(kind: str) -> None:
    sampler = sampler_of(kind)
    if kind in zoo.FALLBACK_KINDS:
        assert sampler.engine.mode == "padded"
        prompts, n = (PROMPTS[:3], 8) if kind != "llama_dynamic" else (SHORT, 6)
    else:
        assert sampler.engine.mode == "shared"
        prompts, n = PROMPTS, 20
    groups = sampler.sample(prompts, 1, SamplingConfig(max_tokens=n), seed=0, temperature=0.0)
    assert [g.prompt for g in groups] == prompts
    for group in groups:
        (one,) = group.completions
        assert one.ids == generate(kind, group.prompt, n)
        assert one.finish == ("eos" if one.ids[-1] in EOS else "length")
        assert one.distribution == Distribution(temperature=0.0)
    assert len({g.completions[0].ids for g in groups}) > 1


def test_what_ran_before_changes_nothing() -> None:
    """Under dynamic NTK a long row stretches the positions of later ones in transformers; not in ours."""
    sampler = sampler_of("llama_dynamic")
    sampler.engine.policy.context_length = 64
    prompts = prompts_of(40, 20, 18)
    for _ in range(2):
        groups = sampler.sample(prompts, 1, SamplingConfig(max_tokens=8), seed=0, temperature=0.0)
        assert ids_of(groups) == [[generate("llama_dynamic", p, 8)] for p in prompts]


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt2", "bloom"])
def test_greedy_with_a_repetition_penalty_is_generates(kind: str) -> None:
    settings = SamplingConfig(max_tokens=16, repetition_penalty=1.6)
    groups = sampler_of(kind).sample(PROMPTS[:3], 1, settings, seed=0, temperature=0.0)
    assert ids_of(groups) == [[generate(kind, p, 16, repetition_penalty=1.6)] for p in PROMPTS[:3]]
    assert ids_of(groups) != [[generate(kind, p, 16)] for p in PROMPTS[:3]]


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_sampled_log_probs_are_the_trainers(kind: str) -> None:
    sampler = sampler_of(kind)
    fallback = kind in zoo.FALLBACK_KINDS
    prompts, n = (SHORT, 6) if fallback else (PROMPTS, 14)
    for temperature in (0.7, 1.0):
        settings = SamplingConfig(max_tokens=n, temperature=temperature)
        groups = sampler.sample(prompts, 3, settings, seed=5, policy_version=4)
        assert worst_gap(sampler, groups, temperature) <= 1e-4
        for group in groups:
            for one in group.completions:
                assert one.mask == (True,) * len(one.ids)
                assert one.distribution == Distribution(temperature=temperature)
                assert (one.policy_version, one.source, one.score) == (4, "policy", None)
                assert one.text == Words().decode(one.ids)
                assert not EOS & set(one.ids[:-1])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral", "phi3", "lfm2"])
def test_room_and_neighbours_change_nothing(kind: str) -> None:
    """Rows that leave and enter, few or many at once, other prompts around: the same ids.

    With seed 8 one of llama's draws lies 3e-8 from the border of two tokens, where another batch's rounding decides.
    """
    sampler = sampler_of(kind, eos=frozenset(range(20, 113, 8)))
    settings = SamplingConfig(max_tokens=12, temperature=1.3)
    want = sampler.sample(PROMPTS, 3, settings, seed=9)
    assert len({c.finish for g in want for c in g.completions}) == 2  # some leave early
    for rows in (1, 4, 7):
        got = sampler.sample(PROMPTS, 3, settings.model_copy(update={"rows": rows}), seed=9)
        assert ids_of(got) == ids_of(want)
        gaps = [
            (torch.tensor(a.logprobs) - torch.tensor(b.logprobs)).abs().max()
            for g, h in zip(got, want, strict=True)
            for a, b in zip(g.completions, h.completions, strict=True)
        ]
        assert float(max(gaps)) < 2e-5
    others = prompts_of(3, 40, 2, 1, 9, 5, seed=99)
    mixed = [others[0], PROMPTS[1], others[1], PROMPTS[3], others[2], others[3]]
    got = sampler.sample(mixed, 3, settings, seed=9)
    assert [ids_of(got)[i] for i in (1, 3)] == [ids_of(want)[i] for i in (1, 3)]
    assert ids_of(sampler.sample(PROMPTS[:2], 3, settings, seed=9)) == ids_of(want)[:2]


def test_greedy_does_not_depend_on_the_order_of_prompts(llama: LocalSampler) -> None:
    settings = SamplingConfig(max_tokens=15, rows=3)
    forth = llama.sample(PROMPTS, 2, settings, seed=1, temperature=0.0)
    back = llama.sample(PROMPTS[::-1], 2, settings, seed=2, temperature=0.0)
    assert ids_of(back)[::-1] == ids_of(forth)
    assert all(a == b for a, b in ids_of(forth))


def test_seeds(llama: LocalSampler) -> None:
    settings = SamplingConfig(max_tokens=12)
    once = llama.sample(PROMPTS, 4, settings, seed=3)
    torch.manual_seed(99)
    assert llama.sample(PROMPTS, 4, settings, seed=3) == once
    other = ids_of(llama.sample(PROMPTS, 4, settings, seed=4))
    assert all(a != b for a, b in zip(ids_of(once), other, strict=True))
    # Rows of a group and equal prompts draw apart.
    assert all(len(set(row)) == 4 for row in ids_of(once))
    twins = ids_of(llama.sample([PROMPTS[0], PROMPTS[0]], 4, settings, seed=3))
    assert not set(twins[0]) & set(twins[1])


def test_random_numbers_by_seed_and_prompt() -> None:
    draws = uniforms(3, 5, 4, 7)
    assert draws.shape == (4, 7)
    assert torch.equal(draws, uniforms(3, 5, 4, 7))
    assert not torch.equal(draws, uniforms(3, 6, 4, 7))
    assert not torch.equal(draws, uniforms(4, 5, 4, 7))
    assert uniforms(2**80, 0, 1, 1).shape == (1, 1)
    many = uniforms(0, 0, 100, 100)
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 4 / (12**0.5 * 100)


# --- why a completion ends ------------------------------------------------------------------------------------


def without_repeats(sampler: LocalSampler, n: int) -> tuple[Completion, int]:
    """A completion of `n` different tokens, letter by letter too, and the seed that gives it."""
    for seed in range(200):
        (group,) = sampler.sample(PROMPTS[:1], 1, SamplingConfig(max_tokens=n), seed=seed)
        one = group.completions[0]
        if len(set(one.text)) == len(one.text) == n:
            return one, seed
    raise AssertionError("none among 200 seeds")


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
@pytest.mark.parametrize(("at", "limit"), [(0, 6), (0, 1), (5, 6), (3, 6)])
def test_eos_ends_a_completion_wherever_it_comes(kind: str, at: int, limit: int) -> None:
    """As the very first token, as the last one allowed, or between."""
    free = sampler_of(kind, eos=frozenset())
    want, seed = without_repeats(free, 6)
    assert want.finish == "length"
    sampler = LocalSampler(free.engine, Words(frozenset({1, want.ids[at]})))
    (group,) = sampler.sample(PROMPTS[:1], 1, SamplingConfig(max_tokens=limit), seed=seed)
    one = group.completions[0]
    assert (one.ids, one.finish, one.text) == (want.ids[: at + 1], "eos", want.text[:at])
    assert one.logprobs == pytest.approx((want.logprobs or ())[: at + 1], abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
@pytest.mark.parametrize(("first", "end"), [(3, 4), (2, 6), (0, 1), (5, 8)])
def test_stop_strings(kind: str, first: int, end: int) -> None:
    """One letter is one token here, so most of these strings span several."""
    sampler = sampler_of(kind, eos=frozenset())
    free, seed = without_repeats(sampler, 8)
    settings = SamplingConfig(max_tokens=8, stop=["never this", free.text[first:end]])
    (group,) = sampler.sample(PROMPTS[:1], 1, settings, seed=seed)
    one = group.completions[0]
    assert (one.ids, one.text, one.finish) == (free.ids[:end], free.text[:end], "stop")
    assert one.logprobs == pytest.approx((free.logprobs or ())[:end], abs=1e-5)


def test_a_stop_string_late_in_a_long_completion() -> None:
    """Only the tail is decoded at each step: it must hold the whole string wherever it stands."""
    sampler = sampler_of("llama", eos=frozenset())
    (group,) = sampler.sample(PROMPTS[:1], 1, SamplingConfig(max_tokens=70), seed=11)
    text = group.completions[0].text
    settings = SamplingConfig(max_tokens=70, stop=[text[50:62]])
    (group,) = sampler.sample(PROMPTS[:1], 1, settings, seed=11)
    assert (group.completions[0].text, group.completions[0].finish) == (text[:62], "stop")


def test_everything_ends_at_once(llama: LocalSampler) -> None:
    """One token each: the cache is never used."""
    seen: list[tuple[int, int]] = []
    groups = llama.sample(
        PROMPTS, 2, SamplingConfig(max_tokens=1, rows=2), seed=0, progress=lambda a, b: seen.append((a, b))
    )
    assert all(len(c.ids) == 1 for g in groups for c in g.completions)
    assert seen == [(i, 10) for i in range(1, 11)]


def test_no_prompts(llama: LocalSampler) -> None:
    assert llama.sample([], 4, SamplingConfig(), seed=0) == []


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_prompt_that_does_not_fit(kind: str) -> None:
    sampler = sampler_of(kind)
    sampler.engine.policy.context_length = 40
    fits = prompts_of(30)
    assert len(sampler.sample(fits, 1, SamplingConfig(max_tokens=10), seed=0)) == 1
    with pytest.raises(SamplingError, match=r"prompts\.jsonl:2: 31 prompt tokens .*max_tokens = 10 .*40 positions"):
        sampler.sample([*fits, prompts_of(3, 31)[1]], 1, SamplingConfig(max_tokens=10), seed=0)


# --- the path -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_windows_bind_while_decoding(kind: str) -> None:
    """Completions of 40 tokens under a window of 8: the prompt goes out of sight, and so do own tokens."""
    sampler = sampler_of(kind, eos=frozenset())
    prompts = prompts_of(3, 20)
    groups = sampler.sample(prompts, 2, SamplingConfig(max_tokens=40), seed=2)
    assert worst_gap(sampler, groups, 1.0) <= 1e-4
    greedy = sampler.sample(prompts, 1, SamplingConfig(max_tokens=40), seed=2, temperature=0.0)
    assert ids_of(greedy) == [[generate(kind, p, 40, eos=frozenset({9999}))] for p in prompts]


def test_completions_longer_than_the_caches_growth(llama: LocalSampler) -> None:
    """Over 64 own tokens the cache grows, with rows of other ages beside."""
    sampler = LocalSampler(llama.engine, Words(frozenset({2})))
    prompts = prompts_of(5, 2, 9, 4)
    groups = sampler.sample(prompts, 3, SamplingConfig(max_tokens=140, rows=6, temperature=1.2), seed=0)
    lengths = sorted(len(c.ids) for g in groups for c in g.completions)
    assert lengths[0] < 64 < lengths[-1]
    assert worst_gap(sampler, groups, 1.2) <= 1e-4


def test_bf16_autocast() -> None:
    for kind in ("qwen3", "gemma2", "lfm2"):
        sampler = sampler_of(kind, bf16=True)
        groups = sampler.sample(PROMPTS[:3], 2, SamplingConfig(max_tokens=8), seed=0)
        assert worst_gap(sampler, groups, 1.0) < 0.25
        again = sampler.sample(PROMPTS[:3], 2, SamplingConfig(max_tokens=8), seed=0)
        assert ids_of(again) == ids_of(groups)


def test_bf16_weights() -> None:
    sampler = LocalSampler(Engine(policy_of(zoo.tiny_model("qwen3").bfloat16())), Words())
    groups = sampler.sample(PROMPTS[:3], 2, SamplingConfig(max_tokens=8), seed=0)
    assert worst_gap(sampler, groups, 1.0) < 0.25


def test_each_prompt_runs_once_and_finished_rows_leave() -> None:
    """Tokens through the model: each prompt once, and each completion token but the last once."""
    sampler = sampler_of("llama")
    fed: list[int] = []
    decoder_of(sampler.engine.policy.model).register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    groups = sampler.sample(PROMPTS, 4, SamplingConfig(max_tokens=12, rows=8, temperature=1.3), seed=0)
    tokens = sum(len(p.ids) for p in PROMPTS) + sum(len(c.ids) - 1 for g in groups for c in g.completions)
    assert sum(fed) == tokens
    assert len({len(c.ids) for g in groups for c in g.completions}) > 2
    fed.clear()
    sampler.sample(PROMPTS, 4, SamplingConfig(max_tokens=12), seed=0)
    assert len(fed) <= 12  # room for all: one prefill, and one call a token


def test_the_checkpoints_own_sampling_settings_do_not_leak_in() -> None:
    sampler = sampler_of("bloom")
    settings = SamplingConfig(max_tokens=10)
    want = sampler.sample(PROMPTS[:2], 3, settings, seed=0)
    odd = tf.GenerationConfig(
        repetition_penalty=3.0, top_k=1, temperature=0.1, min_new_tokens=10, suppress_tokens=[5, 6, 7, 8],
        no_repeat_ngram_size=1, eos_token_id=[2, 30, 40], max_length=3, do_sample=True, num_beams=2,
    )  # fmt: skip
    model = sampler.engine.policy.base
    model.generation_config = odd
    assert sampler.sample(PROMPTS[:2], 3, settings, seed=0) == want
    assert model.generation_config is odd


def test_reshaped_distributions_are_recorded_and_keep_to_their_tokens(llama: LocalSampler) -> None:
    settings = SamplingConfig(max_tokens=8, top_k=3, top_p=0.9, min_p=0.05, temperature=0.8)
    groups = llama.sample(PROMPTS[:3], 4, settings, seed=0)
    score = llama.engine.score(groups, 1000, temperature=0.8)
    for i, group in enumerate(groups):
        for j, one in enumerate(group.completions):
            assert one.distribution == Distribution(0.8, 3, 0.9, 0.05, 1.0)
            assert not one.distribution.is_plain
            # Renormalised over fewer tokens: never less likely than under the whole distribution.
            assert bool((torch.tensor(one.logprobs) >= score[i][j] - 1e-5).all())


def test_adapters_on_the_head_are_sampled_with() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(zoo.tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    sampler = LocalSampler(Engine(policy_of(model)), Words())
    groups = sampler.sample(PROMPTS[:3], 2, SamplingConfig(max_tokens=8), seed=0)
    assert worst_gap(sampler, groups, 1.0) <= 1e-4
    bare = sampler_of("llama").sample(PROMPTS[:3], 2, SamplingConfig(max_tokens=8), seed=0)
    assert ids_of(bare) != ids_of(groups)


def test_sampling_leaves_training_mode_and_draws_without_gradient() -> None:
    model = zoo.tiny_model("gpt2")
    sampler = LocalSampler(Engine(policy_of(model, gradient_checkpointing=True)), Words())
    sampler.engine.policy.train_mode(True)
    groups = sampler.sample(PROMPTS[:1], 2, SamplingConfig(max_tokens=4), seed=0)
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert worst_gap(sampler, groups, 1.0) <= 1e-4
