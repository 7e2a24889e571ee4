"""LoRA adapters: what a given one is, how it goes onto its base, which of them act, and how they are written.

A policy's trained adapter is always called `default` in the model, so that checkpoints and saved folders have the
same names whatever lies beneath it. Two more may stand beside it, both frozen:

    given   the adapter that model.path names, active beneath the new one (on_adapter: stack)
    start   a copy of the trained adapter as it was at the start, never active but as the reference
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.config import LoraConfig, ModelConfig
from preftune.errors import ModelError, UsageError
from preftune.models.folding import check_plain, merge_for_good

TRAINED, GIVEN, START = "default", "given", "start"

CHOICES = (
    "continue (train this adapter further), stack (keep it as it is and train a new one on top), merge (fold it into "
    "its base first) or fresh (leave it out: a new one on the bare base)"
)

_WHOLE = re.compile(r"(model|pytorch_model)([-.].*)?\.(safetensors|bin|index\.json)")
"""Weights of a whole model, in one file or in shards. An adapter's are adapter_model.*."""

_REWRITES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Values of init_lora_weights that change the base's weights when the adapter is made."""

_NOT_PLAIN = (
    "modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
    "velora_config",
)  # fmt: skip
"""Settings under which an adapter is more than W + scaling · B A, so that two of them have no sum of that form."""


@dataclass(frozen=True)
class GivenAdapter:
    """What an adapter folder says of itself.

    Attributes:
        base: hub id or folder of the model that it adapts.
        settings: its adapter_config.json.
    """

    path: str
    base: str
    settings: dict[str, Any]

    @property
    def base_revision(self) -> str | None:
        """The base's hub revision, where peft recorded one."""
        return self.settings.get("revision")


def read_adapter(config: ModelConfig) -> GivenAdapter | None:
    """The adapter that model.path names, None when it is a whole model.

    Raises:
        ModelError: nothing there, a damaged file, a folder that is both an adapter and a whole model.
    """
    found = _settings_file(config.path, config.revision)
    if found is None:
        return None
    try:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{found} is damaged: {first_line(str(error))}") from error
    if not base:
        raise ModelError(f"{found} names no base_model_name_or_path; add it")
    return GivenAdapter(config.path, str(base), settings)


def _settings_file(path: str, revision: str | None) -> str | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(path)
    if folder.exists():
        if not folder.is_dir():
            raise ModelError(f"model.path {path} is a file; give a model folder or a hub id")
        if not (folder / "adapter_config.json").exists():
            return None
        # Neither peft nor transformers writes config.json beside an adapter, but some trainers do. Without weights
        # of its own it is no model; with them, two programs would load two different things from this folder.
        whole = [file.name for file in sorted(folder.iterdir()) if _WHOLE.fullmatch(file.name)]
        if (folder / "config.json").exists() and whole:
            raise ModelError(
                f"{path} holds an adapter (adapter_config.json) and a whole model (config.json, {whole[0]}), and "
                "which of them is meant can't be seen: move the files of one of them into a folder of their own"
            )
        return str(folder / "adapter_config.json")
    if path.startswith((".", "/")):
        raise ModelError(f"model.path {path} does not exist")
    try:
        found: str | None = find_adapter_config_file(path, revision=revision)
    except OSError:
        return None  # the load below reports a hub id that can't be reached
    return found


def _adapter_base(config: ModelConfig) -> str | None:
    """The base that an adapter folder (or hub repository) names, None when path is a whole model."""
    given = read_adapter(config)
    return given.base if given else None


# --- is it usable as the recipe says? -------------------------------------------------------------------------


def check_choice(config: ModelConfig, given: GivenAdapter | None, *, needs_reference: bool) -> None:
    """Whether on_adapter, lora and reference fit together and fit what lies at model.path. Loads nothing.

    Raises:
        UsageError: fields that contradict each other or are missing. ModelError: an adapter that can't be used so.
    """
    mode, path = config.on_adapter, config.path
    if given is not None and mode is None:
        raise ModelError(f"{path} is an adapter on {given.base}. Say what to do with it: model.on_adapter: {CHOICES}")
    if given is None and mode is not None:
        raise ModelError(f"model.on_adapter is {mode}, but {path} is not an adapter; remove the field")
    if config.reference is not None and mode != "continue":
        raise UsageError(
            f"model.reference is {config.reference}, but there is a choice only with model.on_adapter: continue; "
            "everywhere else the reference is the model before training. Remove the field"
        )
    if given is None:
        return
    if mode == "continue" and needs_reference and config.reference is None:
        raise UsageError(
            f"model.reference is missing: the method compares with a reference, and {path} is trained further "
            "(model.on_adapter: continue). Give base (the bare model without the adapter, so what the adapter "
            "learned before counts as distance too) or start (the adapter as it was when this run began; a "
            "frozen copy of it is kept in memory)"
        )
    if mode in ("stack", "fresh") and config.lora is None:
        other = (
            "to train the given adapter itself, use model.on_adapter: continue"
            if mode == "stack"
            else f"to train all weights of the bare base, use model.path: {given.base} without on_adapter"
        )
        raise UsageError(f"model.on_adapter: {mode} trains a new adapter, so it needs model.lora ({other})")
    _check_adapter(given, str(mode))


def _check_adapter(given: GivenAdapter, mode: str) -> None:
    path, settings = given.path, given.settings
    task, kind = settings.get("task_type"), settings.get("peft_type")
    if task not in (None, "CAUSAL_LM"):
        what = "a classifier or reward model" if task == "SEQ_CLS" else "another kind of model"
        raise ModelError(
            f"{path} is an adapter with task_type {task}: {what}, not a causal language model (CAUSAL_LM). Give the "
            "adapter of a causal language model"
        )
    try:
        gone = given.base.startswith((".", "/")) and not Path(given.base).exists()  # the load says so
        below = None if gone else _settings_file(given.base, given.base_revision)
    except ModelError as error:
        raise ModelError(f"the adapter {path} names a base that can't be used: {error}") from error
    if below is not None:
        raise ModelError(
            f"the base of {path} is {given.base}, itself an adapter. Fold that one into its own base first "
            f"(preftune merge {given.base} OUT) and write OUT into base_model_name_or_path of "
            f"{path}/adapter_config.json"
        )
    if mode == "fresh":
        return
    if kind != "LORA":
        raise ModelError(
            f"{path} is a {kind} adapter, and only LoRA adapters can be continued, stacked on or merged: use "
            "model.on_adapter: fresh, or the whole model that it gives as model.path"
        )
    if mode == "merge":
        return
    remedy = "; use model.on_adapter: merge, or fresh"
    if settings.get("bias", "none") != "none":
        raise ModelError(
            f"{path} also trained biases of its base (bias: {settings['bias']}), which stay when the adapter is "
            f"switched off, so there would be no reference{remedy}"
        )
    start = settings.get("init_lora_weights")
    if settings.get("layer_replication") or (isinstance(start, str) and start.lower().startswith(_REWRITES_BASE)):
        what = "layer_replication" if settings.get("layer_replication") else f"init_lora_weights: {start}"
        raise ModelError(
            f"{path} changes its base when it is put on ({what}), so the model without it is not the base{remedy}"
        )
    more = [name for name in _NOT_PLAIN if settings.get(name)]
    if mode == "stack" and more:
        raise ModelError(
            f"{path} is more than a plain LoRA adapter ({', '.join(more)}), so it and a new one can't be saved as "
            f"one adapter. Use model.on_adapter: merge, continue or fresh"
        )


# --- onto the model -------------------------------------------------------------------------------------------


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
            reference = "all weights trained; the reference is a frozen copy from before training"
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
        raise ModelError(
            f"can't load the adapter in {given.path} onto {given.base}: {first_line(str(error))}"
        ) from error
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


def first_line(text: str) -> str:
    """The first line that says something; torch begins with a title."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("Error(s) in loading")), "no reason given")


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
