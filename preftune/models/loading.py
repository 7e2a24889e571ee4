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
        """Training mode for what needs it, LoRA dropout and recomputed layers. All else stays in eval mode always:
        layers that are skipped at random, jitter in a router and the like would make the trainer's log-probs those
        of another network."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.model.eval()
        if not on:
            return
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if self.config.gradient_checkpointing:
            # Models of an older make recompute from the module that holds their layers.
            for module in layers or [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)]:
                module.training = True
        for module in self.model.modules():
            dropouts = getattr(module, "lora_dropout", None)
            if isinstance(dropouts, nn.ModuleDict) and any(isinstance(d, nn.Dropout) for d in dropouts.values()):
                module.training = True
                dropouts.train()

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

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # a run has its own
    if config.path.startswith("~"):
        config = config.model_copy(update={"path": str(Path(config.path).expanduser())})
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
        _recompute(base)
    model.eval()
    text = base.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    policy = Policy(model, tokenizer, config, device, generation_eos, context, lineage)
    if not policy.trainable():
        raise ModelError(f"{config.path}: no parameter is trainable")
    return policy


def _recompute(base: Any) -> None:
    """Gradient checkpointing under its present name, or the one that older transformers know."""
    kwargs = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


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

    folder = Path(config.path)
    if folder.exists():
        if not folder.is_dir():
            raise ModelError(f"model.path {config.path} is a file; give a model folder or a hub id")
        if (folder / "config.json").exists() or not (folder / "adapter_config.json").exists():
            return None
        found: str | None = str(folder / "adapter_config.json")
    elif config.path.startswith((".", "/")):
        raise ModelError(f"model.path {config.path} does not exist")
    else:
        try:
            found = find_adapter_config_file(config.path, revision=config.revision)
        except OSError:
            found = None  # the load below reports a hub id that can't be reached
    if found is None:
        return None
    try:
        base = json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{found} is damaged: {_first_line(str(error))}") from error
    if not base:
        raise ModelError(f"{found} names no base_model_name_or_path; add it")
    return str(base)


def _tokenizer(config: ModelConfig, adapter_base: str | None) -> Any:
    import transformers

    paths = [config.path] + ([adapter_base] if adapter_base else [])
    for path in paths:
        folder = Path(path)
        files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
        if folder.is_dir() and not any((folder / file).exists() for file in files):
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
    from safetensors import SafetensorError

    what = "tokenizer" if "Tokenizer" in auto.__name__ else "model"
    given = {k: v for k, v in kwargs.items() if v is not None}
    try:
        if what == "tokenizer":
            return auto.from_pretrained(path, trust_remote_code=config.trust_remote_code, **given)
        model, info = auto.from_pretrained(
            path, trust_remote_code=config.trust_remote_code, output_loading_info=True, **given
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelError(
                f"{path} needs its own Python code to load. Read that code first; if you trust it, set "
                "model.trust_remote_code: true"
            ) from error
        if not Path(path).exists():
            raise ModelError(
                f"can't load the {what} of {path}: no such folder here, and the hub did not give it "
                f"({_first_line(text)}). Check the name, or give a folder with --model.path"
            ) from error
        raise ModelError(f"can't load the {what} in {path}: {_first_line(text)}") from error
    # transformers fills absent weights with random numbers and goes on.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights of a {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): is it a causal language model, and is the folder complete?"
        )
    return model


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
    from safetensors import SafetensorError

    trainable = config.on_adapter == "continue"
    try:
        wrapped: Any = PeftModel.from_pretrained(
            model, config.path, is_trainable=trainable, revision=config.revision or "main"
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"can't load the adapter in {config.path} onto {base_path}: {_first_line(str(error))}"
        ) from error
    if trainable:
        if config.lora is not None:
            _same_adapter(wrapped.peft_config["default"], config.lora)
        return wrapped, f"base {base_path}; adapter {config.path} continued; the reference is the bare base"
    # peft froze the base; a merged model is trained like any other.
    return wrapped.merge_and_unload().requires_grad_(True), f"base {base_path} with adapter {config.path} merged in"


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


def _add_lora(model: Any, lora: LoraConfig) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # any number will do
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"model.lora.targets {lora.targets}: {_first_line(str(error))}") from error


def _no_dropout(model: nn.Module) -> None:
    """Dropout whose rate a layer keeps to itself: a recomputed layer is in training mode."""
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
                setattr(module, key, 0.0)


def merge(adapter: str, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Fold an adapter into its base and write a standard model folder (`preftune merge`).

    Raises:
        UsageError: `out` exists and is not empty. ModelError: `adapter` is not an adapter.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder; name another one")
    if _adapter_base(ModelConfig(path=adapter)) is None:
        raise ModelError(f"{adapter} is not an adapter (it has no adapter_config.json); nothing to merge")
    policy = load_policy(
        ModelConfig(path=adapter, on_adapter="merge", device="cpu", trust_remote_code=trust_remote_code)
    )
    policy.save(out)
    return out
