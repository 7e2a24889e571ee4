"""The reference's log-probs of a fixed data set: computed once, before the first update, and kept on disk.

Before training the policy *is* the reference, so full fine-tuning needs no second copy of the weights. A file serves
later runs with the same weights and rows. Its name is a hash of both, the hash is checked again inside, and a few rows
are computed afresh whenever a file is used: one that doesn't fit is replaced, and the run says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preftune.records import Completion, Group, Prompt
from preftune.train.batch import LogProbs

if TYPE_CHECKING:
    from preftune.engine import Engine
    from preftune.models import Policy

FORMAT = 1
CHECKED = 4
"""Rows computed afresh when a file is used."""
CHUNK = 128
"""Prompts scored at a time: bounds what packing has to sort."""
TOLERANCE_FP32 = 1e-3
TOLERANCE_BF16 = 0.5

Tick = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""


def default_folder(kind: str = "reference") -> Path:
    """Where files go when the recipe names no folder: PREFTUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("PREFTUNE_CACHE")
    if root:
        return Path(root) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune" / kind


class ReferenceStore:
    """Log-probs by content: the ids of a prompt and of a completion of it find the completion's log-probs."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, groups: Sequence[Group]) -> LogProbs | None:
        """Log-probs of every completion's trained tokens, [group][completion]; None when one is not here."""
        out: LogProbs = []
        for group in groups:
            found = [self._rows.get(_key(group.prompt, completion)) for completion in group.completions]
            row = [tensor for tensor in found if tensor is not None]
            if len(row) < len(found):
                return None
            out.append(row)
        return out

    def add(self, groups: Sequence[Group], values: LogProbs) -> None:
        """Keep the values of these groups."""
        for group, row in zip(groups, values, strict=True):
            for completion, tensor in zip(group.completions, row, strict=True):
                self._rows[_key(group.prompt, completion)] = tensor


def build_store(
    engine: Engine, groups: Iterable[Group], folder: Path, max_tokens: int, tick: Tick | None = None
) -> tuple[ReferenceStore, str]:
    """The store for these groups, from disk where a file fits, else computed and written.

    Must be called before the first update: with full fine-tuning the policy itself is scored.

    Args:
        groups: everything that will be asked for; repeated completions are scored once, prompts are shared.
        folder: of the cache files.

    Returns:
        The store, and a sentence for the run's notes.
    """
    wanted = _unique(groups)
    about = _describe(engine, wanted, max_tokens)
    path = folder / f"{about['key']}.safetensors"
    store = ReferenceStore()
    trouble = ""
    if path.exists():
        problem = _read(path, about, wanted, store) or _spot_check(engine, wanted, store, max_tokens)
        if not problem:
            count = len(store)
            return store, f"the reference's log-probs of {count:,} completions come from {path.name} in the cache"
        trouble = f"; the cached file {path.name} was not used: {problem}"
        store = ReferenceStore()
    for start in range(0, len(wanted), CHUNK):
        some = wanted[start : start + CHUNK]
        store.add(some, live_reference(engine, some, max_tokens))
        if tick is not None:
            tick(min(start + CHUNK, len(wanted)), len(wanted))
    said = f"the reference's log-probs of {len(store):,} completions were computed once, before training{trouble}"
    try:
        _write(path, about, wanted, store)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        why = getattr(error, "strerror", None) or str(error)
        said += f"; they could not be kept in {folder} ({why}): set train.reference_cache"
    return store, said


def live_reference(engine: Engine, groups: Sequence[Group], max_tokens: int, temperature: float = 1.0) -> LogProbs:
    """The reference's log-probs by a forward pass: adapter off, frozen copy, or the untrained policy itself."""
    policy = engine.policy
    apart = policy.is_adapter or policy.frozen is not None
    return engine.score(groups, max_tokens, temperature=temperature, reference=apart)


def _key(prompt: Prompt, completion: Completion) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for ids in (prompt.ids, completion.ids, completion.mask):
        digest.update(array("q", (len(ids), *ids)).tobytes())
    return digest.digest()


def _unique(groups: Iterable[Group]) -> list[Group]:
    """One group per prompt with its different completions, in order of appearance."""
    found: dict[tuple[int, ...], tuple[Prompt, dict[bytes, Completion]]] = {}
    for group in groups:
        _, completions = found.setdefault(group.prompt.ids, (group.prompt, {}))
        for completion in group.completions:
            completions.setdefault(_key(group.prompt, completion), completion)
    return [Group(prompt, tuple(completions.values())) for prompt, completions in found.values()]


def _describe(engine: Engine, groups: Sequence[Group], max_tokens: int) -> dict[str, str]:
    """What the values depend on. `key` is the hash of all of it."""
    rows = hashlib.sha256()
    for group in groups:
        for completion in group.completions:
            rows.update(_key(group.prompt, completion))
    about: dict[str, Any] = {
        "format": FORMAT, "weights": weights_hash(engine.policy), "rows": rows.hexdigest(), "bf16": engine.bf16,
        "mode": engine.mode, "max_tokens": max_tokens, "device": engine.policy.device.type,
        "torch": torch.__version__, "products": engine.products.by,
    }  # fmt: skip
    text = {name: str(value) for name, value in about.items()}
    return {**text, "key": hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:32]}


def weights_hash(policy: Policy) -> str:
    """Hash of the reference's weights: every byte of what is frozen under an adapter, or of all weights."""
    digest = hashlib.sha256()
    model = policy.model if policy.frozen is None else policy.frozen
    for name, parameter in model.named_parameters():
        if policy.is_adapter and parameter.requires_grad:
            continue  # the new adapter is no part of the reference
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    for name, module in policy.base.named_modules():
        # Of a given adapter under the new one, the scale is no weight but part of what the reference computes.
        scales = getattr(module, "scaling", None)
        if isinstance(scales, dict):
            kept = {adapter: scale for adapter, scale in sorted(scales.items()) if adapter != "default"}
            digest.update(f"{name}{kept}".encode())
    config = policy.base.config.to_dict()
    shape = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    digest.update(f"{type(policy.base).__name__} {shape}".encode())
    return digest.hexdigest()


def _write(path: Path, about: dict[str, str], groups: Sequence[Group], store: ReferenceStore) -> None:
    values = store.of(groups)
    assert values is not None
    rows = [tensor for row in values for tensor in row]
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = torch.cat(rows) if rows else torch.empty(0)
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    try:
        save_file({"logprobs": flat}, temporary, metadata={**about, "sha256": digest})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, about: dict[str, str], groups: Sequence[Group], store: ReferenceStore) -> str:
    """Fill the store from a file. Returns what is wrong with it, "" when nothing is."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, flat = file.metadata() or {}, file.get_tensor("logprobs")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        return f"it can't be read ({str(error).splitlines()[0][:100] if str(error) else type(error).__name__})"
    for name, value in about.items():
        if metadata.get(name) != value:
            return f"it was made for other {name}"
    if hashlib.sha256(flat.numpy().tobytes()).hexdigest() != metadata.get("sha256"):
        return "its content is damaged"
    sizes = [completion.length for group in groups for completion in group.completions]
    if flat.dim() != 1 or flat.numel() != sum(sizes):
        return f"it holds {flat.numel()} tokens, the data has {sum(sizes)}"
    parts = iter(torch.split(flat, sizes))
    store.add(groups, [[next(parts) for _ in group.completions] for group in groups])
    return ""


def _spot_check(engine: Engine, groups: Sequence[Group], store: ReferenceStore, max_tokens: int) -> str:
    """Compute a few rows afresh. Returns what is wrong, "" when they agree."""
    step = max(1, len(groups) // CHECKED)
    some = [replace(group, completions=group.completions[:1]) for group in groups[::step][:CHECKED]]
    known, fresh = store.of(some), live_reference(engine, some, max_tokens)
    assert known is not None
    pairs = [(a, b) for mine, theirs in zip(known, fresh, strict=True) for a, b in zip(mine, theirs, strict=True)]
    worst = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    exact = not engine.bf16 and next(engine.policy.base.parameters()).dtype == torch.float32
    limit = TOLERANCE_FP32 if exact else TOLERANCE_BF16
    return "" if worst <= limit else f"log-probs computed afresh differ from it by up to {worst:.1e}"
