"""Sizes that come again, for matrix products by oneDNN on a CPU: in half precision, and in fp32 by `engine.products`.

oneDNN compiles machine code for every new shape of a product and keeps it: two thirds of a MiB each, some sixty
shapes a pack, and no two packs are of one length. Left alone, a run of forty steps of DPO grew by 1 GiB
(docs/log.md). Rows filled up to a multiple of STEP tokens have few lengths; what is filled in belongs to no group,
nothing attends to it, nothing reads it, and its gradient is zero. And oneDNN is asked to keep fewer kernels.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
import torch.nn.functional as F

from preftune.engine.pack import Pack, Segment

STEP = 64
"""Tokens; a row's mean filling is half of it."""

KERNELS, KERNELS_FP32 = 64, 24
"""Compiled products kept at a time, in half precision and in fp32, where attention has none of them. A layer of
a pack needs ten to thirty, forwards and backwards, and the next layer the same ones. More of them were no faster, or by
less than 3 %, and took up to 0.1 GiB (docs/log.md)."""


def rounded(length: int) -> int:
    """The length of a batch of spans: up to the next of eight sizes between one power of two and the next, and to a
    multiple of 8."""
    step = max(8, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def even(packed: Pack) -> Pack:
    """The pack with its row and its trained tokens filled up. Results for the first `len(packed.target_T)` trained
    tokens are the pack's own."""
    row, trained = -packed.tokens % STEP, -len(packed.target_T) % STEP
    if row:
        filling = Segment(packed.tokens, row, ())
        packed = replace(
            packed,
            input_ids_N=F.pad(packed.input_ids_N, (0, row)),
            position_ids_N=torch.cat([packed.position_ids_N, torch.arange(row)]),
            segments=(*packed.segments, filling),
        )
    if trained and len(packed.target_T):
        packed = replace(
            packed, source_T=F.pad(packed.source_T, (0, trained)), target_T=F.pad(packed.target_T, (0, trained))
        )
    return packed


def keep_fewer_kernels(*, half: bool) -> bool:
    """Ask oneDNN, and the store in front of it in each thread, to keep KERNELS compiled products instead of 1,024,
    before any was compiled. Returns whether they were asked: a choice in the environment stands, an earlier call's too.

    Args:
        half: products will be in half precision.
    """
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    if any(name in os.environ for name in (*names, "DNNL_PRIMITIVE_CACHE_CAPACITY")):
        return False
    os.environ.update(dict.fromkeys(names, str(KERNELS if half else KERNELS_FP32)))
    return True
