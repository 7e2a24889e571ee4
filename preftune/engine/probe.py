"""The probe: may this model use shared-prompt attention? Measured at load time, never looked up in a list.

Random groups are packed and compared with plain separate forwards of each prompt + completion through the model's
own attention. One of the groups stands far out in position, so that position embeddings whose meaning depends on
the longest position in the row (longrope, dynamic NTK) show themselves; models that mix tokens outside
attention (state-space and convolution layers) or bring their own (ALiBi, sinks) differ or refuse.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from preftune.engine.attention import NAME, PackedLayout, register
from preftune.engine.head import decoder_of, probe_head, read_head
from preftune.engine.pack import pack
from preftune.errors import ModelError
from preftune.records import Completion, Group, Prompt

if TYPE_CHECKING:
    from preftune.engine.forward import Engine

TOLERANCE_FP32 = 1e-4
TOLERANCE_BF16 = 0.02
"""Bound on max |Δ| of hidden states, relative to their size: rounding in fp32, and in bf16 (whose unit is 0.4 %)."""


def choose_mode(engine: Engine, *, required: bool) -> tuple[Literal["shared", "padded"], str]:
    """Probe the engine's model. Returns the mode and the reason in words.

    Raises:
        ModelError: the recipe requires the shared mode and the model does not allow it.
    """
    model = engine.policy.base
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            head_delta = _head_delta(engine)
            engine.whole_logits = head_delta is None or head_delta > TOLERANCE_FP32
            reason = "its head is not a plain projection" if engine.whole_logits else _shared_fault(engine)
    finally:
        model.set_attn_implementation(engine.plain_attention)
        model.train(was_training)
    if reason is None:
        return "shared", "the probe found shared-prompt attention exact for this model"
    if required:
        raise ModelError(
            f"model.attention is shared, but this model does not allow it: {reason}. Use auto: it falls back to padding"
        )
    return "padded", f"shared-prompt attention does not fit this model ({reason}); prompts are repeated and padded"


def _head_delta(engine: Engine) -> float | None:
    base = engine.policy.base
    if next(base.parameters()).dtype != torch.float32:
        # A half-precision head can't be compared at fp32's tolerance; the states below are compared at bf16's.
        return 0.0
    try:
        return probe_head(base, read_head(base))
    except ModelError:
        return None


def _shared_fault(engine: Engine) -> str | None:
    """Why the shared path can't be used, or None when it is exact."""
    base, device = engine.policy.base, engine.policy.device
    vocabulary = base.get_input_embeddings().weight.shape[0]
    groups = _groups(vocabulary)
    context = engine.policy.context_length or 4096
    decoder = decoder_of(base)
    layers = base.config.get_text_config().num_hidden_layers
    plain: list[Tensor] = []
    shift = max(context - 64, 0)
    try:
        base.set_attn_implementation(engine.plain_attention)
        for index, group in enumerate(groups):
            for completion in group.completions:
                ids = torch.tensor([group.prompt.ids + completion.ids[:-1]], device=device)
                places = torch.arange(ids.shape[1], device=device)[None] + (shift if index == len(groups) - 1 else 0)
                plain.append(decoder(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[0])
        register()
        base.set_attn_implementation(NAME)
        (row,) = pack(groups, 100_000, device=device)
        layout = PackedLayout(row.segments, device)
        positions = row.position_ids_N.clone()
        far = next(s for s, size in zip(row.segments, _order(row.members), strict=True) if size == len(groups) - 1)
        positions[far.start : far.end] += shift
        states = decoder(input_ids=row.input_ids_N[None], position_ids=positions[None], use_cache=False, layout=layout)
        shared_ND = states.last_hidden_state[0]
    except Exception as error:  # whatever a foreign model does with the probe, the answer is: not for this model
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no message'}"
    if sorted(layout.calls) != list(range(layers)):
        return f"{len(set(layout.calls))} of {layers} layers call their attention exactly once"
    worst = 0.0
    want = {}
    for (g, c), states_LD in zip(((g, c) for g, group in enumerate(groups) for c in range(len(group.completions))), plain, strict=True):  # fmt: skip
        want[g, c] = states_LD
    flat = iter(row.members)
    for segment in row.segments:
        for at, n in segment.completions:
            states_LD = want[next(flat)]
            mine = torch.cat([shared_ND[segment.start : segment.start + segment.prompt], shared_ND[at : at + n]])
            delta = (mine - states_LD).abs().max() / states_LD.abs().max().clamp_min(1e-6)
            worst = max(worst, float(delta))
    limit = TOLERANCE_FP32 if shared_ND.dtype == torch.float32 else TOLERANCE_BF16
    return None if worst <= limit else f"hidden states differ by {worst:.1e} of their size, over {limit:.0e}"


def _order(members: tuple[tuple[int, int], ...]) -> list[int]:
    """Group index of each segment, in the row's order."""
    return list(dict.fromkeys(g for g, _ in members))


def _groups(vocabulary: int) -> list[Group]:
    """Random groups, fixed seed: lengths that cross small windows, a one-token prompt, a far one at the end."""
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    shapes = [(11, (9, 4, 14)), (1, (5, 2)), (23, (7, 12)), (5, (6, 11))]
    return [Group(Prompt(ids(p), ""), tuple(Completion(ids(n), (True,) * n) for n in lengths)) for p, lengths in shapes]
