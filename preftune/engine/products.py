"""Products in single precision by oneDNN, on processors where torch's BLAS uses half of their width.

torch multiplies fp32 matrices with Intel's MKL, which on other makers' processors takes its 256-bit path: on an AMD
EPYC with 512-bit units 210 GFLOP/s of 480 (docs/log.md). oneDNN, which torch uses for convolutions, goes by what the
processor can do. A linear layer over a row of tokens is a convolution of size 1 × 1, forward and both gradients, so
`linear` is one; numbers differ by rounding, as between two BLAS libraries.

Which of the two acts is decided by the processor's maker and width, never by a stopwatch: a run that is repeated or
resumed takes the same one.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = 16
"""A row of tokens goes in as so many images: torch gives a 1 × 1 convolution of fewer to its own, slower kernel where
it runs on one thread."""

LEAST = 1 << 23
"""Products of fewer multiplications are faster in MKL: calling a convolution takes 20 µs more."""


@functools.cache
def blas_is_narrow() -> bool:
    """Whether torch multiplies fp32 matrices with narrower vectors than this processor has."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return wide and mkl and has_inner() and not _is_intel()


@functools.cache
def has_inner() -> bool:
    """Whether this torch has oneDNN and the calls of it that `inner` needs."""
    there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return there and all(hasattr(torch.ops.mkldnn, n) for n in ("_linear_pointwise", "_reorder_linear_weight"))


def _is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    name = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else platform.processor()
    return "Intel" in name.split("flags", 1)[0]


def wide(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes a product of these: x […, K], weight [N, K]."""
    return (
        x.numel() // max(x.shape[-1], 1) * weight.numel() >= LEAST
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and blas_is_narrow()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`; x […, K], weight [N, K] → […, N]."""
    rows = x.numel() // max(x.shape[-1], 1)
    if rows % IMAGES or not wide(x, weight):
        return F.linear(x, weight, bias)
    images = x.reshape(IMAGES, rows // IMAGES, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def inner(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b without a graph, as torch's compiler calls oneDNN: x [T, K], weight [N, K] → [T, N]. Of any number of
    rows and any strides; for a head's many outputs twice as fast as the convolution."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class Products:
    """A model's linear layers, which take `linear`.

    Attributes:
        taken: how many; none where torch's own products are as wide as the processor.
    """

    def __init__(self, *models: Any) -> None:
        self._layers: list[nn.Linear] = []
        for module in (m for model in models for m in model.modules()):
            if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
                del module.__dict__["forward"]  # another engine's on this model
            if type(module) is nn.Linear and "forward" not in module.__dict__ and module.weight.dtype == torch.float32:
                self._layers.append(module)
        self.taken = len(self._layers)
        self.on()

    @property
    def by(self) -> str:
        """Who multiplies, in words."""
        return "oneDNN in fp32: the BLAS leaves half of this processor's width unused" if self.taken else "torch"

    def on(self) -> None:
        """Let the layers use it."""
        for layer in self._layers:
            layer.__dict__["forward"] = MethodType(_forward, layer)

    def off(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, self.weight, self.bias)
