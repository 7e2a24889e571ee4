"""Packing: groups become rows in which each prompt stands once.

A packed row looks like

    prompt₁ c₁₁ c₁₂ … prompt₂ c₂₁ c₂₂ …

Positions restart after the prompt for each completion. A completion's last token predicts nothing, so it is
left out of the input unless `keep_last` asks for it (reward and value heads read the state there).

Only tokens the policy wrote (mask True) are targets; masked spans are context. See records.py for the legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from preftune.errors import DataError
from preftune.records import Completion, Group, Prompt


@dataclass(frozen=True, slots=True)
class Segment:
    """Where one group lies in a packed row: prompt tokens [start, start + prompt), then each completion's input
    tokens in `completions` as (start, length)."""

    start: int
    prompt: int
    completions: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        return self.completions[-1][0] + self.completions[-1][1] if self.completions else self.start + self.prompt


@dataclass(frozen=True, slots=True)
class Pack:
    """One packed row and what is read from it.

    Attributes:
        input_ids_N, position_ids_N: the row. Shape [N].
        segments: where the groups lie.
        source_T: row index of the hidden state that predicts each trained token.
        target_T: the trained token ids.
        sequence_T: index of each trained token's completion within this pack, 0 … S-1.
        members: for each of the S completions, (index of its group, index within the group) in the packed list.
        completions: the S completions themselves.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    segments: tuple[Segment, ...]
    source_T: Tensor
    target_T: Tensor
    sequence_T: Tensor
    members: tuple[tuple[int, int], ...]
    completions: tuple[Completion, ...]

    @property
    def tokens(self) -> int:
        return int(self.input_ids_N.numel())

    @property
    def num_sequences(self) -> int:
        return len(self.members)

    @property
    def unshared_tokens(self) -> int:
        """Tokens that packing without prompt sharing would feed (each completion with its own prompt)."""
        return sum(s.prompt * max(len(s.completions), 1) + sum(n for _, n in s.completions) for s in self.segments)


@dataclass(frozen=True, slots=True)
class _Item:
    """A group, or a part of one, that goes into a single row. `indices`: the places of `completions` in the group."""

    group: int
    indices: tuple[int, ...]
    prompt: Prompt
    completions: tuple[Completion, ...]
    size: int


def input_length(completion: Completion, keep_last: bool = False) -> int:
    """Input tokens of a completion: all but the last, which predicts nothing."""
    return len(completion.ids) if keep_last else max(len(completion.ids) - 1, 0)


PairsOfGroup: TypeAlias = Sequence[tuple[int, int]]
"""Pairs of completions, by their places in one group."""


def pack(
    groups: Sequence[Group],
    max_tokens: int,
    *,
    keep_last: bool = False,
    device: torch.device | str = "cpu",
    pairs: Sequence[PairsOfGroup] | None = None,
) -> list[Pack]:
    """Pack groups into rows of at most `max_tokens` tokens, each group's prompt once.

    A group larger than the budget is split and its prompt repeated with each part. Rows are filled first-fit by
    decreasing size and then evened out, which is deterministic; the order of packs has no meaning, `Pack.members` says
    what is where.

    Args:
        pairs: for each group, the pairs whose two completions a loss needs side by side. Completions in no pair are
            left out. A group that must be split keeps each pair whole, so a completion may stand in several packs.

    Raises:
        DataError: when one prompt with a single completion, or a single pair, is larger than the budget.
    """
    items: list[_Item] = []
    for index, group in enumerate(groups):
        wanted = [(j,) for j in range(len(group.completions))] if pairs is None else pairs[index]
        items.extend(_split(index, group, max_tokens, keep_last, wanted))
    bins: list[list[_Item]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda i: -i.size):
        for b, free in enumerate(room):
            if item.size <= free:
                bins[b].append(item)
                room[b] -= item.size
                break
        else:
            bins.append([item])
            room.append(max_tokens - item.size)
    return [_build(b, keep_last, device) for b in _even_out(bins, max_tokens)]


def _even_out(bins: list[list[_Item]], max_tokens: int) -> list[list[_Item]]:
    """As many rows, of like length where that fits: the longest one sets the memory, and short ones are slow."""
    out: list[list[_Item]] = [[] for _ in bins]
    filled = [0] * len(bins)
    for item in sorted((item for items in bins for item in items), key=lambda i: -i.size):
        least = min(range(len(bins)), key=filled.__getitem__)
        out[least].append(item)
        filled[least] += item.size
    return out if max(filled, default=0) <= max_tokens else bins


def _split(
    index: int, group: Group, max_tokens: int, keep_last: bool, together: Sequence[tuple[int, ...]]
) -> list[_Item]:
    """Parts of a group that fit the budget. `together`: completions that must not be parted."""
    prompt = len(group.prompt.ids)
    lengths = [input_length(completion, keep_last) for completion in group.completions]
    parts: list[dict[int, None]] = []
    size = 0
    for wanted in together:
        alone = prompt + sum(lengths[j] for j in wanted)
        if alone > max_tokens:
            what = "completion" if len(wanted) == 1 else "the two completions of a pair"
            tokens = " and ".join(str(lengths[j]) for j in wanted)
            raise DataError(
                f"{group.prompt.where or 'a prompt'}: prompt ({prompt}) and {what} ({tokens}) need {alone} tokens, "
                f"more than train.max_tokens_per_batch = {max_tokens}. Raise it, or lower tokens.max_prompt_tokens, "
                "tokens.max_completion_tokens or sampling.max_tokens"
            )
        more = sum(lengths[j] for j in wanted if not parts or j not in parts[-1])
        if not parts or size + more > max_tokens:
            parts.append({})
            size, more = prompt, alone - prompt
        parts[-1].update(dict.fromkeys(wanted))
        size += more
    out: list[_Item] = []
    for part in parts:
        places = tuple(sorted(part))
        used = prompt + sum(lengths[j] for j in places)
        out.append(_Item(index, places, group.prompt, tuple(group.completions[j] for j in places), used))
    return out


def _build(items: Sequence[_Item], keep_last: bool, device: torch.device | str) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    source: list[int] = []
    target: list[int] = []
    sequence: list[int] = []
    members: list[tuple[int, int]] = []
    completions: list[Completion] = []
    for item in items:
        start, p = len(ids), len(item.prompt.ids)
        ids.extend(item.prompt.ids)
        positions.extend(range(p))
        spans: list[tuple[int, int]] = []
        for j, completion in zip(item.indices, item.completions, strict=True):
            n = input_length(completion, keep_last)
            at = len(ids)
            spans.append((at, n))
            ids.extend(completion.ids[:n])
            positions.extend(range(p, p + n))
            # The prompt's last token predicts the first token; completion token t-1 predicts token t.
            before = [start + p - 1, *range(at, at + len(completion.ids) - 1)]
            for t, wrote in enumerate(completion.mask):
                if wrote:
                    source.append(before[t])
                    target.append(completion.ids[t])
                    sequence.append(len(members))
            members.append((item.group, j))
            completions.append(completion)
        segments.append(Segment(start, p, tuple(spans)))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Pack(
        tensor(ids),
        tensor(positions),
        tuple(segments),
        tensor(source),
        tensor(target),
        tensor(sequence),
        tuple(members),
        tuple(completions),
    )


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """The same content as a `Pack`, one right-padded row per completion with its prompt repeated: what models get
    that the shared-prompt attention does not fit. Padding is told by `attention_mask`, never by token ids.

    Shapes: input_ids, position_ids, attention_mask [S, L]; `source_T` indexes the flattened [S * L] states.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    source_T: Tensor

    def alone(self, row: int) -> PaddedBatch:
        """One row as a batch without padding, and the trained tokens in it."""
        width = self.input_ids.shape[1]
        length = int(self.attention_mask[row].sum())
        first = row * width
        mine = (self.source_T >= first) & (self.source_T < first + width)
        one = (slice(row, row + 1), slice(length))
        ids, positions, mask = (x[one] for x in (self.input_ids, self.position_ids, self.attention_mask))
        return PaddedBatch(ids, positions, mask, self.source_T[mine] - first)


def unshare(packed: Pack) -> PaddedBatch:
    """Rebuild a pack as right-padded rows, prompt repeated; targets keep their order."""
    device = packed.input_ids_N.device
    ids_N, positions_N = packed.input_ids_N.cpu(), packed.position_ids_N.cpu()
    rows: list[tuple[Segment, int, int]] = [(s, at, n) for s in packed.segments for at, n in s.completions]
    longest = max(s.prompt + n for s, _, n in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.zeros_like(ids)
    # Maps a packed index to the padded one, per row; a prompt's index differs from row to row.
    source = torch.empty_like(packed.source_T, device="cpu")
    source_T, sequence_T = packed.source_T.cpu(), packed.sequence_T.cpu()
    for r, (s, at, n) in enumerate(rows):
        p = s.prompt
        ids[r, :p], ids[r, p : p + n] = ids_N[s.start : s.start + p], ids_N[at : at + n]
        positions[r, :p], positions[r, p : p + n] = positions_N[s.start : s.start + p], positions_N[at : at + n]
        mask[r, : p + n] = 1
        mine = sequence_T == r
        local = source_T[mine]
        in_prompt = local < at
        source[mine] = r * longest + torch.where(in_prompt, local - s.start, p + local - at)
    return PaddedBatch(ids.to(device), positions.to(device), mask.to(device), source.to(device))
