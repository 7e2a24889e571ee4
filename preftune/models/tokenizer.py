"""A model's tokenizer and what its configuration says of ids and lengths. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.config import ModelConfig
from preftune.errors import ModelError
from preftune.models.given import first_line, read_adapter


@dataclass(frozen=True)
class LoadedTokenizer:
    """What the token contract needs of a model.

    Attributes:
        tokenizer: as transformers loads it.
        generation_eos: EOS ids as `load_policy` finds them: the generation config's, or else the model config's.
        context_length: positions of the model; None where its configuration names none.
        vocabulary: rows of the model's embeddings; None without a configuration.
    """

    tokenizer: Any
    generation_eos: tuple[int, ...] = ()
    context_length: int | None = None
    vocabulary: int | None = None


def load_tokenizer(config: ModelConfig) -> LoadedTokenizer:
    """The tokenizer of a model, of an adapter's base, or of a folder that holds nothing else.

    Raises:
        ModelError: a missing folder or tokenizer, a damaged file, code that would have to be trusted.
    """
    from preftune.models.loading import _tokenizer

    if config.path.startswith("~"):
        config = config.model_copy(update={"path": str(Path(config.path).expanduser())})
    given = read_adapter(config)
    path, revision = (given.base, given.base_revision) if given else (config.path, config.revision)
    tokenizer = _tokenizer(config, given.base if given else None)
    settings = _settings(path, revision, config)
    if settings is None:
        return LoadedTokenizer(tokenizer)
    text = settings.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return LoadedTokenizer(tokenizer, _eos(path, revision, text), context, getattr(text, "vocab_size", None))


def _settings(path: str, revision: str | None, config: ModelConfig) -> Any:
    import transformers

    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        return None
    try:
        return transformers.AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path} needs its own Python code to load. Read that code first; if you trust it, set "
                "model.trust_remote_code: true"
            ) from error
        raise ModelError(f"can't load the configuration of {path}: {first_line(str(error))}") from error


def _eos(path: str, revision: str | None, text: Any) -> tuple[int, ...]:
    import transformers

    try:
        value = transformers.GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except OSError:  # most tiny or old models have none
        value = None
    if value is None:
        value = getattr(text, "eos_token_id", None)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)
