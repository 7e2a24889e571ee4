"""The one forward pass: packed groups in, token log-probs and entropies out, or a reward model's scores.

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
from preftune.engine.certain import GradientLimit
from preftune.engine.divergence import full_divergence
from preftune.engine.even import STEP, even
from preftune.engine.fused import Fused
from preftune.engine.head import ModuleHead, base_of, decoder_of, read_head, scores_of
from preftune.engine.last import LastLayers, rows_to_read
from preftune.engine.logprobs import fused_logprobs
from preftune.engine.pack import Pack, PaddedBatch, PairsOfGroup, pack, unshare
from preftune.engine.padded import Memory, run_rows
from preftune.engine.products import Products, blas_is_narrow
from preftune.errors import ModelError
from preftune.models.loading import Policy
from preftune.models.reward import RewardModel
from preftune.records import Group

Mode: TypeAlias = Literal["shared", "padded"]

MASK_ELEMENTS = 1 << 26
"""Largest attention mask of a padded batch: 64 MiB of truth values, four rows of 4,096 tokens."""


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
        scoring: the policy is a reward model: `scores` and `rate` work, `forward` and `score` do not.
    """

    def __init__(
        self, policy: Policy, *, mode: Literal["auto", "shared", "padded"] = "auto", bf16: bool = False
    ) -> None:
        from preftune.engine.probe import choose_mode

        self.policy = policy
        self.bf16 = bf16
        self.scoring = isinstance(policy, RewardModel)
        self.plain_attention = _plain_attention(policy.base)
        self.mode: Mode = "padded"
        self.reason = "asked for by the recipe"
        self.whole_logits = False
        self.row_by_row = False
        self.memory = Memory({})
        self._use(self.plain_attention)
        self.mode, self.reason = choose_mode(self, asked=mode)
        self._use(NAME if self.mode == "shared" else self.plain_attention)
        self.last = LastLayers()
        self.fused = self._fuse()
        self.products = self._widen()
        self.last = self._narrow()

    def _fuse(self) -> Fused:
        """Norms and gated products with fewer passes, on a CPU, of the policy and of a frozen copy of it."""
        from preftune.engine.probe import probe_states

        if self.policy.device.type != "cpu" or self.mode != "shared":
            return Fused()
        models = [m for m in (self.policy.base, self.policy.frozen) if m is not None]
        fused = Fused(*models)
        if self.bf16:
            fused.put_out_half(*models, states=lambda: probe_states(self))
        return fused

    def _widen(self) -> Products:
        """Linear layers whose products use the processor's whole width, of the policy and of a frozen copy of it."""
        own = (m for m in (self.policy.base, self.policy.frozen) if m is not None)
        wide = self.policy.device.type == "cpu" and self.mode == "shared" and not self.bf16 and blas_is_narrow()
        return Products(*(own if wide else ()))

    def _narrow(self) -> LastLayers:
        """Last layers that run at the tokens that are read, of the policy and of a frozen copy of it."""
        from preftune.engine.probe import probe_values, states_agree

        if self.mode != "shared":
            return LastLayers()
        whole = probe_values(self)
        self.last = LastLayers(*(m for m in (self.policy.base, self.policy.frozen) if m is not None))
        try:
            if self.last.taken and not states_agree(probe_values(self), whole):
                self.last.drop()
        except Exception:  # noqa: BLE001 - whatever a foreign layer does here, the answer is: not this one
            self.last.drop()
        return self.last

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
        self.fused.off()
        self.products.off()
        self.last.off()
        self.mode = "padded"
        try:
            yield
        finally:
            self.mode = before
            self.fused.on()
            self.products.on()
            self.last.on()
            self._use(NAME if before == "shared" else self.plain_attention)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast when the run asks for it."""
        return torch.autocast(self.policy.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def pack(self, groups: Sequence[Group], max_tokens: int, pairs: Sequence[PairsOfGroup] | None = None) -> list[Pack]:
        """Packs for `forward`, or for `scores`, which needs last tokens; see `preftune.engine.pack.pack`."""
        return pack(groups, max_tokens, keep_last=self.scoring, device=self.policy.device, pairs=pairs)

    def forward(
        self, packed: Pack, *, temperature: float = 1.0, with_entropy: bool = False, model: Any = None
    ) -> TokenValues:
        """Log-probs (and entropies) of the trained tokens of one pack, at `temperature`, with the graph if enabled.

        Args:
            model: run this model instead of the policy (the reference); same architecture.

        Raises:
            ModelError: the policy is a reward model.
        """
        if self.scoring:
            raise ModelError("a reward model has no log-probs: use Engine.scores or Engine.rate")
        model = self.policy.model if model is None else model
        with self.autocast():
            if self.whole_logits:
                return self._from_logits(packed, model, temperature, with_entropy)
            count = len(packed.target_T)
            packed = self._even(packed)
            states_TD = self._token_states(packed, model)
            head = read_head(model)
            logprobs_T, entropy_T = fused_logprobs(
                states_TD, head.weight(), packed.target_T, bias_V=head.bias, scale=head.scale, softcap=head.softcap,
                temperature=temperature, with_entropy=with_entropy,
            )  # fmt: skip
        return TokenValues(logprobs_T[:count], entropy_T if entropy_T is None else entropy_T[:count])

    def scores(self, packed: Pack, limit: GradientLimit | None = None) -> Tensor:
        """Raw scores of one pack in the order of `Pack.members`: [S], fp32, with the graph if enabled.

        A score is read at its completion's last token, found by place and never by comparing ids; that of an empty
        completion at the prompt's last token. Masked spans count as tokens: a tool's answer at the end is read too.

        Args:
            limit: what the backward lets through of near-certain tokens; scores are the same with it.

        Raises:
            ModelError: the policy is not a reward model.
            ValueError: a pack without last tokens (not from this engine's `pack`).
        """
        if not self.scoring:
            raise ModelError("this model has no reward head: load it with load_reward")
        return scores_of(self.policy.model, self.last_states(packed, self.policy.model, limit))

    def token_states(self, packed: Pack, model: Any) -> Tensor:
        """Last hidden states that predict the trained tokens of a pack, [T, D], with the graph if enabled."""
        with self.autocast():
            return self._token_states(packed, model)

    def _token_states(self, packed: Pack, model: Any) -> Tensor:
        if self.mode == "shared":
            return self._shared_states(packed, model, packed.source_T)
        return self._padded_states(packed, model)

    def last_states(self, packed: Pack, model: Any, limit: GradientLimit | None = None) -> Tensor:
        """Last hidden states at each completion's last token (an empty one's: its prompt's), [S, D].

        Raises:
            ValueError: a pack without last tokens.
        """
        spans = [(s, at, n) for s in packed.segments for at, n in s.completions]
        if any(n != len(c.ids) for (_, _, n), c in zip(spans, packed.completions, strict=True)):
            raise ValueError("this pack lacks the completions' last tokens; make it with keep_last")
        with self.autocast():
            if self.mode == "shared":
                last = [at + n - 1 if n else s.start + s.prompt - 1 for s, at, n in spans]
                source = torch.tensor(last, device=packed.input_ids_N.device)
                with nullcontext() if limit is None else limit.acting(model, limit.in_row(packed)):
                    return self._shared_states(packed, model, source)
            parts: list[Tensor] = []
            done = 0
            for rows in self._batches(unshare(packed)):
                self.start_afresh(model)
                count, width = rows.input_ids.shape
                inside = range(done, done + count)
                done += count
                with nullcontext() if limit is None else limit.acting(model, limit.in_rows(packed, width, inside)):
                    states = run_rows(decoder_of(model), rows)
                last_R = rows.attention_mask.sum(1) - 1
                parts.append(states[torch.arange(count, device=last_R.device), last_R])
            return torch.cat(parts)

    def divergence(self, packed: Pack, *, temperature: float = 1.0) -> tuple[TokenValues, Tensor]:
        """As `forward` without entropies, and KL(π‖π₀) over the whole vocabulary before each trained token, [T], with
        the graph. The policy's states are computed once for both.

        Raises:
            ModelError: a head that is read off whole logits, which would have to be held twice.
        """
        if self.scoring or self.whole_logits:
            raise ModelError(f"{type(self.policy.base).__name__} has no plain output head, so there is no KL over it")
        count = len(packed.target_T)
        packed = self._even(packed)
        with torch.no_grad(), self.policy.reference() as reference, self.autocast():
            theirs_TD = self._token_states(packed, reference)
            head = read_head(reference)
            # read here, while the reference is what acts: an adapted head has another weight outside
            weight_VD, bias_V = head.weight(), head.bias
        model = self.policy.model
        with self.autocast():
            states_TD = self._token_states(packed, model)
            head = read_head(model)
            settings: dict[str, Any] = {"scale": head.scale, "softcap": head.softcap, "temperature": temperature}
            mine_VD = head.weight()
            logprobs_T, _ = fused_logprobs(states_TD, mine_VD, packed.target_T, bias_V=head.bias, **settings)
            divergence_T = full_divergence(
                states_TD, mine_VD, theirs_TD, weight_VD, bias_V=head.bias, reference_bias_V=bias_V, **settings
            )
        return TokenValues(logprobs_T[:count], None), divergence_T[:count]

    @torch.no_grad()
    def rate(self, groups: Sequence[Group], max_tokens: int) -> list[list[float]]:
        """A reward model's raw scores of every completion, without gradient: [group][completion]."""
        out = [[0.0] * len(g.completions) for g in groups]
        for packed in self.pack(groups, max_tokens):
            for (g, c), score in zip(packed.members, self.scores(packed).tolist(), strict=True):
                out[g][c] = score
        return out

    @property
    def _compiles(self) -> bool:
        """Whether every new shape of a product costs memory (`preftune.engine.even`)."""
        return self.policy.device.type == "cpu" and (self.bf16 or self.products.taken > 0)

    def _even(self, packed: Pack) -> Pack:
        return even(packed) if self._compiles and self.mode == "shared" else packed

    def rows_of(self, packed: Pack, source: Tensor) -> tuple[Tensor | None, Tensor]:
        """For reading the last states at the rows `source` alone: `PackedLayout.needed`, and where each of `source`
        stands among the states that then come out."""
        chosen = rows_to_read(source, packed.tokens, step=STEP if self._compiles else 1) if self.last.taken else None
        return (None, source) if chosen is None else chosen

    def _shared_states(self, packed: Pack, model: Any, source: Tensor) -> Tensor:
        """Last states at the rows `source` of the packed row, [len(source), D]."""
        packed = self._even(packed)
        needed, places = self.rows_of(packed, source)
        layout = PackedLayout(packed.segments, packed.input_ids_N.device, needed)
        out = decoder_of(model)(
            input_ids=packed.input_ids_N[None], position_ids=packed.position_ids_N[None], use_cache=False, layout=layout
        )
        states: Tensor = out.last_hidden_state[0]
        return states[places]

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
        """All rows at once, or each alone; trained tokens keep their order, which is that of the rows.

        Long rows go alone as well: padding needs a mask of rows × length², and a row without padding needs none.
        """
        count, length = rows.input_ids.shape
        alone = self.row_by_row or (count > 1 and count * length**2 > MASK_ELEMENTS)
        return [rows.alone(r) for r in range(count)] if alone else [rows]

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


def _plain_attention(base: Any) -> str:
    """What the model attends with when no engine uses it; remembered in the model for a second engine on it."""
    name = _attention_name(base)
    if name != NAME:
        base.preftune_plain_attention = name
    return str(base.preftune_plain_attention)


def _attention_name(base: Any) -> str:
    """The model's own attention: what transformers chose for it, eager where it must be (soft-capped scores)."""
    return str(base.config._attn_implementation or "eager")
