"""A sequence classifier with one label out of what a user has: a language model, a classifier, an adapter of either."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from typing import Any

import torch

from preftune.config import ModelConfig
from preftune.errors import ModelError, UsageError
from preftune.models.adapters import (
    GIVEN,
    TRAINED,
    GivenAdapter,
    _merged,
    _same_adapter,
    _wrap,
    lora_settings,
    read_adapter,
)
from preftune.models.loading import _first_line, _load


def reward_head_name(base: Any) -> str:
    """The attribute that holds the head of a sequence classifier: what has weights beside the inner model.

    Raises:
        ModelError: there is not exactly one such part.
    """
    inner = base.base_model
    names = [n for n, child in base.named_children() if child is not inner and any(True for _ in child.parameters())]
    if len(names) != 1:
        raise ModelError(f"{type(base).__name__} has no single linear head beside its decoder: {names or 'none'}")
    return str(names[0])


@dataclass(frozen=True)
class Source:
    """What `config.path` is and what is done with it, checked before any weights are loaded.

    Attributes:
        path, revision: the whole model: the path itself, or the base of the adapter there.
        given: the adapter that the path names.
        use: what is done with it: continue, merge or fresh.
    """

    path: str
    revision: str | None
    given: GivenAdapter | None = None
    use: str | None = None

    @property
    def causal(self) -> bool:
        """The adapter is one of a language model: it has no head."""
        if self.given is None:
            return False
        kind, saved = self.given.settings.get("task_type"), self.given.settings.get("modules_to_save") or ()
        return kind != "SEQ_CLS" and not (kind is None and {"score", "classifier"} & set(saved))


def find_source(config: ModelConfig, *, trainable: bool) -> Source:
    """Read what lies at `config.path` and whether the recipe fits it. Loads no weights.

    Raises:
        ModelError: an adapter that can't be used so. UsageError: fields of the recipe that contradict each other.
    """
    given, use, path = read_adapter(config), config.on_adapter, config.path
    if config.reference is not None:
        raise UsageError(
            f"model.reference is {config.reference}, but a reward model has no reference: remove the field"
        )
    if given is None:
        if use is not None:
            raise ModelError(f"model.on_adapter is {use}, but {path} is not an adapter; remove the field")
        return Source(path, config.revision)
    source = Source(given.base, given.base_revision, given, "merge" if use == "stack" else use)
    task, kind = given.settings.get("task_type"), given.settings.get("peft_type")
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise ModelError(f"{path} is an adapter with task_type {task}; a reward model takes CAUSAL_LM or SEQ_CLS")
    if read_adapter(ModelConfig(path=given.base, revision=given.base_revision)) is not None:
        raise ModelError(
            f"the base of {path} is {given.base}, itself an adapter. Fold that one into its own base first (preftune "
            f"merge {given.base} OUT) and write OUT into base_model_name_or_path of {path}/adapter_config.json"
        )
    if use != "fresh" and kind != "LORA":
        raise ModelError(f"{path} is a {kind} adapter, and only LoRA adapters can be continued or merged")
    if not trainable:
        if use not in (None, "merge"):
            raise UsageError(f"model.on_adapter {use} is for training; a reward model in use has its adapter merged")
        return Source(source.path, source.revision, given, "merge")
    if use is None:
        ways = "" if source.causal else "continue (train this adapter and its head further), "
        raise ModelError(
            f"{path} is an adapter on {given.base}. Say what to do with it: model.on_adapter: {ways}merge (fold it "
            "into its base first), stack (fold it in and train a new adapter on top) or fresh (leave it out: a new one "
            "on the bare base)"
        )
    if use == "continue" and source.causal:
        raise ModelError(
            f"{path} is the adapter of a language model and has no reward head, so it can't be continued as a reward "
            "model's. Use model.on_adapter: merge, or stack with model.lora for a new adapter on the merged model"
        )
    if use in ("stack", "fresh") and config.lora is None:
        raise UsageError(f"model.on_adapter: {use} trains a new adapter, so it needs model.lora")
    return source


def load_classifier(source: Source, config: ModelConfig, dtype: torch.dtype) -> tuple[Any, bool, str]:
    """The model that training or use starts from, an adapter dealt with.

    Returns:
        The classifier (a peft model around it when its adapter is continued), whether its head is new, and its
        lineage in words. A new head is all zeros.
    """
    load = _Loader(config)
    kwargs = {"dtype": dtype, "revision": source.revision}
    given, text = source.given, f"reward model on base {source.path}"
    if given is None or source.use == "fresh":
        model = _load(load, source.path, config, **kwargs)
        return model, load.fresh, text + (f"; adapter {config.path} left out" if given else "")
    if source.causal:
        import transformers

        model = _load(transformers.AutoModelForCausalLM, source.path, config, **kwargs)
        _one_label(copy.deepcopy(model.config), source.path)  # an error before the work, not after it
        model = _merged(_wrap(model, config, given, GIVEN, trainable=False))
        return _classifier_of(model, config, dtype, source.path), True, f"{text} with adapter {config.path} merged in"
    going_on = source.use == "continue"
    model = _wrap(
        _load(load, source.path, config, **kwargs), config, given, TRAINED if going_on else GIVEN, trainable=going_on
    )
    base = model.get_base_model()
    fresh = load.fresh and not hasattr(getattr(base, reward_head_name(base)), "modules_to_save")
    if not going_on:
        return _merged(model), fresh, f"{text} with adapter {config.path} merged in"
    if fresh:
        raise ModelError(f"the adapter {config.path} holds no reward head and its base {source.path} has none either")
    if config.lora is not None:
        _same_adapter(model.peft_config[TRAINED], config.lora)
    return model, False, f"{text}; adapter {config.path} continued; saved merged, as a whole model"


def add_lora(model: Any, config: ModelConfig, revision: str | None, *, seed: int) -> Any:
    """The recipe's new adapter; the head is trained whole beside it. Its start depends on the seed alone."""
    import peft

    assert config.lora is not None
    settings = lora_settings(config.lora, "SEQ_CLS")
    settings.modules_to_save = [reward_head_name(model)]
    torch.manual_seed(seed)
    try:
        return peft.get_peft_model(model, settings, revision=revision)
    except ValueError as error:
        raise ModelError(f"model.lora.targets {config.lora.targets}: {_first_line(str(error))}") from error


class _Loader:
    """In the place of a transformers auto class for `_load`: the head may be missing, `fresh` then says so."""

    __name__ = "AutoModelForSequenceClassification"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.fresh = False

    def from_pretrained(self, path: str, *, dtype: torch.dtype, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        import transformers

        kwargs.pop("output_loading_info")
        settings = transformers.AutoConfig.from_pretrained(path, **kwargs)
        _one_label(settings, path)
        log = transformers.utils.logging
        level = log.get_verbosity()
        # Its table of missing weights would alarm: a new head is what was asked for.
        log.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, config=settings, dtype=dtype, output_loading_info=True, **kwargs
            )
        finally:
            log.set_verbosity(level)
        head = reward_head_name(model) + "."
        self.fresh = head + "weight" in info["missing_keys"]
        if self.fresh:
            _zero_head(model)
        others = [key for key in info["missing_keys"] if not (self.fresh and key.startswith(head))]
        return model, {**info, "missing_keys": others}


@torch.no_grad()
def _zero_head(model: Any) -> None:
    for parameter in getattr(model, reward_head_name(model)).parameters():
        parameter.zero_()


def _one_label(config: Any, path: str) -> None:
    """Make the config that of a classifier with one label.

    Raises:
        ModelError: transformers has no such class, or the model is a classifier with several labels.
    """
    import transformers

    known = transformers.AutoModelForSequenceClassification._model_mapping
    remote = getattr(config, "auto_map", None) or {}
    if type(config) not in known and "AutoModelForSequenceClassification" not in remote:
        speaks = transformers.AutoModelForCausalLM._model_mapping
        names = sorted({c.model_type for c in known} & {c.model_type for c in speaks})
        near = ", ".join(difflib.get_close_matches(config.model_type, names, n=3, cutoff=0.5)) or "none"
        raise ModelError(
            f"{path} is of the type {config.model_type}, and transformers {transformers.__version__} has no sequence "
            "classifier of that type, the form in which a reward model is saved. Use another base, such as llama, "
            f"qwen3 or gemma3 (nearest in name: {near})"
        )
    if config.is_encoder_decoder:
        raise ModelError(f"{path} is an encoder-decoder ({config.model_type}); a reward model needs a decoder")
    kinds = config.architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds) and config.num_labels != 1:
        raise ModelError(
            f"{path} is a classifier with {config.num_labels} labels, and a reward model has one. Start from the "
            "language model that it was made from"
        )
    config.num_labels = 1


def _classifier_of(model: Any, config: ModelConfig, dtype: torch.dtype, path: str) -> Any:
    """A classifier with a head of zeros around the decoder of a causal language model."""
    import transformers

    settings = copy.deepcopy(model.config)
    _one_label(settings, path)
    out = transformers.AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        settings, trust_remote_code=config.trust_remote_code, dtype=dtype
    )
    out.base_model.load_state_dict(model.base_model.state_dict())
    _zero_head(out)
    return out
