"""The one forward pass: packed groups in, token log-probs and entropies out.

`Engine` decides once, by a probe on the loaded model, whether shared-prompt packing is exact for it. If not, the
same packs are run as right-padded rows with the prompt repeated: slower, right, and said once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from preftune.engine.attention import NAME, PackedLayout, register
from preftune.engine.head import ModuleHead, base_of, decoder_of, read_head
from preftune.engine.logprobs import fused_logprobs
from preftune.engine.pack import Pack, PaddedBatch, pack, unshare
from preftune.engine.padded import Memory, run_rows
from preftune.models.loading import Policy
from preftune.records import Group

Mode: TypeAlias = Literal["shared", "padded"]


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What one forward pass gives. Shapes [T], fp32, in the order of `Pack.target_T`."""

    logprobs_T: Tensor
    entropy_T: Tensor | None


class Engine:
    """Runs packs through a policy's model.

    Attributes:
        mode: "shared" (each prompt once) or "padded" (prompt repeated, right padding).
        row_by_row: padded mode only: each row runs alone and from the model's first state, because other rows of a
            batch or earlier forwards change this model's numbers (positions that depend on the longest row seen).
        reason: why the mode is what it is, in words; recorded in the run's manifest.
    """

    def __init__(
        self, policy: Policy, *, mode: Literal["auto", "shared", "padded"] = "auto", bf16: bool = False
    ) -> None:
        from preftune.engine.probe import choose_mode

        self.policy = policy
        self.bf16 = bf16
        self.plain_attention = _attention_name(policy.base)
        self.mode: Mode = "padded"
        self.reason = "asked for by the recipe"
        self.whole_logits = False
        self.row_by_row = False
        self.memory = Memory({})
        self.mode, self.reason = choose_mode(self, asked=mode)
        self._use(NAME if self.mode == "shared" else self.plain_attention)

    def _use(self, attention: str) -> None:
        register()
        for model in (self.policy.base, self.policy.frozen):
            if model is not None and _attention_name(model) != attention:
                model.set_attn_implementation(attention)

    def start_afresh(self, model: Any) -> None:
        """Before a forward of rows that must not depend on what ran before: forget it. Nothing for most models."""
        self.memory.restore(base_of(model))

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within this context the engine runs the padded path through the model's own attention."""
        before = self.mode
        self._use(self.plain_attention)
        self.mode = "padded"
        try:
            yield
        finally:
            self.mode = before
            self._use(NAME if before == "shared" else self.plain_attention)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast when the run asks for it."""
        return torch.autocast(self.policy.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def pack(self, groups: Sequence[Group], max_tokens: int) -> list[Pack]:
        """Packs for `forward`; see `preftune.engine.pack.pack`."""
        return pack(groups, max_tokens, device=self.policy.device)

    def forward(
        self, packed: Pack, *, temperature: float = 1.0, with_entropy: bool = False, model: Any = None
    ) -> TokenValues:
        """Log-probs (and entropies) of the trained tokens of one pack, at `temperature`, with the graph if enabled.

        Args:
            model: run this model instead of the policy (the reference); same architecture.
        """
        model = self.policy.model if model is None else model
        with self.autocast():
            if self.whole_logits:
                return self._from_logits(packed, model, temperature, with_entropy)
            if self.mode == "shared":
                hidden_ND = self._shared_states(packed, model)
                states_TD = hidden_ND[packed.source_T]
            else:
                states_TD = self._padded_states(packed, model)
            head = read_head(model)
            logprobs_T, entropy_T = fused_logprobs(
                states_TD, head.weight(), packed.target_T, bias_V=head.bias, scale=head.scale, softcap=head.softcap,
                temperature=temperature, with_entropy=with_entropy,
            )  # fmt: skip
        return TokenValues(logprobs_T, entropy_T)

    def _shared_states(self, packed: Pack, model: Any) -> Tensor:
        layout = PackedLayout(packed.segments, packed.input_ids_N.device)
        out = decoder_of(model)(
            input_ids=packed.input_ids_N[None], position_ids=packed.position_ids_N[None], use_cache=False, layout=layout
        )
        states: Tensor = out.last_hidden_state[0]
        return states

    def _padded_states(self, packed: Pack, model: Any) -> Tensor:
        parts: list[Tensor] = []
        for rows in self._batches(unshare(packed)):
            self.start_afresh(model)
            parts.append(run_rows(decoder_of(model), rows).flatten(0, 1)[rows.source_T])
        return torch.cat(parts)

    def _from_logits(self, packed: Pack, model: Any, temperature: float, with_entropy: bool) -> TokenValues:
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        done = 0
        for rows in self._batches(unshare(packed)):
            self.start_afresh(model)
            target_T = packed.target_T[done : done + len(rows.source_T)]
            done += len(rows.source_T)
            logprobs_T, entropy_T = ModuleHead(model).logprobs(
                rows.input_ids, rows.attention_mask, rows.source_T, target_T,
                temperature=temperature, with_entropy=with_entropy,
            )  # fmt: skip
            logprobs.append(logprobs_T)
            if entropy_T is not None:
                entropies.append(entropy_T)
        return TokenValues(torch.cat(logprobs), torch.cat(entropies) if with_entropy else None)

    def _batches(self, rows: PaddedBatch) -> list[PaddedBatch]:
        """All rows at once, or each alone; trained tokens keep their order, which is that of the rows."""
        return [rows.alone(r) for r in range(len(rows.input_ids))] if self.row_by_row else [rows]

    @torch.no_grad()
    def score(
        self, groups: Sequence[Group], max_tokens: int, *, temperature: float = 1.0, reference: bool = False
    ) -> list[list[Tensor]]:
        """Log-probs of every completion's trained tokens, without gradient: [group][completion] → [tokens], CPU."""
        out: list[list[Tensor]] = [[torch.empty(0)] * len(g.completions) for g in groups]
        context = self.policy.reference() if reference else nullcontext(self.policy.model)
        with context as model:
            for packed in self.pack(groups, max_tokens):
                values = self.forward(packed, temperature=temperature, model=model).logprobs_T.cpu()
                sequence_T = packed.sequence_T.cpu()
                for s, (g, c) in enumerate(packed.members):
                    out[g][c] = values[sequence_T == s]
        return out


def _attention_name(base: Any) -> str:
    """The model's own attention: what transformers chose for it, eager where it must be (soft-capped scores)."""
    return str(base.config._attn_implementation or "eager")
