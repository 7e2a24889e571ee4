"""The probe: may this model use shared-prompt attention? Measured at load time, never looked up in a list.

Random groups are packed and compared with plain separate forwards of each prompt + completion through the model's
own attention. One of the groups stands far out in position, so that position embeddings whose meaning depends on
the longest position in the row (longrope, dynamic NTK) show themselves; models that mix tokens outside
attention (state-space and convolution layers) or bring their own (ALiBi, sinks) differ or refuse.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from preftune.engine.attention import NAME, PackedLayout, register
from preftune.engine.head import check_score_head, decoder_of, probe_head, read_head
from preftune.engine.pack import Pack, pack, unshare
from preftune.engine.padded import Memory, run_rows
from preftune.errors import ModelError
from preftune.records import Completion, Group, Prompt

if TYPE_CHECKING:
    from preftune.engine.forward import Engine

TOLERANCE_FP32 = 1e-4
TOLERANCE_BF16 = 0.02
"""Bound on max |Δ| of hidden states, relative to their size: rounding in fp32, and in bf16 (whose unit is 0.4 %)."""


Asked: TypeAlias = Literal["auto", "shared", "padded"]


def choose_mode(engine: Engine, *, asked: Asked) -> tuple[Literal["shared", "padded"], str]:
    """Probe the engine's model. Returns the mode and the reason in words; sets the engine's `whole_logits`,
    `row_by_row` and `memory`. The model is left as it was.

    Raises:
        ModelError: the recipe requires the shared mode and the model does not allow it; a reward model whose score is
            not a linear head on its last token's state.
    """
    model = engine.policy.base
    was_training = {m: m.training for m in model.modules()}
    before = Memory.of(model)
    model.eval()
    try:
        with torch.no_grad():
            if engine.scoring:
                check_score_head(engine.policy.model)
            engine.whole_logits = not engine.scoring and not _head_is_plain(engine)
            fault: str | None = "its head is not a plain projection"
            if asked == "padded":
                fault = "asked for by the recipe"
            elif not engine.whole_logits:
                fault = _shared_fault(engine)
            if fault is not None and asked != "shared":
                _set_attention(model, engine.plain_attention)
                engine.row_by_row = _rows_disturb(engine, before)
    finally:
        _set_attention(model, engine.plain_attention)
        before.changed(model).restore(model)
        for module, training in was_training.items():
            module.training = training
    if fault is None:
        return "shared", "the probe found shared-prompt attention exact for this model"
    if asked == "shared":
        raise ModelError(
            f"model.attention is shared, but this model does not allow it: {fault}. Use auto: it falls back to padding"
        )
    how = "prompts are repeated and " + ("each row runs alone" if engine.row_by_row else "padded")
    if asked == "padded":
        return "padded", f"{fault}; {how}"
    return "padded", f"shared-prompt attention does not fit this model ({fault}); {how}"


def _set_attention(model: Any, name: str) -> None:
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)


def _head_is_plain(engine: Engine) -> bool:
    base = engine.policy.base
    try:
        head = read_head(base)
        # A half-precision head can't be compared at fp32's tolerance; the states below are compared at bf16's.
        half = next(base.parameters()).dtype not in (torch.float32, torch.float64)
        return half or probe_head(base, head) <= TOLERANCE_FP32
    except ModelError:
        return False


def _rows_disturb(engine: Engine, first: Memory) -> bool:
    """Whether a row of a padded batch comes out otherwise than alone, in the model's first state."""
    base, device = engine.policy.base, engine.policy.device
    try:
        decoder = decoder_of(base)
    except ModelError:
        return True
    groups = _groups(base.get_input_embeddings().weight.shape[0])
    (row,) = pack(groups, 100_000, device=device)
    rows = unshare(replace(row, position_ids_N=_far_positions(row, groups, engine)))
    first.changed(base).restore(base)
    together = run_rows(decoder, rows)
    engine.memory = first.changed(base)
    worst = 0.0
    for r in range(len(rows.input_ids)):
        first.changed(base).restore(base)
        alone = run_rows(decoder, rows.alone(r))[0]
        worst = max(worst, _relative(together[r, : len(alone)], alone))
    return worst > _limit(together)


def _shared_fault(engine: Engine) -> str | None:
    """Why the shared path can't be used, or None when it is exact."""
    base, device = engine.policy.base, engine.policy.device
    vocabulary = base.get_input_embeddings().weight.shape[0]
    groups = _groups(vocabulary)
    decoder = decoder_of(base)
    layers = base.config.get_text_config().num_hidden_layers
    plain: list[Tensor] = []
    shift = _shift(engine)
    try:
        for index, group in enumerate(groups):
            for completion in group.completions:
                ids = torch.tensor([group.prompt.ids + completion.ids[:-1]], device=device)
                places = torch.arange(ids.shape[1], device=device)[None] + (shift if index == len(groups) - 1 else 0)
                plain.append(decoder(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[0])
        register()
        _set_attention(base, NAME)
        (row,) = pack(groups, 100_000, device=device)
        layout = PackedLayout(row.segments, device)
        positions = _far_positions(row, groups, engine)
        states = decoder(input_ids=row.input_ids_N[None], position_ids=positions[None], use_cache=False, layout=layout)
        shared_ND = states.last_hidden_state[0]
    except Exception as error:  # noqa: BLE001 - whatever a foreign model does here, the answer is: not for this model
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no message'}"
    if sorted(layout.calls) != list(range(layers)):
        return f"{len(set(layout.calls))} of {layers} layers call their attention exactly once"
    worst = 0.0
    pairs = [(g, c) for g, group in enumerate(groups) for c in range(len(group.completions))]
    want = dict(zip(pairs, plain, strict=True))
    flat = iter(row.members)
    for segment in row.segments:
        for at, n in segment.completions:
            states_LD = want[next(flat)]
            mine = torch.cat([shared_ND[segment.start : segment.start + segment.prompt], shared_ND[at : at + n]])
            worst = max(worst, _relative(mine, states_LD))
    limit = _limit(shared_ND)
    return None if worst <= limit else f"hidden states differ by {worst:.1e} of their size, over {limit:.0e}"


def probe_states(engine: Engine) -> Tensor:
    """Last hidden states of the probe's groups, packed and as the engine computes them: [T, D]."""
    with _measuring(engine) as row:
        return engine.token_states(row, engine.policy.model)


def probe_values(engine: Engine) -> Tensor:
    """What the engine reads of the probe's groups: states of some tokens, [T, D], or of last tokens, [S, D]."""
    with _measuring(engine) as row:
        if engine.scoring:
            return engine.last_states(row, engine.policy.model)
        # Every second completion is read, so that some rows are not.
        some = row.sequence_T % 2 == 0
        few = replace(row, source_T=row.source_T[some], target_T=row.target_T[some])
        return engine.token_states(few, engine.policy.model)


@contextmanager
def _measuring(engine: Engine) -> Iterator[Pack]:
    """The probe's groups as one pack; within it the policy runs without gradients and in eval mode."""
    model = engine.policy.model
    (row,) = engine.pack(_groups(engine.policy.base.get_input_embeddings().weight.shape[0]), 100_000)
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield row
    finally:
        for module, before in training.items():
            module.training = before


def states_agree(mine: Tensor, want: Tensor) -> bool:
    """Whether two ways to the same states gave them alike, up to rounding."""
    return mine.shape == want.shape and _relative(mine.float(), want.float()) <= _limit(want)


def _shift(engine: Engine) -> int:
    return max((engine.policy.context_length or 4096) - 64, 0)


def _far_positions(row: Pack, groups: list[Group], engine: Engine) -> Tensor:
    """The row's positions with the last group's moved far out."""
    positions = row.position_ids_N.clone()
    far = next(s for s, g in zip(row.segments, _order(row.members), strict=True) if g == len(groups) - 1)
    positions[far.start : far.end] += _shift(engine)
    return positions


def _relative(a: Tensor, b: Tensor) -> float:
    """max |Δ| in units of the largest state; NaN counts as infinite."""
    delta = float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
    return math.inf if math.isnan(delta) else delta


def _limit(states: Tensor) -> float:
    return TOLERANCE_FP32 if states.dtype in (torch.float32, torch.float64) else TOLERANCE_BF16


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
