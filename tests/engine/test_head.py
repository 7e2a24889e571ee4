"""Reading a model's head: against the model's own forward, with and without adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from preftune.engine.head import Head, ModuleHead, decoder_of, probe_head, read_head
from preftune.engine.logprobs import fused_logprobs
from preftune.errors import ModelError
from tests.engine import zoo

HEADS = {"gemma2": (1.0, 6.0), "granite": (0.25, None), "cohere": (0.5, None), "falcon_h1": (0.6, None)}
"""(scale, softcap) of the kinds where they are not (1, None)."""


def ids() -> Tensor:
    return torch.randint(3, zoo.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))


def own_logprobs(model: Any, ids_BL: Tensor) -> Tensor:
    """Of each next token, through the model's own full logits."""
    logprobs = torch.log_softmax(model(input_ids=ids_BL).logits[:, :-1], dim=-1)
    return logprobs.gather(2, ids_BL[:, 1:, None]).flatten()


def fused(model: Any, ids_BL: Tensor) -> Tensor:
    head = read_head(model)
    states = decoder_of(model)(input_ids=ids_BL).last_hidden_state[:, :-1].flatten(0, 1)
    options: dict[str, Any] = {"bias_V": head.bias, "scale": head.scale, "softcap": head.softcap}
    return fused_logprobs(states, head.weight(), ids_BL[:, 1:].flatten(), **options)[0]


def lora(model: Any, seed: int = 0, **options: Any) -> Any:
    """The model with a LoRA adapter whose B is not zero."""
    wrapped = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    shake(wrapped, seed)
    return wrapped


def shake(model: Any, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_zoo_heads_are_read_right(kind: str) -> None:
    model = zoo.tiny_model(kind)
    head = read_head(model)
    assert (head.scale, head.softcap) == HEADS.get(kind, (1.0, None))
    assert head.weight() is model.get_output_embeddings().weight
    assert probe_head(model, head) < 2e-5
    with torch.no_grad():
        torch.testing.assert_close(fused(model, ids()), own_logprobs(model, ids()), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere", "falcon_h1"])
def test_probe_sees_a_missing_scale_or_cap(kind: str) -> None:
    model = zoo.tiny_model(kind)
    # Even where the model's own logits are so small that leaving it out hardly shows.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-3)
    assert probe_head(model, read_head(model)) < 2e-5
    assert probe_head(model, Head(model.get_output_embeddings())) > 0.1


def test_hyperclovax_multiplies_where_granite_divides() -> None:
    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = tf.HyperCLOVAXConfig(**size, num_attention_heads=2, num_key_value_heads=1, logits_scaling=0.25)
    model = tf.HyperCLOVAXForCausalLM(config).eval()
    assert read_head(model).scale == 0.25
    assert probe_head(model, read_head(model)) < 2e-5
    mini = zoo.tiny_model("granite")
    assert read_head(mini).scale == 1 / mini.config.logits_scaling


def test_head_bias() -> None:
    torch.manual_seed(0)
    config = tf.PhiConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = tf.PhiForCausalLM(config).eval()
    nn.init.normal_(model.lm_head.bias)
    head = read_head(model)
    assert head.bias is model.lm_head.bias
    assert probe_head(model, head) < 2e-5


def test_a_transform_before_the_projection_is_found_by_the_probe() -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = tf.BertLMHeadModel(tf.BertConfig(**size, num_attention_heads=2, is_decoder=True)).eval()
    assert probe_head(model, read_head(model)) > 0.1


def test_probe_restores_the_mode_and_leaves_no_hook() -> None:
    model = zoo.tiny_model("llama").train()
    probe_head(model, read_head(model))
    assert model.training and not model.model._forward_hooks


def test_no_adapter_makes_no_copy() -> None:
    model = zoo.tiny_model("llama")
    # An adapter elsewhere leaves the head alone.
    wrapped = lora(model, target_modules=["q_proj"])
    assert read_head(wrapped).weight() is model.lm_head.weight
    assert decoder_of(wrapped) is model.model


@pytest.mark.parametrize("kind", ["llama", "cohere", "gemma2"])
def test_lora_on_the_head(kind: str) -> None:
    model = zoo.tiny_model(kind)
    plain = own_logprobs(model, ids()).detach()
    wrapped = lora(model, target_modules=["lm_head", "q_proj", "down_proj"], lora_bias=False)
    want, got = own_logprobs(wrapped, ids()), fused(wrapped, ids())
    assert (want - plain).abs().max() > 0.05
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    assert probe_head(wrapped, read_head(wrapped)) < 5e-5
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    coefficients = torch.linspace(-1.0, 1.0, len(want))
    for mine, theirs in zip(
        torch.autograd.grad((got * coefficients).sum(), trained),
        torch.autograd.grad((want * coefficients).sum(), trained),
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_disabling_the_adapter_gives_the_base_model() -> None:
    model = zoo.tiny_model("llama")
    plain = own_logprobs(model, ids()).detach()
    wrapped = lora(model, target_modules=["lm_head", "v_proj"])
    head = read_head(wrapped)  # taken before, used after
    with wrapped.disable_adapter():
        assert head.weight() is model.lm_head.base_layer.weight
        torch.testing.assert_close(fused(wrapped, ids()), plain, atol=2e-5, rtol=0)
    assert (fused(wrapped, ids()) - plain).abs().max() > 0.05


def test_the_active_adapter_counts() -> None:
    wrapped = lora(zoo.tiny_model("llama"), target_modules=["lm_head"])
    wrapped.add_adapter("other", LoraConfig(r=2, lora_alpha=1, target_modules=["lm_head", "q_proj"]))
    shake(wrapped, seed=1)
    seen = []
    for active in ("default", "other", ["default", "other"]):
        wrapped.base_model.set_adapter(active)
        seen.append(own_logprobs(wrapped, ids()).detach())
        torch.testing.assert_close(fused(wrapped, ids()).detach(), seen[-1], atol=3e-5, rtol=0)
    assert (seen[0] - seen[1]).abs().max() > 0.05 and (seen[1] - seen[2]).abs().max() > 0.05


def test_merged_adapter() -> None:
    wrapped = lora(zoo.tiny_model("llama"), target_modules=["lm_head", "q_proj"])
    want = own_logprobs(wrapped, ids()).detach()
    wrapped.merge_adapter()
    torch.testing.assert_close(fused(wrapped, ids()).detach(), want, atol=5e-5, rtol=0)
    with wrapped.disable_adapter(), pytest.raises(ModelError, match="unmerge"):
        read_head(wrapped)


def test_lora_bias_on_the_head() -> None:
    wrapped = lora(zoo.tiny_model("llama"), target_modules=["lm_head"], lora_bias=True)
    torch.testing.assert_close(fused(wrapped, ids()), own_logprobs(wrapped, ids()), atol=2e-5, rtol=0)


def test_fully_trained_head_in_an_adapter() -> None:
    model = zoo.tiny_model("llama")
    plain = own_logprobs(model, ids()).detach()
    wrapped = lora(model, target_modules=["q_proj"], modules_to_save=["lm_head"])
    want = own_logprobs(wrapped, ids())
    assert (want - plain).abs().max() > 0.05
    got = fused(wrapped, ids())
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    copy = model.lm_head.modules_to_save["default"].weight
    assert torch.autograd.grad(got.sum(), copy)[0].abs().max() > 0.0
    with wrapped.disable_adapter():
        torch.testing.assert_close(fused(wrapped, ids()), plain, atol=2e-5, rtol=0)


def test_fp32_adapter_over_a_bf16_head() -> None:
    model = zoo.tiny_model("llama").bfloat16()
    wrapped = lora(model, target_modules=["lm_head"])
    layer = model.lm_head
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == torch.float32
    want = (layer.base_layer.weight.double() + 2.0 * (b.double() @ a.double())).to(torch.bfloat16)
    got = read_head(wrapped).weight()
    assert got.dtype == torch.bfloat16
    assert (got == want).float().mean() > 0.999  # summed in fp32 and rounded once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "only plain LoRA"),
        ({"lora_dropout": 0.1}, "set lora dropout to 0"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3]}}, "not a plain linear layer"),
    ],
)
def test_adapters_that_are_no_sum_are_refused(options: dict[str, Any], message: str) -> None:
    wrapped = get_peft_model(zoo.tiny_model("llama"), LoraConfig(**{"r": 2, "target_modules": ["lm_head"], **options}))
    wrapped.train()
    with pytest.raises(ModelError, match=message):
        read_head(wrapped)


def test_models_that_cannot_work_are_refused() -> None:
    model = zoo.tiny_model("llama")
    with pytest.raises(ModelError, match="LlamaModel has no output head"):
        read_head(model.model)
    with pytest.raises(ModelError, match="LlamaModel has no inner model"):
        decoder_of(model.model)
    prompted = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="use LoRA"):
        decoder_of(prompted)
    quantised = zoo.tiny_model("llama")
    quantised.lm_head.weight = nn.Parameter(quantised.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised \(torch.int8\)"):
        read_head(quantised)


@pytest.mark.parametrize("chunk_elements", [1, 1 << 24])
def test_module_head_agrees_with_the_fused_path(chunk_elements: int) -> None:
    model = zoo.tiny_model("gemma2")
    rows, mask = ids(), torch.ones(2, 9, dtype=torch.int64)
    rows[1, 6:], mask[1, 6:] = 0, 0  # the second row is shorter
    source = torch.tensor([2, 3, 9, 13])  # flattened: row 0 places 2 and 3, row 1 places 0 and 4
    target = rows.flatten()[source + 1]
    got = ModuleHead(model).logprobs(
        rows, mask, source, target, temperature=0.7, with_entropy=True, chunk_elements=chunk_elements
    )
    head = read_head(model)
    states = decoder_of(model)(input_ids=rows, attention_mask=mask).last_hidden_state.flatten(0, 1)[source]
    want = fused_logprobs(states, head.weight(), target, softcap=head.softcap, temperature=0.7, with_entropy=True)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    grads = []
    for logprobs, entropy in (got, want):
        assert entropy is not None
        grads.append(torch.autograd.grad(((logprobs + 0.3 * entropy) * weights).sum(), model.model.norm.weight)[0])
    torch.testing.assert_close(got[0], want[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(got[1], want[1], atol=2e-5, rtol=0)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="113 logits"):
        ModuleHead(model).logprobs(rows, mask, source, target + 113)
