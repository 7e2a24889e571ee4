"""What a recipe's tokenised rows depend on, as hashes: rows on disk serve a run only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import preftune
from preftune.config import Recipe
from preftune.data.sources import local_file
from preftune.methods import Method
from preftune.models import Policy
from preftune.tokens import TokenContract

FORMAT = 1
"""Raised when the files of `preftune.train.stored` change."""

ELSEWHERE = ("name", "repeat", "output", "log", "train", "model", "policy", "value", "human")
"""Sections that no row depends on. Of the model tokenizer, EOS ids and context length count, in `full_key`."""

PARTS: dict[str, tuple[str, ...]] = {
    "loss": ("label_threshold",),
    "sampling": ("max_tokens",),
    "collect": ("trace",),
    "eval": ("data", "test", "holdout", "limit"),
}
"""Of these sections, the fields that rows depend on; a test compares them with what rows.py reads."""

SOURCES = (
    "chat.py", "competition", "config", "data", "judges", "methods.py", "records.py", "token_ends.py", "tokens.py",
    "train/lengths.py", "train/prepared.py", "train/rows.py", "train/rows_key.py", "train/stored.py", "train/trace.py",
    "train/workers.py",
)  # fmt: skip
"""Code that makes rows: when it changes, what it made before serves no more."""


def draft_key(recipe: Recipe, method: Method, base_dir: Path | None) -> tuple[str, str]:
    """The part of the key that is known before the model is loaded.

    Returns:
        A hash and "", or "" and why rows of such a recipe are not kept.
    """
    files = []
    for split, sources in (("data", recipe.data), ("eval.data", recipe.eval.data), ("eval.test", recipe.eval.test)):
        for number, source in enumerate(sources):
            if source.contest is not None:
                return "", f"{split} {source.path} makes contests"  # which may read rubrics from further files
            path = local_file(source, base_dir)
            if path is None:
                return "", f"{split} {source.path} is no plain file"
            # The change time tells of a file that was replaced by another of the same size, its date put back.
            stat = path.stat()
            identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            files.append([split, number, str(path), str(path.resolve()), *identity])
    return _hash(
        {
            "format": FORMAT, "preftune": preftune.__version__, "code": _code(), "recipe": _recipe(recipe),
            "method": [method.name, method.completions, method.compares, method.reads], "files": files,
            "libraries": {name: _version(name) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")},
        }
    ), ""  # fmt: skip


def full_key(draft: str, contract: TokenContract, policy: Policy) -> tuple[str, str]:
    """The whole key. Returns a hash and "", or "" and why rows of such a tokenizer are not kept."""
    tokenizer = policy.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer)
    if backend is None or not kind.__module__.startswith("transformers."):
        return "", f"the tokenizer {kind.__name__} is Python code, which may change unseen"
    template = contract.template_text or tokenizer.chat_template
    if "strftime_now" in json.dumps(template):
        return "", "the chat template writes the date"
    places = ("name_or_path", "is_local", "local_files_only", "cache_dir", "token", "revision", "chat_template")
    settings = {k: str(v) for k, v in tokenizer.init_kwargs.items() if k not in places and not k.endswith("_file")}
    about = {
        "draft": draft, "class": f"{kind.__module__}.{kind.__qualname__}", "backend": backend.to_str(),
        "settings": settings, "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "template": template, "override": contract.template_text, "context_length": policy.context_length,
        "ids": [sorted(contract.eos_ids), contract.eos_id, contract.pad_id, contract.bos_id],
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", None),
    }  # fmt: skip
    return _hash(about), ""


def _recipe(recipe: Recipe) -> dict[str, Any]:
    out = {name: value for name, value in recipe.model_dump(mode="json").items() if name not in ELSEWHERE}
    for section, fields in PARTS.items():
        out[section] = {name: out[section][name] for name in fields}
    out["rewards"] = bool(out["rewards"])  # GMPO alone asks, and only whether there are any
    return out


@cache
def _code() -> str:
    """Hash of the code that makes rows."""
    root, digest = Path(preftune.__file__).parent, hashlib.sha256()
    for path in _files(root / name for name in SOURCES):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(places: Iterable[Path]) -> list[Path]:
    found = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return sorted(path for path in found if path.is_file() and path.suffix in (".py", ".yaml", ".txt", ".json"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
