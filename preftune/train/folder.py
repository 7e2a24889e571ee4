"""The run folder: made once, never overwritten, with everything needed to repeat the run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from preftune.config import Recipe
from preftune.errors import PreftuneError, UsageError


def open_folder(folder: Path, *, resume: bool) -> None:
    """Make the run folder, or check that it may be continued.

    Raises:
        UsageError: it exists and holds something, and `resume` is not asked for; or there is nothing to resume.
    """
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise UsageError(
                f"the run folder {folder} exists already. Continue that run with --resume, or give another with --output"
            )
        if not (folder / "recipe.yaml").exists() and not (folder / "pipeline.json").exists():
            raise UsageError(f"{folder} is not a run folder (it has no recipe.yaml); give another with --output")
        return
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


def check_same_recipe(folder: Path, text: str) -> None:
    """Refuse to resume under another recipe: the result would be neither run.

    Raises:
        UsageError: naming the first line that differs.
    """
    saved = (folder / "recipe.yaml").read_text(encoding="utf-8")
    if saved == text:
        return
    pairs = zip(saved.splitlines(), text.splitlines(), strict=False)
    was, now = next(((a, b) for a, b in pairs if a != b), ("(its length)", "(its length)"))
    raise UsageError(
        f"can't resume {folder}: the recipe differs from the one it began with (was `{was.strip()}`, now `{now.strip()}`). "
        f"Resume with {folder / 'recipe.yaml'}, or start a new run with --output"
    )


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


def pair_up(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Names and values as one mapping; lengths must agree."""
    return dict(zip(names, values, strict=True))
