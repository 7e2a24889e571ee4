"""Checkpoints: safetensors and JSON, written whole or not at all.

A checkpoint is written to a temporary folder, flushed to disk and renamed; `state.json` holds the hash of every
file, so that a damaged one is recognised and the one before it is used instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Restored:
    """What a checkpoint held."""

    step: int
    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: Sequence[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-N` and remove all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full or read-only, or the folder can't be written.
    """
    final = folder / f"step-{step}"
    temporary = folder / f".writing-step-{step}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({n: p.detach().cpu().contiguous() for n, p in parameters}, temporary / "weights.safetensors")
        save_file(_optimizer_tensors(parameters, optimizer), temporary / "optimizer.safetensors")
        hashes = {f: _sha256(temporary / f) for f in ("weights.safetensors", "optimizer.safetensors")}
        text = json.dumps({"step": step, "files": hashes, "state": dict(state)}, indent=1)
        (temporary / "state.json").write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"can't write the checkpoint {final}: {error}. Training up to the previous checkpoint is safe; free some space "
            "or make the folder writable, then continue with --resume"
        ) from error
    for old in sorted(_steps(folder))[:-keep]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return final


def load_latest(folder: Path) -> tuple[Restored | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each damaged one that was passed over."""
    notes: list[str] = []
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step-{step}"
        try:
            return _load(path), notes
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            notes.append(f"checkpoint {path.name} is damaged ({error}); going back to the one before it")
    return None, notes


def restore(
    restored: Restored, parameters: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> None:
    """Put a checkpoint's weights and optimizer state in place.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    load_weights(restored.weights, parameters)
    for name, parameter in parameters:
        found = {k.rsplit("|", 1)[1]: v for k, v in restored.optimizer.items() if k.rsplit("|", 1)[0] == name}
        if found:
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in found.items()}


def load_weights(weights: Mapping[str, Tensor], parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Copy saved weights into the trained parameters. Raises CheckpointError when names or shapes differ."""
    expected = {n: tuple(p.shape) for n, p in parameters}
    found = {n: tuple(w.shape) for n, w in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise CheckpointError(
            f"the checkpoint is of another model: parameter {wrong} differs. Was model.path or model.lora changed "
            "since the run began? Resume with the recipe of the run folder"
        )
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(weights[name])


def _optimizer_tensors(
    parameters: Sequence[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = value.detach().cpu().contiguous()
    return out


def _load(path: Path) -> Restored:
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for name, digest in record["files"].items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} does not have the hash it was written with")
    return Restored(
        record["step"],
        record["state"],
        load_file(path / "weights.safetensors"),
        load_file(path / "optimizer.safetensors"),
    )


def _steps(folder: Path) -> list[int]:
    return [int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
