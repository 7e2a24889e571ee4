"""Models: loading, LoRA on one shared base, the reference, saving and merging.

Dropout inside the base model is switched off for every method: the reference and the trainer's log-probs must
be those of the network that sampled. LoRA's own dropout stays what the recipe says, in training passes only.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.config import ModelConfig
from preftune.errors import ModelError, UsageError
from preftune.models.adapters import (
    GIVEN,
    START,
    TRAINED,
    _add_lora,
    _same_adapter,
    acting,
    new_adapter,
    put_on,
)
from preftune.models.folding import folded, save_combined, save_folded
from preftune.models.given import _adapter_base, check_choice, first_line, read_adapter

_first_line = first_line
ADAPTER_FOLDER = "adapter"
"""Inside a reward model's folder: the adapter that it was trained as, in peft's own form."""
__all__ = [
    "ADAPTER_FOLDER",
    "Policy",
    "_adapter_base",
    "_add_lora",
    "_first_line",
    "_same_adapter",
    "load_policy",
    "merge",
]


@dataclass
class Policy:
    """A model under training, its tokenizer, and the reference it is compared with.

    Attributes:
        model: a transformers causal LM, or a peft model around one.
        lineage: in words, what the weights are and what the reference is; written into the run's manifest.
        frozen: full fine-tuning's reference, made by `keep_reference`.
        saves_whole: the trained adapter stands on a base that exists nowhere as files (merged on loading), so `save`
            writes a whole model.
    """

    model: Any
    tokenizer: Any
    config: ModelConfig
    device: torch.device
    generation_eos: tuple[int, ...]
    context_length: int | None
    lineage: str
    frozen: Any = field(default=None, repr=False)
    saves_whole: bool = False

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
        """The reference model: the trained adapter switched off (what lies beneath it stays on), the frozen copy of
        an adapter that is trained further, or full fine-tuning's frozen copy made by `keep_reference`. What is active
        and what is trained is afterwards as it was, after an exception too.

        Raises:
            ModelError: there is none: no frozen copy yet, or a continued adapter without model.reference.
        """
        if self.frozen is not None:
            yield self.frozen
        elif self.is_adapter:
            if self.config.on_adapter == "continue" and self.config.reference is None:
                raise ModelError("an adapter that is trained further has no reference until model.reference says which")
            with acting(self.model, [n for n in (GIVEN, START) if n in self.model.peft_config]):
                yield self.model
        else:
            raise ModelError("full fine-tuning has no reference yet; Policy.keep_reference() must come first")

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it the active adapters are folded into the weights, as in a merged model; then all is as it was, bit
        for bit. Nothing changes for full fine-tuning."""
        with folded(self.model) if self.is_adapter else nullcontext():
            yield

    def save(self, folder: Path) -> None:
        """Write a standard Hugging Face model or adapter folder, tokenizer included, that gives this policy's numbers
        in plain transformers or peft. The live model stays as it is."""
        if self.is_adapter and GIVEN in self.model.peft_config:
            save_combined(self.model, (GIVEN, TRAINED), folder)
        elif self.is_adapter and self.saves_whole:
            save_folded(self.model, folder)
        elif self.is_adapter:  # other adapters there may be: the start's, or other roles'
            self.model.save_pretrained(folder, selected_adapters=[TRAINED])
        else:
            self.model.save_pretrained(folder)
        in_order(folder / "adapter_config.json")
        self.tokenizer.save_pretrained(folder)


def in_order(path: Path) -> None:
    """peft writes module names in the order of a set, another in each process; equal runs shall give equal files."""
    if not path.exists():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            settings[name] = sorted(value)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def load_policy(config: ModelConfig, *, seed: int = 0, needs_reference: bool = False) -> Policy:
    """Load model, tokenizer and adapter as the recipe says.

    Args:
        seed: of a new adapter's start.
        needs_reference: the method compares with a reference, so an adapter that is trained further must have one
            chosen (model.reference).

    Raises:
        ModelError: a missing folder or tokenizer, code that would have to be trusted, an adapter that does not fit or
            whose use the recipe leaves open. UsageError: fields of the recipe that contradict each other. The message
            names the remedy.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # a run has its own
    if config.path.startswith("~"):
        config = config.model_copy(update={"path": str(Path(config.path).expanduser())})
    device = _device(config)
    given = read_adapter(config)
    check_choice(config, given, needs_reference=needs_reference)
    base_path = given.base if given else config.path
    revision = given.base_revision if given else config.revision
    tokenizer = _tokenizer(config, given.base if given else None)
    model = _load(transformers.AutoModelForCausalLM, base_path, config, dtype=_dtype(config, device), revision=revision)
    _check_causal(model, base_path)
    generation_eos = _eos(model)
    if given is not None:
        model, lineage = put_on(model, config, given, seed=seed)
    elif config.lora is not None:
        model = new_adapter(model, config, revision, seed=seed)
        lineage = f"base {base_path}; new LoRA adapter; the reference is the model without it"
    else:
        lineage = f"base {base_path}; all weights trained; the reference is the model before training"
    _no_dropout(model)
    model.to(device)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if config.gradient_checkpointing:
        _recompute(base)
    model.eval()
    text = base.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    whole = config.on_adapter == "merge"
    policy = Policy(model, tokenizer, config, device, generation_eos, context, lineage, saves_whole=whole)
    if not policy.trainable():
        raise ModelError(f"{config.path}: no parameter is trainable")
    return policy


def _check_causal(model: Any, path: str) -> None:
    """transformers drops a classifier's head without a word where the language model's is tied, so never missing."""
    kinds = model.config.architectures or []
    wrong = [kind for kind in kinds if kind.endswith(("ForSequenceClassification", "ForTokenClassification"))]
    if wrong:
        raise ModelError(f"{path} is a {wrong[0]} (a classifier or reward model), not a causal language model")


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
        frozen = config.lora is not None or config.on_adapter == "continue"
        return torch.bfloat16 if device.type == "cuda" and frozen else torch.float32
    return torch.float32 if config.dtype == "float32" else torch.bfloat16


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
                f"({first_line(text)}). Check the name, or give a folder with --model.path"
            ) from error
        raise ModelError(f"can't load the {what} in {path}: {first_line(text)}") from error
    # transformers fills absent weights with random numbers and goes on.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights of a {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): is it a causal language model, and is the folder complete?"
        )
    return model


def _eos(model: Any) -> tuple[int, ...]:
    value = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if value is None:
        value = model.config.get_text_config().eos_token_id
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


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
        raise ModelError(f"{adapter} is not an adapter (it has no adapter_config.json): a whole model already")
    policy = load_policy(
        ModelConfig(path=adapter, on_adapter="merge", device="cpu", trust_remote_code=trust_remote_code)
    )
    policy.save(out)
    return out
