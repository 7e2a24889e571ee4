"""The padded path's tools: running right-padded rows, and forgetting what a model keeps between forwards."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from preftune.engine.pack import PaddedBatch


def run_rows(decoder: Any, rows: PaddedBatch) -> Tensor:
    """Hidden states [S, L, D] of right-padded rows through the model's own attention."""
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        inputs["position_ids"] = rows.position_ids
    states: Tensor = decoder(**inputs).last_hidden_state
    return states


_Kept = bool | int | float | Tensor


class Memory:
    """What a model keeps between forwards besides its parameters: buffers and plain attributes of its modules.
    Rotary frequencies under dynamic NTK are the usual case: they stay stretched to the longest row seen so far.

    Args:
        values: (module name, attribute) → value; see `of` and `changed`.
    """

    def __init__(self, values: Mapping[tuple[str, str], _Kept]) -> None:
        self.values = dict(values)

    @classmethod
    def of(cls, model: nn.Module) -> Memory:
        """Everything of that kind as it is now."""
        values: dict[tuple[str, str], _Kept] = {}
        for name, module in model.named_modules():
            kept = {**vars(module), **dict(module.named_buffers(recurse=False))}
            for key, value in kept.items():
                if key != "training" and isinstance(value, (bool, int, float, Tensor)):
                    values[name, key] = value.clone() if isinstance(value, Tensor) else value
        return cls(values)

    def changed(self, model: nn.Module) -> Memory:
        """The part that is no longer so in `model`."""
        now = Memory.of(model).values
        return Memory({at: v for at, v in self.values.items() if at not in now or not _same(v, now[at])})

    def restore(self, model: nn.Module) -> None:
        """Make it so again, in this model or in another of the same architecture."""
        for (name, key), value in self.values.items():
            # A copy: the model may write into the tensor in place.
            setattr(model.get_submodule(name), key, value.clone() if isinstance(value, Tensor) else value)


def _same(a: _Kept, b: _Kept) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
