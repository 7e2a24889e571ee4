"""Reward models: a decoder with a linear head that reads one score off the last token.

The model is a standard transformers `…ForSequenceClassification` with one label. A head that is new starts at zero, so
that every score starts at 0. Dropout is switched off as for every model here.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch
from torch import nn

from preftune.config import ModelConfig
from preftune.errors import ModelError, UsageError
from preftune.models.adapters import _merged
from preftune.models.classifier import Source, add_lora, find_source, load_classifier, reward_head_name
from preftune.models.loading import (
    ADAPTER_FOLDER,
    Policy,
    _device,
    _dtype,
    _no_dropout,
    _recompute,
    _tokenizer,
    in_order,
)

MEAN, STD = "preftune_reward_mean", "preftune_reward_std"
"""Fields of the saved model's config; see `RewardModel.set_normalization`."""


@dataclass
class RewardModel(Policy):
    """A reward model, its tokenizer, and how it came about.

    `model` is a transformers sequence classifier with one label, or a peft model around one. There is no reference.

    Attributes:
        generation: the generation config of the language model it was made from (its EOS ids), None without one.
    """

    generation: Any = field(default=None, repr=False)

    @property
    def normalization(self) -> tuple[float, float] | None:
        """Mean and standard deviation of raw scores on the training set, None when never set. Whoever uses the scores
        applies them: (score − mean) / std. The model's own scores stay raw, here and in plain transformers.

        Raises:
            ModelError: the config holds something else there.
        """
        return normalization_of(self.base.config, self.config.path)

    def set_normalization(self, mean: float, std: float) -> None:
        """Keep mean and standard deviation of raw scores in the model's config, from where `save` writes them.

        Raises:
            ValueError: a number that is not finite, or std ≤ 0.
        """
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean {mean} and std {std} must be finite, and std above 0")
        setattr(self.base.config, MEAN, float(mean))
        setattr(self.base.config, STD, float(std))

    def keep_reference(self) -> None:
        """Raises ModelError: nothing is compared with a reference."""
        self.reference()

    def reference(self) -> NoReturn:
        """Raises ModelError, as `keep_reference`."""
        raise ModelError("a reward model has no reference")

    def save(self, folder: Path) -> None:
        """Write a whole model folder that `AutoModelForSequenceClassification.from_pretrained(folder)` loads and whose
        scores of padded batches are those of `Engine.rate`. The live model stays as it is, bit for bit.

        An adapter is merged into a copy first: by itself it would not load that way. Where its base exists as files,
        the adapter is kept too, in the folder `adapter` inside, for runs that share that base.

        The pad token is one that is not an EOS, because transformers reads the score before the last run of pads, told
        by their id.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer, pad = _with_pad(self.tokenizer, set(self.generation_eos), set(_ids(self.base.config, "bos")))
        rows = self.base.get_input_embeddings().weight.shape[0]
        dtype = self.base.get_input_embeddings().weight.dtype
        head = getattr(self.base, reward_head_name(self.base))
        live = not self.is_adapter and pad < rows and all(p.dtype == dtype for p in head.parameters())
        model = self.base if live else _whole_copy(self.model)
        config = model.config
        model.config = copy.deepcopy(config)
        try:
            if not live:
                model.to(dtype)
            if pad >= rows:
                _add_row(model, pad + 1)
            for part in (model.config, model.config.get_text_config()):
                part.pad_token_id = pad
            model.config.problem_type = "regression"  # else transformers' pipeline puts a sigmoid on the score
            model.save_pretrained(folder)
        finally:
            model.config = config
        if self.is_adapter and self.config.on_adapter not in ("merge", "stack"):
            # Beside the whole model, what was trained: a run on the same base can take it without a second base.
            self.model.save_pretrained(folder / ADAPTER_FOLDER)
            in_order(folder / ADAPTER_FOLDER / "adapter_config.json")
        if self.generation is not None:
            self.generation.to_json_file(folder / "generation_config.json")
        tokenizer.save_pretrained(folder)


def normalization_of(config: Any, path: str) -> tuple[float, float] | None:
    """What a reward model's config says of its scores' mean and standard deviation, None where it says nothing.

    Raises:
        ModelError: it holds something else there.
    """
    mean, std = (getattr(config, name, None) for name in (MEAN, STD))
    if mean is None and std is None:
        return None
    if not (_finite(mean) and _finite(std) and std > 0):
        raise ModelError(
            f"{path}: its config.json has {MEAN} {mean} and {STD} {std}; a finite number and one above 0 belong there, "
            "or neither field"
        )
    return float(mean), float(std)


def load_reward(config: ModelConfig, *, seed: int = 0, trainable: bool = True) -> RewardModel:
    """Load a reward model, or make one from a language model by putting a head of zeros on it.

    `config.path` may be a causal language model, a sequence classifier with one label, or an adapter of either kind;
    an adapter's use is said by `config.on_adapter`.

    Args:
        seed: of a new LoRA adapter.
        trainable: False loads for use only: nothing is trained, an adapter is merged, and a head must be there.

    Raises:
        ModelError: what can't be loaded, has no head where one must be, has several labels, or is of an architecture
            that transformers has no classifier for. UsageError: a recipe that leaves open or contradicts what to do.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # a run has its own
    if config.path.startswith("~"):
        config = config.model_copy(update={"path": str(Path(config.path).expanduser())})
    if not trainable and config.lora is not None:
        raise UsageError("model.lora is for training, and this reward model is only used: remove model.lora")
    device = _device(config)
    source = find_source(config, trainable=trainable)
    tokenizer = _tokenizer(config, source.given.base if source.given else None)
    model, fresh, lineage = load_classifier(source, config, _dtype(config, device))
    if fresh and not trainable:
        raise ModelError(f"{config.path} has no reward head: it is a language model. Train one with preftune reward")
    if fresh:
        lineage += "; new reward head, all zeros"
    base = _unwrapped(model)
    # Small updates to 16-bit weights would round away, and scores are fp32 anyway.
    getattr(base, reward_head_name(base)).float()
    if not trainable:
        model.requires_grad_(False)
    elif config.lora is not None and source.use != "continue":
        model = add_lora(model, config, source.revision, seed=seed)
        lineage += "; new LoRA adapter, head trained whole; saved merged, as a whole model"
    elif source.use != "continue":
        lineage += "; all weights trained"
    _no_dropout(model)
    model.to(device)
    if config.gradient_checkpointing and trainable:
        _recompute(base)
    model.eval()
    text = base.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    generation = _generation(source)
    eos = _ids(base.config, "eos") if generation is None else _ids(generation, "eos") or _ids(base.config, "eos")
    if not fresh and base.config.get_text_config().pad_token_id in eos:
        lineage += "; its pad token is an EOS, so plain transformers reads its score before a final EOS, and here at it"
    return RewardModel(model, tokenizer, config, device, eos, context, lineage, saves_whole=True, generation=generation)


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _generation(source: Source) -> Any:
    """The generation config beside the base, or None: its EOS ids are often more than the config's."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(source.path, revision=source.revision or "main")
    except OSError:
        return None


def _ids(config: Any, which: str) -> tuple[int, ...]:
    """The config's EOS or BOS ids."""
    value = getattr(config, f"{which}_token_id", None)
    if value is None and hasattr(config, "get_text_config"):
        value = getattr(config.get_text_config(), f"{which}_token_id", None)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (int(value),)


def _with_pad(tokenizer: Any, eos: set[int], bos: set[int]) -> tuple[Any, int]:
    """A copy of the tokenizer with a pad token that is no EOS and no BOS, and its id; padding on the right.

    The first that fits of: its own pad token, a special token made for such use (its name says pad, reserved or
    unused), the unknown token, any other special token, a new token.
    """
    out = copy.deepcopy(tokenizer)
    out.padding_side = "right"  # learned positions count from the left
    taken = {*eos, *bos, out.eos_token_id, out.bos_token_id}
    special = sorted(set(out.all_special_ids) | {i for i, t in out.added_tokens_decoder.items() if t.special})
    names = {i: str(out.convert_ids_to_tokens(i)) for i in special}
    spare = [i for i in special if any(word in names[i].lower() for word in ("pad", "reserved", "unused"))]
    for pad in (out.pad_token_id, *spare, out.unk_token_id, *special):
        if pad is not None and pad not in taken:
            out.pad_token = out.convert_ids_to_tokens(pad)
            return out, int(pad)
    name = "<|pad|>"
    while name in out.get_vocab():
        name = name[:-1] + "_>"
    out.add_special_tokens({"pad_token": name})
    return out, int(out.pad_token_id)


@torch.no_grad()
def _add_row(model: Any, rows: int) -> None:
    """Grow the input embeddings to `rows`; new rows are zeros and never read, as padding is masked."""
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight[before:].zero_()


def _whole_copy(model: Any) -> Any:
    """A copy on the CPU, its adapter merged."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", copy=True), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    twin = copy.deepcopy(model, memo)
    return _merged(twin) if hasattr(twin, "peft_config") else twin
