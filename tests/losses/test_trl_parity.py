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

from preftune.losses import Denominators, TokenBatch, clipped_policy_gradient
from preftune.signals import group_advantages

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
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-4)
    expected, got = gradients(model, theirs), gradients(model, mine)
    assert expected.norm() > 1e-3, "nothing to compare"
    assert (got - expected).norm() / expected.norm() < 1e-3


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
    mine = ours(
        rloo.model,
        inputs,
        True,
        torch.ones(4),
        ratio="sequence-sum",
        clip_low=clip,
        clip_high=clip,
        aggregate="sequence-mean",
    )
    agree(rloo.model, loss, mine)


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
