"""Models: loading, LoRA on one shared base, the reference, saving and merging.

Dropout inside the base model is switched off for every method: the reference and the trainer's log-probs must
be those of the network that sampled. LoRA's own dropout stays what the recipe says, in training passes only.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.config import LoraConfig, ModelConfig
from preftune.errors import ModelError, UsageError


@dataclass
class Policy:
    """A model under training, its tokenizer, and the reference it is compared with.

    Attributes:
        model: a transformers causal LM, or a peft model around one.
        lineage: in words, what the weights are and what the reference is; written into the run's manifest.
    """

    model: Any
    tokenizer: Any
    config: ModelConfig
    device: torch.device
    generation_eos: tuple[int, ...]
    context_length: int | None
    lineage: str
    frozen: Any = field(default=None, repr=False)

    @property
    def base(self) -> Any:
        """The transformers model, without the peft wrapper (LoRA layers are inside it)."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def is_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters, in a fixed order."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def train_mode(self, on: bool) -> None:
        """Training mode for LoRA dropout and gradient checkpointing only; the base has no dropout left."""
        checkpointing = self.config.gradient_checkpointing
        lora_dropout = self.config.lora is not None and self.config.lora.dropout > 0
        self.model.train(on and (checkpointing or lora_dropout))

    def keep_reference(self) -> None:
        """Make sure that `reference()` works: full fine-tuning copies the weights as they are now."""
        if not self.is_adapter and self.frozen is None:
            self.frozen = copy.deepcopy(self.model).requires_grad_(False).eval()

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The reference model: the adapter switched off, or the frozen copy made by `keep_reference`."""
        if self.is_adapter:
            with self.model.disable_adapter():
                yield self.model
        elif self.frozen is not None:
            yield self.frozen
        else:
            raise ModelError("full fine-tuning has no reference yet; Policy.keep_reference() must come first")

    def save(self, folder: Path) -> None:
        """Write a standard Hugging Face model or adapter folder, tokenizer included."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(config: ModelConfig, *, seed: int = 0) -> Policy:
    """Load model, tokenizer and adapter as the recipe says.

    Raises:
        ModelError: a missing folder or tokenizer, code that would have to be trusted, an adapter whose use the
            recipe leaves open. The message names the remedy.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a run has its own
    device = _device(config)
    adapter_base = _adapter_base(config)
    base_path = adapter_base or config.path
    if adapter_base and config.on_adapter is None:
        raise ModelError(
            f"{config.path} is an adapter on {adapter_base}. Say what to do with it: model.on_adapter: continue "
            "(train this adapter further; the reference is the bare base) or merge (fold it into the base first; "
            "the reference is the merged model)"
        )
    if not adapter_base and config.on_adapter is not None:
        raise ModelError(
            f"model.on_adapter is {config.on_adapter}, but {config.path} is not an adapter; remove the field"
        )
    tokenizer = _tokenizer(config, adapter_base)
    dtype = _dtype(config, device)
    model = _load(
        transformers.AutoModelForCausalLM,
        base_path,
        config,
        dtype=dtype,
        revision=None if adapter_base else config.revision,
    )
    generation_eos = _eos(model)
    lineage = f"base {base_path}"
    if adapter_base:
        model, lineage = _with_adapter(model, config, base_path)
    if config.lora is not None and not hasattr(model, "peft_config"):
        torch.manual_seed(seed)
        model = _add_lora(model, config.lora)
        lineage += "; new LoRA adapter; the reference is the model without it"
    elif not hasattr(model, "peft_config"):
        lineage += "; all weights trained; the reference is a frozen copy from before training"
    _no_dropout(model)
    model.to(device)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.eval()
    text = base.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    policy = Policy(model, tokenizer, config, device, generation_eos, context, lineage)
    if not policy.trainable():
        raise ModelError(f"{config.path}: no parameter is trainable")
    return policy


def _device(config: ModelConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but torch sees no GPU here; use auto or cpu")
    return torch.device(config.device)


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        # A frozen base may be bf16; trained weights stay fp32, or small updates round away.
        return torch.bfloat16 if device.type == "cuda" and config.lora is not None else torch.float32
    return torch.float32 if config.dtype == "float32" else torch.bfloat16


def _adapter_base(config: ModelConfig) -> str | None:
    """The base that an adapter folder (or hub repository) names, None when path is a whole model."""
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(config.path).expanduser()
    if folder.exists():
        if not folder.is_dir():
            raise ModelError(f"model.path {config.path} is a file; give a model folder or a hub id")
        if (folder / "config.json").exists() or not (folder / "adapter_config.json").exists():
            return None
        found: str | None = str(folder / "adapter_config.json")
    elif config.path.startswith((".", "/", "~")):
        raise ModelError(f"model.path {config.path} does not exist")
    else:
        try:
            found = find_adapter_config_file(config.path, revision=config.revision)
        except OSError:
            found = None  # the load below reports a hub id that can't be reached
    if found is None:
        return None
    base = json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{found} names no base_model_name_or_path; add it")
    return str(base)


def _tokenizer(config: ModelConfig, adapter_base: str | None) -> Any:
    import transformers

    paths = [config.path] + ([adapter_base] if adapter_base else [])
    for path in paths:
        folder = Path(path)
        if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")):  # fmt: skip
            continue
        return _load(
            transformers.AutoTokenizer, path, config, revision=config.revision if path == config.path else None
        )
    raise ModelError(
        f"{config.path} has no tokenizer (no tokenizer.json, tokenizer_config.json, vocab.json or tokenizer.model). "
        "Save one beside the model with tokenizer.save_pretrained(folder)"
    )


def _load(auto: Any, path: str, config: ModelConfig, **kwargs: Any) -> Any:
    """from_pretrained with errors a user can act on; no code from the model's folder unless asked."""
    try:
        given = {k: v for k, v in kwargs.items() if v is not None}
        return auto.from_pretrained(path, trust_remote_code=config.trust_remote_code, **given)
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelError(
                f"{path} needs its own Python code to load. Read that code first; if you trust it, set "
                "model.trust_remote_code: true"
            ) from error
        what = "tokenizer" if "Tokenizer" in auto.__name__ else "model"
        if not Path(path).exists():
            raise ModelError(
                f"can't load the {what} of {path}: no such folder here, and the hub did not give it ({_first_line(text)}). "
                "Check the name, or give a folder with --model.path"
            ) from error
        raise ModelError(f"can't load the {what} in {path}: {_first_line(text)}") from error


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def _eos(model: Any) -> tuple[int, ...]:
    value = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if value is None:
        value = model.config.get_text_config().eos_token_id
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _with_adapter(model: Any, config: ModelConfig, base_path: str) -> tuple[Any, str]:
    from peft import PeftModel

    trainable = config.on_adapter == "continue"
    wrapped = PeftModel.from_pretrained(model, config.path, is_trainable=trainable)
    if trainable:
        if config.lora is not None:
            mine = wrapped.peft_config["default"]
            if (mine.r, float(mine.lora_alpha)) != (config.lora.r, config.lora.alpha):
                raise UsageError(
                    f"model.lora asks for r {config.lora.r}, alpha {config.lora.alpha}, but the adapter to continue has "
                    f"r {mine.r}, alpha {mine.lora_alpha}; give the same values or leave model.lora out"
                )
        return wrapped, f"base {base_path}; adapter {config.path} continued; the reference is the bare base"
    return wrapped.merge_and_unload(), f"base {base_path} with adapter {config.path} merged in"


def _add_lora(model: Any, lora: LoraConfig) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"model.lora.targets {lora.targets}: {_first_line(str(error))}") from error


def _no_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop") or key == "router_jitter_noise"):
                setattr(module, key, 0.0)


def merge(adapter: str, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Fold an adapter into its base and write a standard model folder (`preftune merge`).

    Raises:
        UsageError: `out` exists and is not empty. ModelError: `adapter` is not an adapter.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} exists and is not empty; name another folder")
    if _adapter_base(ModelConfig(path=adapter)) is None:
        raise ModelError(f"{adapter} is not an adapter (it has no adapter_config.json); nothing to merge")
    policy = load_policy(
        ModelConfig(path=adapter, on_adapter="merge", device="cpu", trust_remote_code=trust_remote_code)
    )
    policy.save(out)
    return out
