"""The decoding cache: each group's prompt keys and values once, each row's own beside them.

Rows stand in a grid of groups × width. A finished row leaves the batch at once (its token is no longer fed
to the model); its place in the grid is cleaned up when enough rows have left, or when new groups come in.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from preftune.engine.attention import Asked

GROW = 64
"""Own-token places added to the cache when it is full."""


@dataclass
class Row:
    """One completion being decoded. `uniform` holds its random numbers, one a token, in single precision."""

    prompt: int
    index: int
    uniform: array[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _Layer:
    prompt_k: Tensor  # [G, K, P, d]
    prompt_v: Tensor
    own_k: Tensor  # [G, K, W, L, d]
    own_v: Tensor


class DecodeCache:
    """Keys and values of the groups under way; also the attention layout of one decoding step.

    Attributes:
        rows: the active rows, in the order of the model's input.
        slot_B: each active row's place in the grid, group × width + column.
        asked: what each layer asks of its attention.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.layers: dict[int, _Layer] = {}
        self.asked: dict[int, Asked] = {}
        self.prompt_lengths: list[int] = []
        self.width = 0
        self.rows: list[Row] = []
        self.slot_B = torch.empty(0, dtype=torch.long, device=device)
        self.length_GW = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor | None] = {}
        self._span = 0  # own tokens of the longest row, with the one that is about to be fed
        self._reach = 0  # places of the own keys that this step reads
        self._places: dict[int, Tensor] = {}
        self._row_P: Tensor | None = None  # the row at each place of the grid; None: rows fill it in order

    # --- membership -------------------------------------------------------------------------------------------

    @property
    def places(self) -> int:
        return len(self.prompt_lengths) * self.width

    def positions_B(self) -> Tensor:
        """Position of the next input token of each active row."""
        prompts = torch.tensor(self.prompt_lengths, device=self.device)
        return prompts[self.slot_B // self.width] + self.length_GW.flatten()[self.slot_B]

    def admit(self, rows: Sequence[Sequence[Row]], states: Sequence[dict[int, tuple[Tensor, Tensor]]]) -> None:
        """Add groups: for each, its rows and per layer the prompt's keys and values [K, P, d]."""
        self._rebuild(list(rows), list(states))

    def keep(self, keep_B: Tensor) -> None:
        """Go on with the rows where `keep_B` is True; clean up when under 60 % of the grid is in use."""
        self.rows = [row for row, kept in zip(self.rows, keep_B.tolist(), strict=True) if kept]
        self.slot_B = self.slot_B[keep_B.to(self.device)]
        if self.rows and len(self.rows) < 0.6 * self.places:
            self._rebuild([], [])

    def _rebuild(self, new_rows: list[Sequence[Row]], new_states: list[dict[int, tuple[Tensor, Tensor]]]) -> None:
        """Lay the grid anew: active rows of old groups close up, new groups follow."""
        old_width, device = self.width, self.device
        slots = self.slot_B.tolist()
        members: dict[int, list[tuple[Row, int]]] = {}
        for row, slot in zip(self.rows, slots, strict=True):
            members.setdefault(slot // old_width if old_width else 0, []).append(
                (row, slot % old_width if old_width else 0)
            )
        old_groups = list(members)
        width = max([len(m) for m in members.values()] + [len(r) for r in new_rows], default=0)
        group_at = torch.zeros(len(old_groups), width, dtype=torch.long, device=device)
        column_at = torch.zeros_like(group_at)
        rows: list[Row] = []
        slot_list: list[int] = []
        for g, old in enumerate(old_groups):
            for w, (row, column) in enumerate(members[old]):
                group_at[g, w], column_at[g, w] = old, column
                rows.append(row)
                slot_list.append(g * width + w)
        for g, fresh in enumerate(new_rows, len(old_groups)):
            for w, row in enumerate(fresh):
                rows.append(row)
                slot_list.append(g * width + w)
        lengths = [self.prompt_lengths[g] for g in old_groups] + [
            next(iter(s.values()))[0].shape[1] for s in new_states
        ]
        longest = max(lengths, default=0)
        old_length = self.length_GW[group_at, column_at] if old_groups else self.length_GW.new_zeros(0, width)
        used = int(old_length.max()) if old_length.numel() else 0
        layer_ids = list(self.layers) or (list(new_states[0]) if new_states else [])
        kept = torch.tensor(old_groups, dtype=torch.long, device=device)
        fresh_layers: dict[int, _Layer] = {}
        for layer in layer_ids:
            now = self.layers.pop(layer, None)  # each old layer goes when its new one is filled: not two whole caches
            sample = now.prompt_k if now is not None else new_states[0][layer][0][None]
            sample_v = now.prompt_v if now is not None else new_states[0][layer][1][None]
            heads = sample.shape[1]
            shape = (len(lengths), heads, longest)
            pk, pv = sample.new_zeros(*shape, sample.shape[-1]), sample.new_zeros(*shape, sample_v.shape[-1])
            own = (len(lengths), heads, width, used + GROW)
            ok, ov = sample.new_zeros(*own, sample.shape[-1]), sample.new_zeros(*own, sample_v.shape[-1])
            if now is not None and old_groups:
                span = min(longest, now.prompt_k.shape[2])
                pk[: len(old_groups), :, :span] = now.prompt_k[kept, :, :span]
                pv[: len(old_groups), :, :span] = now.prompt_v[kept, :, :span]
                for w in range(width):
                    ok[: len(old_groups), :, w, :used] = now.own_k[group_at[:, w], :, column_at[:, w], :used]
                    ov[: len(old_groups), :, w, :used] = now.own_v[group_at[:, w], :, column_at[:, w], :used]
            for g, state in enumerate(new_states, len(old_groups)):
                k, v = state[layer]
                pk[g, :, : k.shape[1]], pv[g, :, : v.shape[1]] = k, v
            fresh_layers[layer] = _Layer(pk, pv, ok, ov)
        self.layers, self.prompt_lengths, self.width, self.rows = fresh_layers, lengths, width, rows
        self.slot_B = torch.tensor(slot_list, dtype=torch.long, device=device)
        self.length_GW = torch.cat([old_length, old_length.new_zeros(len(new_states), width)])
        # A place that no row holds keeps a length of zero, so that it never stretches the attention's span.
        held = torch.zeros(len(lengths) * width, dtype=torch.bool, device=device)
        held[self.slot_B] = True
        self.length_GW = self.length_GW * held.view_as(self.length_GW)

    # --- one step ---------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Prepare masks for the token that every active row is about to be fed."""
        self._span = int(self.length_GW.flatten()[self.slot_B].max()) + 1
        self._masks = {}
        for layer in self.layers.values():
            if layer.own_k.shape[3] < self._span:
                layer.own_k, layer.own_v = (_grown(x) for x in (layer.own_k, layer.own_v))
        # On a CPU products in half precision want whole tensors: a slice costs a copy, three times the product itself.
        # What is read past the span is masked.
        sample = next(iter(self.layers.values())).own_k
        self._reach = sample.shape[3] if not sample.is_cuda and sample.dtype != torch.float32 else self._span
        self._places = {}
        slots = self.slot_B
        everywhere = torch.arange(self.places, device=self.device)
        self._row_P = None
        if not torch.equal(slots, everywhere):
            # A place without a row computes the first row's attention, and nothing reads it.
            self._row_P = torch.zeros_like(everywhere).index_copy_(0, slots, everywhere[: len(slots)])

    def end_step(self) -> None:
        """The token is in the cache now."""
        flat = self.length_GW.flatten()
        flat[self.slot_B] += 1
        self.length_GW = flat.view_as(self.length_GW)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [G, 1, W, 1, P + L] of this step, None when everything is visible."""
        key = (window, dtype)
        if key not in self._masks:
            prompts_G = torch.tensor(self.prompt_lengths, device=self.device)
            longest = int(prompts_G.max())
            at_P = torch.arange(longest, device=self.device)
            at_L = torch.arange(self._reach, device=self.device)
            now_GW = self.length_GW
            seen_prompt = (at_P < prompts_G[:, None])[:, None].expand(-1, self.width, -1)
            seen_own = at_L <= now_GW[..., None]
            if window is not None:
                # In positions: a key stays visible while it is fewer than `window` tokens back.
                query_GW = prompts_G[:, None] + now_GW
                seen_prompt = seen_prompt & (at_P > query_GW[..., None] - window)
                seen_own = seen_own & (prompts_G[:, None, None] + at_L > query_GW[..., None] - window)
            seen = torch.cat([seen_prompt, seen_own], -1)
            if bool(seen.all()):
                self._masks[key] = None
            else:
                mask = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, -torch.inf)
                self._masks[key] = mask[:, None, :, None, :]
        return self._masks[key]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """One new token a row: q [1, H, B, d], k and v [1, K, B, d] → [1, H, B, d]. Stores k and v."""
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        out_BHd = self.attend_rows(layer, *rows, scale=scale, window=window, softcap=softcap)
        return out_BHd.transpose(0, 1)[None]

    def attend_rows(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """The same by rows: q [B, H, d], k and v [B, K, d] → [B, H, d]."""
        store = self.layers[layer]
        groups, width, heads = len(self.prompt_lengths), self.width, k.shape[1]
        places = self._store_places(heads, store.own_k.shape[3])
        store.own_k.view(-1, k.shape[2]).index_copy_(0, places, k.reshape(-1, k.shape[2]))
        store.own_v.view(-1, v.shape[2]).index_copy_(0, places, v.reshape(-1, v.shape[2]))
        repeats = q.shape[1] // heads
        q = q * scale
        if self._row_P is not None:
            q = q.index_select(0, self._row_P)
        # [G, W, K, r, d] → [G, K, W, r, d]: one prompt's keys serve all its rows in one product.
        q_G = q.view(groups, width, heads, repeats, -1).transpose(1, 2).contiguous()
        own_k, own_v = store.own_k[:, :, :, : self._reach], store.own_v[:, :, :, : self._reach]
        prompt = (q_G.view(groups, heads, width * repeats, -1) @ store.prompt_k.transpose(-1, -2)).view(
            groups, heads, width, repeats, -1
        )
        scores = torch.cat([prompt, q_G @ own_k.transpose(-1, -2)], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores.float() / softcap)
        mask = self._mask(window, scores.dtype)
        if mask is not None:
            scores += mask
        weights = scores.softmax(-1).to(v.dtype)  # of 16-bit scores too the kernel computes in fp32
        longest = store.prompt_k.shape[2]
        out = (weights[..., :longest].reshape(groups, heads, width * repeats, -1) @ store.prompt_v).view(
            groups, heads, width, repeats, -1
        )
        out = out + weights[..., longest:] @ own_v
        flat = out.transpose(1, 2).reshape(self.places, heads * repeats, -1)
        return flat if self._row_P is None else flat.index_select(0, self.slot_B)

    def _store_places(self, heads: int, length: int) -> Tensor:
        """Where each row's keys of this step stand among [G·K·W·L], rows before heads: [B·K]."""
        if heads not in self._places:
            group_B, column_B = self.slot_B // self.width, self.slot_B % self.width
            each = (group_B[:, None] * heads + torch.arange(heads, device=self.device)) * self.width + column_B[:, None]
            self._places[heads] = (each * length + self.length_GW.flatten()[self.slot_B][:, None]).flatten()
        return self._places[heads]


def _grown(x: Tensor) -> Tensor:
    shape = list(x.shape)
    shape[3] = GROW
    return torch.cat([x, x.new_zeros(shape)], 3)
