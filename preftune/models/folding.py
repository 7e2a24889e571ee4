"""Adapters folded into their base, for a while or in a file, and two adapters written as one.

The live model is never changed by writing: training may go on after a save, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preftune.errors import ModelError


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name without the peft wrapper, LoRA layer) of a peft model, in the model's order."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Within it the active adapters are folded into the weights, as in the merged model that users run.

    The weights themselves are put aside and put back, not computed back: adding and subtracting an update rounds.
    Folding works on copies, so an output head that shares its weight with the embeddings gets one of its own.
    """
    aside: list[tuple[nn.Module, str, nn.Parameter]] = []
    for _, layer in _lora_layers(model):
        base = layer.get_base_layer()
        # a LoRA bias is folded into the layer's own; an adapter on experts names their parameter
        for name in {"weight", "bias", getattr(layer, "parameter_name", "weight")}:
            own = getattr(base, name, None)
            if isinstance(own, nn.Parameter) and not any(base is b and name == n for b, n, _ in aside):
                aside.append((base, name, own))
    try:
        for module, name, own in aside:
            setattr(module, name, nn.Parameter(own.detach().clone(), requires_grad=False))
        model.merge_adapter()
        yield
    finally:
        if any(layer.merged for _, layer in _lora_layers(model)):
            model.unmerge_adapter()
        for module, name, own in aside:
            setattr(module, name, own)


def folded_bytes(model: Any) -> float:
    """Memory of the copies that `folded` works on; infinite where folding would round the update (weights of 16 bits, a
    quantised base), and where the adapters do not act, or are folded already."""
    total = 0
    for _, layer in _lora_layers(model):
        if layer.disable_adapters or layer.merged:
            return math.inf
        weight = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"), None)
        if not isinstance(weight, nn.Parameter) or weight.dtype not in (torch.float32, torch.float64):
            return math.inf
        total += weight.numel() * weight.element_size()
    return total


def merge_for_good(model: Any) -> Any:
    """The transformers model with the active adapters folded in, the wrapper gone; the model given is used up.

    A head that shared its weight with the embeddings gets its own where an adapter acted on one of them, and the
    config says so: peft would change both, and a loader would tie them again.
    """
    base = model.get_base_model()
    holders = Counter(id(p) for module in base.modules() for p in module.parameters(recurse=False))
    for _, layer in _lora_layers(model):
        inner = layer.get_base_layer()
        if isinstance(getattr(inner, "weight", None), nn.Parameter) and holders[id(inner.weight)] > 1:
            inner.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=inner.weight.requires_grad)
    whole = model.merge_and_unload()
    head, embeddings = whole.get_output_embeddings(), whole.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        for config in (whole.config, whole.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
    return whole


def save_folded(model: Any, folder: Path) -> None:
    """Write base and active adapters as one whole model, by way of a copy on the CPU."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", copy=True), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    merge_for_good(copy.deepcopy(model, memo)).save_pretrained(folder)


def check_plain(model: Any) -> None:
    """Whether `save_combined` can write this model's adapters; before any training.

    Raises:
        ModelError: an adapter on a kind of layer where two of them have no common form.
    """
    from peft.tuners.lora import Embedding, Linear

    for name, layer in _lora_layers(model):
        if not isinstance(layer, Linear | Embedding) or layer.lora_variant:
            raise ModelError(
                f"the adapter on {name} is a LoRA {type(layer).__name__}, and a new one on top can't be saved with it "
                "as one adapter. Use model.on_adapter: merge, or leave such layers out of model.lora.targets"
            )


@torch.no_grad()
def save_combined(model: Any, names: Sequence[str], folder: Path) -> None:
    """Write several active LoRA adapters as one on the same base: Σ sᵢ Bᵢ Aᵢ = [s₁B₁ s₂B₂ …] [A₁; A₂; …].

    Exact. The scales go into B, so alpha equals the rank everywhere; where only some of them adapt a layer, its rank
    is theirs (rank_pattern). `check_plain` has seen that every layer allows it.
    """
    import peft
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in _lora_layers(model):
        here = [n for n in names if n in layer.lora_A or n in layer.lora_embedding_A]
        if not here:
            continue
        embedding = here[0] in layer.lora_embedding_A
        downs = [layer.lora_embedding_A[n] if embedding else layer.lora_A[n].weight for n in here]
        ups = [layer.lora_embedding_B[n] if embedding else layer.lora_B[n].weight for n in here]
        down = torch.cat([d.cpu() for d in downs])
        up = torch.cat([u.cpu() * layer.scaling[n] for n, u in zip(here, ups, strict=True)], dim=1)
        for part, value in (("A", down), ("B", up)):
            leaf = f"lora_embedding_{part}" if embedding else f"lora_{part}.weight"
            tensors[f"base_model.model.{name}.{leaf}"] = value.contiguous()
        ranks[name] = len(down)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    first, last = model.peft_config[names[0]], model.peft_config[names[-1]]
    settings = peft.LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        lora_dropout=last.lora_dropout,
        target_modules=_targets(model, set(ranks)),
        fan_in_fan_out=first.fan_in_fan_out,
        task_type=first.task_type,
        inference_mode=True,
    )
    settings.base_model_name_or_path = first.base_model_name_or_path
    settings.revision = first.revision
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings.save_pretrained(str(folder))


def _targets(model: Any, adapted: set[str]) -> list[str]:
    """The adapted modules by their last names where that means the same modules, else by their whole names."""
    lasts = {name.rpartition(".")[2] for name in adapted}
    layers = tuple(f"{name}." for name, _ in _lora_layers(model))
    outer = (name for name, _ in model.get_base_model().named_modules() if not name.startswith(layers))
    same = {name for name in outer if name.rpartition(".")[2] in lasts}
    return sorted(lasts if same == adapted else adapted)
