"""LoRA adapters on their base: how a given one goes on, which of them act, what is trained.

A policy's trained adapter is always called `default` in the model, so that checkpoints and saved folders have the
same names whatever lies beneath it. Two more may stand beside it, both frozen:

    given   the adapter that model.path names, active beneath the new one (on_adapter: stack)
    start   a copy of the trained adapter as it was at the start, never active but as the reference
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from preftune.config import LoraConfig, ModelConfig
from preftune.errors import ModelError, UsageError
from preftune.models.folding import check_plain, merge_for_good
from preftune.models.given import GivenAdapter, first_line, read_adapter

__all__ = ["GivenAdapter", "acting", "first_line", "lora_settings", "new_adapter", "put_on", "read_adapter"]

TRAINED, GIVEN, START = "default", "given", "start"


def put_on(model: Any, config: ModelConfig, given: GivenAdapter, *, seed: int) -> tuple[Any, str]:
    """Do with the given adapter what model.on_adapter says. Returns the model and its lineage in words.

    Raises:
        ModelError: the adapter does not fit its base. UsageError: model.lora asks for another shape to continue.
    """
    mode, path, head = config.on_adapter, config.path, f"base {given.base}"
    if mode == "fresh":
        model = new_adapter(model, config, given.base_revision, seed=seed)
        return model, f"{head}; adapter {path} left out; new LoRA adapter; the reference is the bare base"
    if mode == "continue":
        model = _wrap(model, config, given, TRAINED, trainable=True)
        if config.lora is not None:
            _same_adapter(model.peft_config[TRAINED], config.lora)
        reference = "is the bare base" if config.reference == "base" else "is not chosen (model.reference)"
        if config.reference == "start":
            _keep_start(model, config)
            reference = "is the adapter as it was at the start, a frozen copy"
        return model, f"{head}; adapter {path} continued; the reference {reference}"
    model = _wrap(model, config, given, GIVEN, trainable=False)
    if mode == "merge":
        model = _merged(model)
        if config.lora is None:
            reference = "all weights trained; the reference is the model before training"
        else:
            model = new_adapter(model, config, None, seed=seed)
            reference = "new LoRA adapter; the reference is the merged model; saved as a whole model"
        return model, f"{head} with adapter {path} merged in; {reference}"
    model = _stack(model, config, seed=seed)
    return model, (
        f"{head}; adapter {path} kept, frozen and active; new LoRA adapter on top; the reference is the base with "
        f"{path}; saved as one adapter that holds both"
    )


def _wrap(model: Any, config: ModelConfig, given: GivenAdapter, name: str, *, trainable: bool) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    where: dict[str, Any] = {"is_trainable": trainable, "revision": config.revision or "main"}
    try:
        wrapped = PeftModel.from_pretrained(model, given.path, adapter_name=name, **where)
        # Once more for what `from_pretrained` does not hand out: weights that are absent or belong nowhere.
        result = wrapped.load_adapter(given.path, name, **where)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        why = (
            f"its file lacks {error}, so weights are missing" if isinstance(error, KeyError) else first_line(str(error))
        )
        raise ModelError(f"can't load the adapter in {given.path} onto {given.base}: {why}") from error
    for keys, fault in (
        (result.unexpected_keys, "weights that have no place there"),
        (result.missing_keys, "weights missing"),
    ):
        if keys:
            raise ModelError(
                f"can't load the adapter in {given.path} onto {given.base}: {len(keys)} {fault} ({sorted(keys)[0]}). "
                "Is it an adapter of another base, or is its file incomplete?"
            )
    return wrapped


def lora_settings(lora: LoraConfig, task_type: str = "CAUSAL_LM") -> Any:
    """peft's settings for a new adapter."""
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # any number will do
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type=task_type,
    )


def _add_lora(model: Any, lora: LoraConfig, *, revision: str | None = None) -> Any:
    """A new adapter on a model that has none. `revision` is the base's, for those who load the saved adapter."""
    import peft

    try:
        return peft.get_peft_model(model, lora_settings(lora), revision=revision)
    except ValueError as error:
        raise ModelError(f"model.lora.targets {lora.targets}: {first_line(str(error))}") from error


def new_adapter(model: Any, config: ModelConfig, revision: str | None, *, seed: int) -> Any:
    """The recipe's new adapter; its start depends on the seed alone."""
    assert config.lora is not None
    torch.manual_seed(seed)
    return _add_lora(model, config.lora, revision=revision)


def _stack(model: Any, config: ModelConfig, *, seed: int) -> Any:
    assert config.lora is not None
    torch.manual_seed(seed)
    try:
        model.add_adapter(TRAINED, lora_settings(config.lora))
    except ValueError as error:
        raise ModelError(f"model.lora.targets {config.lora.targets}: {first_line(str(error))}") from error
    check_plain(model)
    model.set_adapter(TRAINED)
    model.base_model.set_adapter([GIVEN, TRAINED])
    _freeze(model, GIVEN)
    return model


def _keep_start(model: Any, config: ModelConfig) -> None:
    """A second copy of the adapter, read from the same file: a resumed run finds the same start."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.load_adapter(config.path, START, is_trainable=False, revision=config.revision or "main")
    model.set_adapter(TRAINED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    _freeze(model, START)


def _freeze(model: Any, name: str) -> None:
    """A frozen adapter has neither gradients nor dropout, in training passes too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for kind in module.adapter_layer_names:
                parts = getattr(module, kind)
                if name in parts:
                    parts[name].requires_grad_(False)
            dropouts = getattr(module, "lora_dropout", None)
            if isinstance(dropouts, nn.ModuleDict) and name in dropouts:
                dropouts[name] = nn.Identity()


def _same_adapter(mine: Any, lora: LoraConfig) -> None:
    """An adapter that goes on keeps its shape, so a recipe that asks for another one is wrong."""
    pairs: list[tuple[str, Any, Any]] = [
        ("r", lora.r, mine.r),
        ("alpha", lora.alpha, float(mine.lora_alpha)),
        ("dropout", lora.dropout, float(mine.lora_dropout)),
    ]
    if lora.targets != "all-linear":  # stands for whatever the model has
        pairs.append(("targets", _names(lora.targets), _names(mine.target_modules)))
    for name, asked, has in pairs:
        if asked != has:
            raise UsageError(
                f"model.lora.{name} asks for {asked}, but the adapter to continue has {has}; give the same value or "
                "leave model.lora out"
            )


def _names(targets: Any) -> Any:
    return targets if isinstance(targets, str) else sorted(targets)


# --- which of them act ----------------------------------------------------------------------------------------


@contextmanager
def acting(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Within it exactly these adapters act; none: the bare base. After it, whatever happened, the adapters that were
    active are so again, and every parameter is trained or frozen as before: peft's own switches make all active
    adapters trainable, a frozen one among them too."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = list(model.active_adapters)
    try:
        if names:
            model.base_model.set_adapter(list(names), inference_mode=True)
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        if names:
            model.base_model.set_adapter(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _merged(model: Any) -> Any:
    """Fold the adapter in for good. The model is then trained like any other: peft froze it."""
    try:
        return merge_for_good(model).requires_grad_(True)
    except (ValueError, RuntimeError) as error:  # NotImplementedError is one of them
        raise ModelError(f"the adapter can't be merged: {first_line(str(error))}") from error
