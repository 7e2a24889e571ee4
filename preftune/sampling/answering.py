"""A model that is loaded to answer, and not to be trained: a judge, a tier of `preftune data generate`, one to talk
with or to measure."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from preftune.config import ModelConfig
from preftune.engine.forward import Engine
from preftune.models.given import read_adapter
from preftune.models.loading import load_policy


class Given(Protocol):
    """Settings of such a model, beside its path. device and dtype may be `auto`."""

    @property
    def revision(self) -> str | None: ...
    @property
    def device(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def trust_remote_code(self) -> bool: ...


def load_for_answers(path: str, given: Given) -> Engine:
    """Load a folder or hub id; an adapter is merged into its base in memory. Nothing of it learns.

    `auto`: a GPU where there is one, and bfloat16 on it, else float32. No random numbers are taken: those of a run must
    not depend on whether a judge was loaded.

    Raises:
        ModelError: there is no such model, or it can't be loaded.
    """
    device: Any = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: Any = given.dtype if given.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    model = ModelConfig(
        path=path, revision=given.revision, device=device, dtype=dtype, trust_remote_code=given.trust_remote_code
    )
    if read_adapter(model) is not None:
        model = model.model_copy(update={"on_adapter": "merge"})
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        policy = load_policy(model)
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
        return Engine(policy)
