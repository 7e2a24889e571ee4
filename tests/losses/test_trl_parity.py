"""Our losses against TRL 1.16's own trainers on the same token ids, masks, advantages and old log-probs.

The trainer is built on a tiny random Qwen3 and only its loss method runs: nothing is sampled. Our side takes
log-probs from plain padded full logits of the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import pytest
import torch
import trl
from torch import Tensor
from trl.trainer.rloo_trainer import add_fused_lm_head

from preftune.losses import Denominators, TokenBatch, clipped_policy_gradient
from preftune.losses.reduce import sequence_sums
from preftune.objectives import PRESETS as NAMED
from preftune.signals import group_advantages, normalized_advantages, token_rewards

PAD, EOS, VOCAB = 0, 1, 40
PROMPT_LENGTHS = [5, 5, 3, 3]
LENGTHS = [6, 2, 4, 1]
MAX_TOKENS = 9


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, VOCAB)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def tiny_model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=PAD,
        eos_token_id=EOS,
        initializer_range=0.3,  # far from uniform, so that ratios and KLs are worth comparing
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(scope="module")
def grpo(folder):
    """One GRPOTrainer for all loss types: its loss reads its choices from attributes, which each test sets."""
    args = trl.GRPOConfig(
        output_dir=str(folder / "grpo"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_completion_length=MAX_TOKENS,
        gradient_checkpointing=False,
        beta=0.0,
    )
    data = datasets.Dataset.from_dict({"prompt": ["w3 w4", "w5"]})
    trainer = trl.GRPOTrainer(tiny_model(), zero, args, train_dataset=data, processing_class=tokenizer())
    trainer.current_gradient_accumulation_steps = 1  # the loop sets it at each step; here no loop runs
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def rloo(folder):
    args = trl.RLOOConfig(
        output_dir=str(folder / "rloo"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=MAX_TOKENS,
        gradient_checkpointing=False,
        beta=0.0,
    )
    data = datasets.Dataset.from_dict({"prompt": ["w3 w4", "w5"]})
    trainer = trl.RLOOTrainer(tiny_model(), zero, args, train_dataset=data, processing_class=tokenizer())
    trainer.model.train()
    return trainer


def zero(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(prompts)


@dataclass
class Inputs:
    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor

    def trl(self, old: bool, weights: Tensor) -> dict[str, Tensor]:
        mask = self.completion_mask * weights[:, None].long()  # what mask_truncated_completions does
        out = {
            "prompt_ids": self.prompt_ids,
            "prompt_mask": self.prompt_mask,
            "completion_ids": self.completion_ids,
            "completion_mask": mask,
            "advantages": self.advantages,
            "ref_per_token_logps": self.reference,
            "num_items_in_batch": mask.sum(),
        }
        if old:
            out["old_per_token_logps"] = self.old
        return out


@pytest.fixture(scope="module")
def inputs(grpo) -> Inputs:
    """Two prompts with two completions each; the policy has moved on from the sampler and the reference."""
    generator = torch.Generator().manual_seed(3)
    rows, width, depth = len(LENGTHS), max(LENGTHS), max(PROMPT_LENGTHS)
    prompt_ids = torch.full((rows, depth), PAD)
    completion_ids = torch.full((rows, width), PAD)
    for row, (before, after) in enumerate(zip(PROMPT_LENGTHS, LENGTHS, strict=True)):
        prompt_ids[row, depth - before :] = torch.randint(2, VOCAB, (before,), generator=generator)
        completion_ids[row, :after] = torch.randint(2, VOCAB, (after,), generator=generator)
    prompt_ids[1], prompt_ids[3] = prompt_ids[0], prompt_ids[2]
    prompt_mask = torch.stack([(torch.arange(depth) >= depth - n).long() for n in PROMPT_LENGTHS])
    completion_mask = torch.stack([(torch.arange(width) < n).long() for n in LENGTHS])
    with torch.no_grad():
        logprobs = padded_logprobs(grpo.model, prompt_ids, prompt_mask, completion_ids, completion_mask)
    return Inputs(
        prompt_ids,
        prompt_mask,
        completion_ids,
        completion_mask,
        old=logprobs + 0.3 * torch.randn(rows, width, generator=generator),
        reference=logprobs + 0.5 * torch.randn(rows, width, generator=generator),
        advantages=torch.tensor([0.9, -0.9, -0.6, 0.6]),
    )


def padded_logprobs(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> Tensor:
    """log π of each completion token, (rows, width), from full logits with left-padded prompts."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    # Positions count only real tokens, though rotary positions are relative and TRL's padded ones agree.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    width = completion_ids.shape[1]
    logprobs = logits[:, -width - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(-1, completion_ids[..., None]).squeeze(-1)


def flat(padded: Tensor) -> Tensor:
    return torch.cat([padded[row, :length] for row, length in enumerate(LENGTHS)])


def ours(model: Any, inputs: Inputs, old: bool, weights: Tensor, **choices: Any) -> Tensor:
    logprobs = padded_logprobs(
        model, inputs.prompt_ids, inputs.prompt_mask, inputs.completion_ids, inputs.completion_mask
    )
    batch = TokenBatch(
        logprobs_T=flat(logprobs),
        sequence_T=torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
        num_sequences=len(LENGTHS),
        weights_S=weights,
        old_logprobs_T=flat(inputs.old) if old else None,
        reference_logprobs_T=flat(inputs.reference),
        advantages_S=inputs.advantages,
    )
    totals = Denominators.count(LENGTHS, weights.tolist(), MAX_TOKENS)
    return clipped_policy_gradient(batch, totals, **choices).loss


def gradients(model: Any, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


def agree(model: Any, theirs: Tensor, mine: Tensor) -> None:
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-5)
    expected, got = gradients(model, theirs), gradients(model, mine)
    assert expected.norm() > 1e-3, "nothing to compare"
    assert (got - expected).norm() / expected.norm() < 1e-4


# preset -> TRL's attributes, our choices
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": (
        {"loss_type": "dapo"},
        {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "token-mean"},
    ),
    "grpo-original": (
        {"loss_type": "grpo", "beta": 0.04},
        {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "sequence-mean", "beta": 0.04},
    ),
    "dr-grpo": (
        {"loss_type": "dr_grpo"},
        {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "constant"},
    ),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"clip_low": 0.2, "clip_high": 0.28, "aggregate": "token-mean"},
    ),
    "dapo with a strong penalty": (
        {"loss_type": "dapo", "beta": 1.5},
        {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "token-mean", "beta": 1.5},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregate": "sequence-mean"},
    ),
    "gspo, wide": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.9, "epsilon_high": 9.0},
        {"ratio": "sequence", "clip_low": 0.9, "clip_high": 9.0, "aggregate": "sequence-mean"},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"clip": "cispo", "clip_high": 5.0, "aggregate": "token-mean"},
    ),
    "cispo, capped": (
        {"loss_type": "cispo", "epsilon_high": 1.05},
        {"clip": "cispo", "clip_high": 1.05, "aggregate": "token-mean"},
    ),
}
DEFAULTS = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0}
RLOO = {"ratio": "sequence-sum", "clip_low": 0.2, "clip_high": 0.2, "aggregate": "sequence-mean"}


@pytest.mark.parametrize("name", [name for name in NAMED if name != "ppo"])  # TRL has no PPO since 1.12
def test_a_preset_is_what_is_compared_here(name):
    """The numbers behind a preset's name are those that the tests below compare with TRL."""
    compared = {"clip": "ppo", "ratio": "token", "clip_low": None, "clip_high": None}
    compared |= RLOO if name == "rloo" else PRESETS[name][1]
    compared["advantage"] = {"dr-grpo": "group-mean", "rloo": "leave-one-out"}.get(name, "group-std")
    preset = NAMED[name]
    assert {field: getattr(preset, field) for field in compared} == compared
    if name != "rloo":  # whose penalty is in its reward
        assert preset.beta == compared.get("beta", 0.0)


@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "a masked row"])
@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("preset", PRESETS)
def test_grpo_family(grpo, inputs, preset, old, masked, monkeypatch):
    theirs, choices = PRESETS[preset]
    for name, value in {**DEFAULTS, **theirs}.items():
        monkeypatch.setattr(grpo, name, value)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0]) if masked else torch.ones(4)
    loss = grpo._compute_loss(grpo.model, inputs.trl(old, weights))
    agree(grpo.model, loss, ours(grpo.model, inputs, old, weights, **choices))


@pytest.mark.parametrize("clip", [0.2, 0.9])
def test_rloo(rloo, inputs, clip, monkeypatch):
    monkeypatch.setattr(rloo, "epsilon_low", clip)
    monkeypatch.setattr(rloo, "epsilon_high", clip)
    batch = inputs.trl(False, torch.ones(4))
    batch["old_logps"] = (inputs.old * inputs.completion_mask).sum(1)
    loss = rloo._compute_loss(rloo.model, batch)
    choices = {**RLOO, "clip_low": clip, "clip_high": clip}
    agree(rloo.model, loss, ours(rloo.model, inputs, True, torch.ones(4), **choices))


def test_a_penalty_beside_a_sequence_ratio_differs_on_purpose(grpo, inputs, monkeypatch):
    """TRL spreads its sequence ratio over the tokens' KLs; ours keeps the token ratio, whose gradient is the KL's."""
    for name, value in {**DEFAULTS, "loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.5}.items():
        monkeypatch.setattr(grpo, name, value)
    theirs = grpo._compute_loss(grpo.model, inputs.trl(False, torch.ones(4)))
    choices = {"ratio": "sequence", "clip_low": 0.2, "clip_high": 0.2, "aggregate": "sequence-mean", "beta": 0.5}
    mine = ours(grpo.model, inputs, False, torch.ones(4), **choices)
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-4)  # on-policy both ratios are 1
    expected, got = gradients(grpo.model, theirs), gradients(grpo.model, mine)
    assert (got - expected).norm() / expected.norm() > 0.01


@pytest.mark.parametrize(("scale", "kind"), [("group", "group-std"), ("batch", "batch-std"), ("none", "group-mean")])
def test_grpo_advantages(grpo, scale, kind, monkeypatch):
    """TRL's own scoring of a sampled batch, with its sampler and rewards replaced by given ones."""
    scores = torch.tensor([0.3, 1.7, -2.0, 0.1])
    monkeypatch.setattr(grpo, "scale_rewards", scale)
    monkeypatch.setattr(grpo, "_calculate_rewards", lambda *_: scores[:, None].clone())
    out = grpo._generate_and_score_completions([{"prompt": p} for p in ("w3 w4", "w3 w4", "w5", "w5")])
    mine = group_advantages(scores, torch.tensor([0, 0, 1, 1]), kind)
    torch.testing.assert_close(mine, out["advantages"], rtol=1e-5, atol=1e-6)


def test_rloo_advantages(rloo, monkeypatch):
    scores = torch.tensor([0.3, 1.7, -2.0, 0.1])
    monkeypatch.setattr(rloo, "_calculate_rewards", lambda *_: scores[:, None].clone())
    out = rloo._generate_and_score_completions([{"prompt": p} for p in ("w3 w4", "w3 w4", "w5", "w5")])
    mine = group_advantages(scores, torch.tensor([0, 0, 1, 1]), "leave-one-out")
    torch.testing.assert_close(mine, out["advantages"], rtol=1e-5, atol=1e-6)


PROMPTS = [{"prompt": "w3 w4"}, {"prompt": "w3 w4"}, {"prompt": "w5"}, {"prompt": "w5"}]
GROUPS = torch.tensor([0, 0, 1, 1])


def lists(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def moved_on(model: Any) -> list[Tensor]:
    """Moves the weights as an update would, and returns them as they were."""
    generator = torch.Generator().manual_seed(5)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return before


def put_back(model: Any, before: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_rloo_with_the_kl_in_the_reward(rloo, inputs, beta, old, monkeypatch):
    """The whole of RLOO: TRL's reward − β·KL, leave-one-out and loss against token_rewards and ours."""
    scores = torch.tensor([0.3, 1.7, -2.0, 0.1])
    reference = tiny_model().eval()
    moved_on(reference)
    add_fused_lm_head(reference, temperature=rloo.temperature)  # as its constructor does
    ids = [lists(inputs.prompt_ids, inputs.prompt_mask), lists(inputs.completion_ids, inputs.completion_mask)]
    monkeypatch.setattr(rloo, "beta", beta)
    monkeypatch.setattr(rloo, "ref_model", reference)
    monkeypatch.setattr(rloo, "_generate", lambda prompts: (*ids, [""] * len(prompts)))
    monkeypatch.setattr(rloo, "_calculate_rewards", lambda *_: scores[:, None].clone())
    theirs = rloo._generate_and_score_completions(PROMPTS)

    sequences = (inputs.prompt_ids, inputs.prompt_mask, inputs.completion_ids, inputs.completion_mask)
    with torch.no_grad():
        sampled, anchor = (flat(padded_logprobs(m, *sequences)) for m in (rloo.model, reference))
    owners = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    rewards = token_rewards(scores, torch.tensor(LENGTHS), sampled, anchor, beta)
    advantages = group_advantages(sequence_sums(rewards, owners, 4), GROUPS, "leave-one-out")
    torch.testing.assert_close(advantages, theirs["advantages"], rtol=1e-5, atol=1e-5)
    without = group_advantages(scores, GROUPS, "leave-one-out")
    assert (advantages - without).abs().max() > 0.5 * beta, "the KL must matter here"

    before = moved_on(rloo.model) if old else None
    try:
        loss = rloo._compute_loss(rloo.model, theirs)
        batch = TokenBatch(
            logprobs_T=flat(padded_logprobs(rloo.model, *sequences)),
            sequence_T=owners,
            num_sequences=4,
            weights_S=torch.ones(4),
            old_logprobs_T=sampled if old else None,
            advantages_S=advantages,
        )
        mine = clipped_policy_gradient(batch, Denominators.count(LENGTHS, [1.0] * 4, MAX_TOKENS), **RLOO).loss
        agree(rloo.model, loss, mine)
    finally:
        if before is not None:
            put_back(rloo.model, before)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("preset", ["grpo", "grpo-original", "dr-grpo", "dapo", "gspo, wide", "cispo"])
def test_truncated_importance_sampling(grpo, inputs, preset, old, beta, monkeypatch):
    """TRL scores samples whose sampler disagrees with its trainer, and corrects: against sampler_cap."""
    theirs, choices = PRESETS[preset]
    settings = {**DEFAULTS, **theirs, "beta": 0.0, "use_vllm": True, "vllm_importance_sampling_correction": True}
    settings |= {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0}
    settings |= {"vllm_importance_sampling_clip_min": None}
    for name, value in settings.items():
        monkeypatch.setattr(grpo, name, value)
    sequences = (inputs.prompt_ids, inputs.prompt_mask, inputs.completion_ids, inputs.completion_mask)
    with torch.no_grad():
        trainer = padded_logprobs(grpo.model, *sequences)
    sampler = trainer - torch.linspace(-1.5, 1.5, trainer.numel()).view_as(trainer)
    assert (trainer - sampler).exp().gt(2.0).any() and (trainer - sampler).exp().lt(0.5).any()
    kept = [row[:length].tolist() for row, length in zip(sampler, LENGTHS, strict=True)]
    ids = [lists(inputs.prompt_ids, inputs.prompt_mask), lists(inputs.completion_ids, inputs.completion_mask)]
    made = (*ids, None, [""] * 4, kept, {}, None, None)
    monkeypatch.setattr(grpo, "_generate", lambda prompts: made)
    monkeypatch.setattr(grpo, "_calculate_rewards", lambda *_: torch.tensor([[0.3], [1.7], [-2.0], [0.1]]))
    batch = grpo._generate_and_score_completions(PROMPTS)
    # TRL's `_generate` counts what it made; here nothing did.
    batch |= {"num_items_in_batch": torch.tensor(sum(LENGTHS)), "ref_per_token_logps": inputs.reference}
    monkeypatch.setattr(grpo, "beta", beta)

    before = moved_on(grpo.model) if old else None
    try:
        loss = grpo._compute_loss(grpo.model, batch)
        choices = {**choices, "beta": beta}

        def corrected(cap: float | None) -> Tensor:
            mine = TokenBatch(
                logprobs_T=flat(padded_logprobs(grpo.model, *sequences)),
                sequence_T=torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)),
                num_sequences=4,
                weights_S=torch.ones(4),
                old_logprobs_T=flat(trainer) if old else None,
                reference_logprobs_T=flat(inputs.reference),
                sampler_logprobs_T=torch.tensor([x for row in kept for x in row]),
                advantages_S=batch["advantages"],
            )
            totals = Denominators.count(LENGTHS, [1.0] * 4, MAX_TOKENS)
            return clipped_policy_gradient(mine, totals, **choices, sampler_cap=cap).loss

        if beta == 0.0:
            agree(grpo.model, loss, corrected(2.0))
            assert abs(corrected(None).item() - loss.item()) > 1e-3, "the correction must matter here"
        else:
            # On purpose: our penalty is corrected like all else (tests/losses/test_kl_toy.py says why); TRL's is not.
            assert abs(corrected(2.0).item() - loss.item()) > 1e-3
    finally:
        if before is not None:
            put_back(grpo.model, before)


NAN = float("nan")


@pytest.mark.parametrize(
    "rows",
    [
        # Three rewards of two groups of four: scales far apart; the third does not apply everywhere.
        [[0, 10, 1], [1, -30, NAN], [0, 20, 3], [1, 5, NAN], [1, 7, 2], [0, 7, 2.5], [0, 9, 0], [0, -4, 1]],
        # The last applies to one completion of a group, and to none of another; the second is equal in a group.
        [[0, 3, NAN], [1, 3, 5], [2, 3, NAN], [5, 3, NAN], [0, 1, NAN], [1, 2, NAN], [2, 4, NAN], [4, 3, NAN]],
        # No reward applies to two completions, nor in a whole group.
        [[0, 1, 2], [NAN, NAN, NAN], [3, 1, 1], [1, 0, 0], [2, 4, 1], [NAN, 2, 1], [NAN, NAN, NAN], [1, 0, 3]],
        [[0, 1, 2], [5, 2, 1], [3, 1, 1], [1, 0, 0], [NAN] * 3, [NAN] * 3, [NAN] * 3, [NAN] * 3],
    ],
)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 0.5, -1.0], [1.0, 0.0, 3.0]])
def test_gdpo_advantages(grpo, inputs, rows, weights, monkeypatch):
    scores, weights = torch.tensor(rows), torch.tensor(weights)
    monkeypatch.setattr(grpo, "multi_objective_aggregation", "normalize_then_sum")
    monkeypatch.setattr(grpo, "num_generations", 4)
    monkeypatch.setattr(grpo, "reward_funcs", [zero] * 3)
    monkeypatch.setattr(grpo, "reward_func_names", ["one", "two", "three"])
    monkeypatch.setattr(grpo, "reward_weights", weights)
    monkeypatch.setattr(grpo, "_calculate_rewards", lambda *_: scores.clone())
    ids = [lists(inputs.prompt_ids, inputs.prompt_mask), lists(inputs.completion_ids, inputs.completion_mask)]
    made = (*(x + x for x in ids), None, [""] * 8, None, {}, None, None)
    monkeypatch.setattr(grpo, "_generate", lambda prompts: made)
    out = grpo._generate_and_score_completions([{"prompt": "w5"}] * 8)["advantages"]
    mine = normalized_advantages(scores, weights, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    torch.testing.assert_close(mine, out, rtol=1e-5, atol=2e-6)
    assert out.abs().max() > 0.5, "nothing to compare"
    assert mine[scores.isnan().all(1)].tolist() == [0.0] * int(scores.isnan().all(1).sum())  # exactly
