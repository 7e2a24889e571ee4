"""Checkpoints: safetensors and JSON, written whole or not at all.

A checkpoint is written to a temporary folder, flushed to disk and renamed; `state.json` holds the hash of every
file and its own, so that a damaged one is recognised and the one before it is used instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import CheckpointError

Parameters = Sequence[tuple[str, nn.Parameter]]
"""The trained parameters with their names, in a fixed order."""


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
    parameters: Parameters,
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
    with _clear_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_tensors(parameters), temporary / "weights.safetensors")
        save_file(_optimizer_tensors(parameters, optimizer), temporary / "optimizer.safetensors")
        hashes = {f: _sha256(temporary / f) for f in ("weights.safetensors", "optimizer.safetensors")}
        record = {"step": step, "files": hashes, "state": dict(state)}
        text = json.dumps({"sha256": _digest(record), **record}, indent=1)
        (temporary / "state.json").write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _flush(folder)
    for old in sorted(_steps(folder))[:-keep]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return final


def load_latest(folder: Path) -> tuple[Restored | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each damaged one that was passed over.

    A damaged one is renamed to `damaged-step-N`: it must neither be met again nor count among those to keep.

    Raises:
        CheckpointError: a damaged one can't be renamed.
    """
    notes: list[str] = []
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step-{step}"
        try:
            return _load(path), notes
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            aside = folder / f"damaged-step-{step}"
            notes.append(
                f"checkpoint {path.name} is damaged ({error}) and was renamed to {aside.name}; going back to the one "
                "before it"
            )
        with _clear_errors(aside):
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
    if notes:
        notes.append("no whole checkpoint is left: starting again from the first step")
    return None, notes


def find_weights(folder: Path, wanted: Callable[[int, dict[str, Any]], bool]) -> Restored | None:
    """The newest whole checkpoint whose step and state are wanted; damaged ones are passed over."""
    for step in sorted(_steps(folder), reverse=True):
        try:
            found = _load(folder / f"step-{step}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
        if wanted(step, found.state):
            return found
    return None


def save_best(folder: Path, step: int, parameters: Parameters) -> str:
    """Write `folder/best-N.safetensors`, the weights alone. Returns the file's hash for `load_best`.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    path = _best(folder, step)
    temporary = path.with_name(f".writing-{path.name}")
    with _clear_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(parameters), temporary)
        digest = _sha256(temporary)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(folder)
    return digest


def load_best(folder: Path, step: int, digest: str) -> dict[str, Tensor]:
    """The weights that `save_best` wrote. Raises CheckpointError when they are damaged."""
    path = _best(folder, step)
    try:
        if _sha256(path) != digest:
            raise ValueError("it does not have the hash it was written with")
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the best weights {path} are damaged: {error}. --resume goes back to a checkpoint from before them"
        ) from error


def prune_best(folder: Path, current: int | None) -> None:
    """Remove best weights that neither the run nor a checkpoint needs: a resume may go back to any checkpoint."""
    needed = {current}
    for step in _steps(folder):
        try:
            state = json.loads((folder / f"step-{step}" / "state.json").read_text(encoding="utf-8"))["state"]
            needed.add(state["best"]["step"] if state["best"] else None)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged checkpoint is never resumed
    names = {_best(folder, step).name for step in needed if step is not None}
    for path in folder.glob("best-*.safetensors"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def fingerprint(model: nn.Module) -> str:
    """Hash of the names, shapes and some values of all weights: the same model, at little cost."""
    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        flat = tensor.detach().flatten()
        some = torch.cat([flat[:32], flat[-32:]]).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def restore(restored: Restored, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    load_weights(restored.weights, parameters)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in restored.optimizer.items():
        name, _, entry = key.rpartition("|")
        found.setdefault(name, {})[entry] = value
    for name, parameter in parameters:
        if name in found:  # the fused optimizer wants its step count beside the weights too
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found[name].items()}


def load_weights(weights: Mapping[str, Tensor], parameters: Parameters) -> None:
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


def _optimizer_tensors(parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = value.detach().cpu().contiguous()
    return out


def _tensors(parameters: Parameters) -> dict[str, Tensor]:
    return {n: p.detach().cpu().contiguous() for n, p in parameters}


def _load(path: Path) -> Restored:
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if record.pop("sha256") != _digest(record):
        raise ValueError("state.json does not have the hash it was written with")
    for name, digest in record["files"].items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} does not have the hash it was written with")
    best = record["state"].get("best")
    if best is not None:
        name = _best(path.parent, best["step"])
        if _sha256(name) != best["sha256"]:
            raise ValueError(f"its {name.name} does not have the hash it was written with")
    return Restored(
        record["step"],
        record["state"],
        load_file(path / "weights.safetensors"),
        load_file(path / "optimizer.safetensors"),
    )


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"can't write the checkpoint {path}: {error}. Training up to the previous checkpoint is safe; free some "
            "space or make the folder writable, then continue with --resume"
        ) from error


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step}.safetensors"


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8")).hexdigest()


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
