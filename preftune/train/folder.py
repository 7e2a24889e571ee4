"""The run folder: made once, never overwritten, with everything needed to repeat the run."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from preftune.config import Recipe
from preftune.errors import PreftuneError, UsageError
from preftune.recipes import dump


def open_folder(folder: Path, *, resume: bool) -> None:
    """Make the run folder, or check that it may be continued.

    Raises:
        UsageError: it exists and holds something, and `resume` is not asked for; or there is nothing to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another folder with --output")
    # Hidden files are ours, and all that a process killed in its first moments leaves.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        if not resume:
            raise UsageError(
                f"the run folder {folder} exists already. Continue that run with --resume, or give another with "
                "--output"
            )
        if not (folder / "recipe.yaml").exists() and not (folder / "pipeline.json").exists():
            raise UsageError(f"{folder} is not a run folder (it has no recipe.yaml); give another with --output")
        return
    if resume and not folder.exists():
        raise UsageError(f"there is no run in {folder} to resume; leave --resume out, or use --resume auto")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreftuneError(f"can't make the run folder {folder}: {error}. Give another with --output") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".writing-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error}. Free some space or make the folder writable") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


FREE = re.compile(
    r"output|model\.gradient_checkpointing|tokens\.cache|sampling\.rows|log\..*|rewards\.\d+\.(timeout|on_error|isolate)"
    r"|train\.(max_tokens_per_batch|threads|checkpoint_every|keep_checkpoints)"
)
"""Fields that may change before a resume: how the work is done, not what its result is."""


def check_same_recipe(folder: Path, recipe: Recipe) -> list[str]:
    """Refuse to resume under another recipe: the result would be neither run.

    Returns:
        A sentence for each field that changed and may.

    Raises:
        UsageError: naming the first field that differs and may not.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        return []
    try:
        was = _leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}. Put it back as the run wrote it") from error
    now = _leaves(yaml.safe_load(dump(recipe)))
    notes: list[str] = []
    for field in dict.fromkeys((*was, *now)):
        before, after = was.get(field, ABSENT), now.get(field, ABSENT)
        if before == after:
            continue
        if not FREE.fullmatch(field):
            raise UsageError(
                f"can't resume {folder}: the recipe differs from the one it began with ({field} was {before}, now "
                f"{after}). Resume with {path}, or start a new run with --output"
            )
        notes.append(f"resumed with another {field}: {after} (was {'not set' if before is None else before})")
    return notes


ABSENT = "absent"


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path → value of a nested mapping; empty containers are values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    parts = {k: v for key, inner in items for k, v in _leaves(inner, f"{path}.{key}" if path else str(key)).items()}
    return parts or {path: value}


def clean_folder(folder: Path) -> None:
    """Remove what a process that was killed left half-written."""
    for path in (*folder.glob(".writing-*"), *(folder / "checkpoints").glob(".writing-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `path` when the block ends without an error.

    Raises:
        PreftuneError: the disk is full or read-only.
    """
    temporary = path.with_name(f".writing-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise PreftuneError(
            f"can't write {path}: {error}. Free some space or make the folder writable, then continue with --resume"
        ) from error


def manifest(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the run ran on: versions, commit, hardware, and the given facts."""
    packages = ("preftune", "torch", "transformers", "peft", "datasets", "numpy")
    return {
        "method": recipe.method,
        "model": recipe.model.path,
        "seed": recipe.seed,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "commit": _commit(),
        "hardware": hardware(),
        **facts,
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, GPU; no host name and no path."""
    out: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        out["gpu"] = torch.cuda.get_device_name()
    return out


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        from preftune import __version__

        return __version__ if package == "preftune" else "not installed"


def _commit() -> str | None:
    """The commit of preftune's own checkout, when it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
