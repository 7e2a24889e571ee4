"""The adapter that model.path names: what its folder says, and whether the recipe can use it so. Loads no weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.config import ModelConfig
from preftune.errors import ModelError, UsageError

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
        if not any((folder / f"adapter_model.{kind}").exists() for kind in ("safetensors", "bin")):
            # peft would look for a hub repository of that name
            raise ModelError(
                f"{path} has an adapter_config.json but no weights (adapter_model.safetensors); copy them there"
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
    if mode == "continue" and needs_reference and config.reference is None and config.reference_path is None:
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


def first_line(text: str) -> str:
    """The first line that says something; torch begins with a title."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("Error(s) in loading")), "no reason given")
