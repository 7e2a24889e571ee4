"""Tiny random models of many architectures, for tests that compare two ways of computing the same thing.

Everything in them is random and large enough to matter: norms are away from 1, biases away from 0, attention far
from uniform, so that a wrong position, mask, scale or soft-cap moves the outputs by much more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

SHARED_KINDS = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "olmo2", "smollm3", "qwen3_moe",
    "granite", "cohere", "gpt_neox", "opt", "mixtral",
)  # fmt: skip
"""Kinds for which shared-prompt attention is exact."""

FALLBACK_KINDS = (
    "phi3_longrope", "llama_dynamic", "gpt_oss", "bloom", "mamba", "mamba2", "lfm2", "qwen3_next", "falcon_h1",
)  # fmt: skip
"""Kinds for which it would be silently wrong: positions that depend on the row's length, attention sinks, ALiBi,
state-space layers, convolutions and hybrids."""

KINDS = SHARED_KINDS + FALLBACK_KINDS

VOCABULARY = 113

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_WINDOW: dict[str, Any] = {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 4}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_HALF_HEAD = 4  # rotary frequencies of a head of 8


def _gemma3(**changes: Any) -> Any:
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**{**_PLAIN, **_WINDOW, "query_pre_attn_scalar": 8, "layer_types": _ALTERNATING, **changes})
    )


_BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_PLAIN)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_PLAIN, tie_word_embeddings=True)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_PLAIN, head_dim=8, tie_word_embeddings=True)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_PLAIN, head_dim=8, sliding_window=8)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            **{**_PLAIN, **_WINDOW},
            query_pre_attn_scalar=8,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=6.0,
            layer_types=_ALTERNATING,
        )
    ),
    "gemma3": _gemma3,
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_PLAIN)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(
            **_TOKENS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            n_inner=48,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**_PLAIN)),
    "smollm3": lambda: tf.SmolLM3ForCausalLM(
        tf.SmolLM3Config(**{**_PLAIN, "num_hidden_layers": 3}, no_rope_layers=[1, 0, 1])
    ),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**_PLAIN, **_MOE, head_dim=8, num_experts=4)),
    "granite": lambda: tf.GraniteForCausalLM(
        tf.GraniteConfig(
            **_PLAIN, logits_scaling=4.0, attention_multiplier=0.3, residual_multiplier=0.8, embedding_multiplier=2.0
        )
    ),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**_PLAIN, logit_scale=0.5, use_qk_norm=True)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_without_kv())),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            **_TOKENS,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            word_embed_proj_dim=24,
            dropout=0.0,
        )
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(**_PLAIN, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    ),
    "phi3_longrope": lambda: tf.Phi3ForCausalLM(
        tf.Phi3Config(
            **_PLAIN,
            original_max_position_embeddings=16,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * _HALF_HEAD,
                "long_factor": [1.0, 2.0, 4.0, 8.0],
                "original_max_position_embeddings": 16,
            },
        )
    ),
    "llama_dynamic": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(
            **{**_PLAIN, "max_position_embeddings": 16},
            rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        )
    ),
    "gpt_oss": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(
            **{**_PLAIN, **_WINDOW},
            layer_types=_ALTERNATING,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(**_TOKENS, hidden_size=32, n_layer=2, n_head=4)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(**_TOKENS, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4)
    ),
    "mamba2": lambda: tf.Mamba2ForCausalLM(
        tf.Mamba2Config(
            **_TOKENS,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=2,
            head_dim=16,
            num_heads=4,
            n_groups=2,
            chunk_size=16,
        )
    ),
    "lfm2": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(
            **{**_PLAIN, "num_hidden_layers": 4},
            conv_L_cache=3,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
        )
    ),
    "qwen3_next": lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **{**_PLAIN, **_MOE, "num_hidden_layers": 4},
            head_dim=8,
            num_experts=4,
            shared_expert_intermediate_size=24,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            layer_types=["linear_attention", "full_attention"] * 2,
        )
    ),
    "falcon_h1": lambda: tf.FalconH1ForCausalLM(
        tf.FalconH1Config(
            **_PLAIN,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=16,
            lm_head_multiplier=0.6,
        )
    ),
}


def _without_kv() -> dict[str, Any]:
    return {name: value for name, value in _PLAIN.items() if name != "num_key_value_heads"}


def tiny_model(kind: str, seed: int = 0) -> Any:
    """A tiny random causal language model in fp32 and eval mode, without dropout; equal for equal seeds.

    Args:
        kind: one of `KINDS`.
        seed: of all weights. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[kind]().float().eval()
        _randomise(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _randomise(model: Any, generator: torch.Generator) -> None:
    """Matrices with gain 1.2 per input, norms' weights around their start, biases and sinks away from 0.

    State-space parameters (decay rates, step sizes) keep their own start: far from it they overflow.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("A_log", "D", "dt_bias") or "dt_proj" in name:
            continue
        if parameter.dim() >= 2:
            embedding = "embed" in name or "wte" in name or "wpe" in name
            parameter.copy_(noise * (0.5 if embedding else 1.2 / parameter.shape[-1] ** 0.5))
        elif leaf == "weight":
            parameter.add_(noise * 0.3)
        else:
            parameter.add_(noise * 0.3 if leaf == "bias" else noise)
    model.tie_weights()
