"""LocalSampler: completions from the model under training, in this process.

Each prompt is run through the model once; its keys and values are shared by the whole group. Rows of different
lengths decode side by side: a finished row leaves at once, waiting prompts come in when there is room.
Models that the shared-prompt attention does not fit are sampled through transformers' own `generate`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from preftune.config import SamplingConfig
from preftune.engine.attention import PackedLayout
from preftune.engine.forward import Engine
from preftune.engine.head import Head, decoder_of, read_head
from preftune.engine.pack import pack
from preftune.errors import SamplingError
from preftune.models.folding import folded_bytes
from preftune.records import Completion, Distribution, Finish, Group, Prompt
from preftune.sampling.base import Progress, choose, distribution_of, uniforms
from preftune.sampling.cache import DecodeCache, Row
from preftune.sampling.step import KEPT_BYTES, Product, Steps, plain_agrees

FEW_TOKENS = 16
"""Calls of fewer steps use the model as it is: no adapters folded, no weights gathered."""
FOLD_BYTES = 1 << 30
"""Adapters are folded into the weights where the copies take at most so much."""


class Decoder(Protocol):
    """What the sampler needs of the token contract."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class LocalSampler:
    """Samples from an engine's policy; see `Sampler`."""

    def __init__(self, engine: Engine, contract: Decoder) -> None:
        self.engine = engine
        self.contract = contract
        self._plain_steps: bool | None = None  # whether the model's steps can be taken in plain products, once known

    @property
    def context_length(self) -> int | None:
        """Positions of the model, None when its config names no limit."""
        return self.engine.policy.context_length

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        settings: SamplingConfig,
        *,
        seed: int,
        policy_version: int = 0,
        temperature: float | None = None,
        progress: Progress | None = None,
    ) -> list[Group]:
        """See `Sampler.sample`."""
        drawn = distribution_of(settings, temperature)
        stop = _Stop(self.contract, settings.stop)
        call = _Call(prompts, n, settings.max_tokens, seed, drawn, stop, policy_version, progress)
        return self._run(call, settings)

    @torch.no_grad()
    def stream(
        self,
        prompt: Prompt,
        settings: SamplingConfig,
        *,
        seed: int,
        on_token: Callable[[int], None],
        temperature: float | None = None,
    ) -> Completion:
        """What `sample` draws of one prompt, each id handed to `on_token` the moment it is drawn, EOS included.

        Whatever `on_token` raises, or a KeyboardInterrupt, ends the drawing; the sampler can be used again.
        """
        drawn = distribution_of(settings, temperature)
        stop = _Stop(self.contract, settings.stop)
        call = _Call([prompt], 1, settings.max_tokens, seed, drawn, stop, 0, None, on_token)
        return self._run(call, settings)[0].completions[0]

    def _run(self, call: _Call, settings: SamplingConfig) -> list[Group]:
        self._check(call.prompts, settings)
        self.engine.policy.train_mode(False)
        with self._folded(call), self.engine.autocast():
            if self.engine.mode == "shared":
                self._decode(call, settings.rows)
            else:
                self._generate(call)
        return call.groups()

    @contextmanager
    def _folded(self, call: _Call) -> Iterator[None]:
        """Adapters folded into the weights while drawing, where that pays: a step of a decoding batch is small, and
        three more products for every layer make it a third longer. Weights of 16 bits are left alone: the update
        would be rounded to theirs, and the samples would come from another policy than the trained one."""
        policy = self.engine.policy
        fold = policy.is_adapter and call.max_tokens >= FEW_TOKENS and folded_bytes(policy.model) <= FOLD_BYTES
        with policy.merged() if fold else nullcontext():
            yield

    def _check(self, prompts: Sequence[Prompt], settings: SamplingConfig) -> None:
        limit = self.context_length
        for prompt in prompts:
            if limit is not None and len(prompt.ids) + settings.max_tokens > limit:
                raise SamplingError(
                    f"{prompt.where or 'a prompt'}: {len(prompt.ids)} prompt tokens and sampling.max_tokens = "
                    f"{settings.max_tokens} exceed the model's {limit} positions; lower one of them"
                )

    # --- shared-prompt decoding -------------------------------------------------------------------------------

    def _decode(self, call: _Call, capacity: int) -> None:
        device = self.engine.policy.device
        model = self.engine.policy.model
        decoder = decoder_of(model)
        dtype = torch.bfloat16 if self.engine.bf16 else None
        many = call.max_tokens >= FEW_TOKENS
        head = _Logits(read_head(model), dtype, keep=many)
        cache = DecodeCache(device)
        waiting = list(range(len(call.prompts)))
        if many and self._plain_steps is None:
            self._plain_steps = plain_agrees(self.engine)
        steps = Steps(decoder, dtype=dtype, plain=many and bool(self._plain_steps))
        while waiting or cache.rows:
            room = max(capacity - len(cache.rows), 0) // max(call.n, 1)
            take = len(waiting) if room >= len(waiting) else room
            if not cache.rows:
                take = max(take, 1)
            if take and waiting:
                entering, waiting = waiting[:take], waiting[take:]
                self._enter(call, entering, cache, decoder, head)
                continue
            cache.begin_step()
            last_B = torch.tensor([row.ids[-1] for row in cache.rows], device=device)
            states = steps(last_B, cache)
            cache.end_step()
            call.extend(cache.rows, head(states))
            done = call.finish(cache.rows)
            if any(done):
                cache.keep(~torch.tensor(done))

    def _enter(
        self,
        call: _Call,
        entering: list[int],
        cache: DecodeCache,
        decoder: Any,
        head: _Logits,
    ) -> None:
        """Prefill prompts, draw every row's first token, and let the rows that go on into the cache."""
        device = self.engine.policy.device
        new_rows: list[list[Row]] = []
        new_states: list[dict[int, tuple[Tensor, Tensor]]] = []
        budget = max(8192, *(len(call.prompts[i].ids) for i in entering))
        groups = [Group(call.prompts[i], (Completion((), ()),)) for i in entering]
        for packed in pack(groups, budget, device=device):
            ends = torch.tensor([s.start + s.prompt - 1 for s in packed.segments], device=device)
            needed, places = self.engine.rows_of(packed, ends)
            layout = PackedLayout(packed.segments, device, needed)
            recorded = layout.record()
            states = decoder(
                input_ids=packed.input_ids_N[None],
                position_ids=packed.position_ids_N[None],
                use_cache=False,
                layout=layout,
            ).last_hidden_state[0]
            logits_GV = head(states[places])
            rows = [call.rows(entering[g]) for g, _ in packed.members]
            flat = [row for group in rows for row in group]
            call.extend(flat, logits_GV.repeat_interleave(call.n, 0))
            done = iter(call.finish(flat))
            for segment, group in zip(packed.segments, rows, strict=True):
                left = [row for row in group if not next(done)]
                if left:
                    span = slice(segment.start, segment.start + segment.prompt)
                    new_rows.append(left)
                    new_states.append({i: (k[0, :, span], v[0, :, span]) for i, (k, v) in recorded.items()})
            cache.asked |= layout.asked
        if new_rows:
            cache.admit(new_rows, new_states)

    # --- fallback ---------------------------------------------------------------------------------------------

    def _generate(self, call: _Call) -> None:
        """Group by group through transformers' generate; the draw itself is ours, so seeds, filters and log-probs
        mean the same on both paths. The rows of one group need no padding."""
        from transformers import GenerationConfig, LogitsProcessorList

        model = self.engine.policy.base
        # The checkpoint's own sampling settings (penalties, forced tokens, …) are no part of the recipe's distribution.
        kept = model.generation_config
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            for index, prompt in enumerate(call.prompts):
                draw = _Draw(call, call.rows(index))
                self.engine.start_afresh(model)
                ids = torch.tensor([prompt.ids], device=self.engine.policy.device).expand(call.n, -1).contiguous()
                model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                    max_new_tokens=call.max_tokens, eos_token_id=None, pad_token_id=0, use_cache=True,
                    logits_processor=LogitsProcessorList([draw]), stopping_criteria=[draw.stopped],
                )  # fmt: skip
        finally:
            model.generation_config = kept


class _Draw:
    """Our draw in the place of transformers' logits processors: it picks each row's token and leaves generate no
    other choice."""

    def __init__(self, call: _Call, rows: list[Row]) -> None:
        self.call, self.rows = call, rows
        self.done = [False] * len(rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        alive = [i for i, d in enumerate(self.done) if not d]
        rows = [self.rows[i] for i in alive]
        self.call.extend(rows, scores[alive].float())
        for i, finished in zip(alive, self.call.finish(rows), strict=True):
            self.done[i] = finished
        picked = torch.full_like(scores, -torch.inf)
        # A finished row repeats its last token until the others end; nothing of it is kept.
        last = torch.tensor([row.ids[-1] for row in self.rows], device=scores.device)
        return picked.scatter_(-1, last[:, None], 0.0)

    def stopped(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(self.done, device=input_ids.device)


class _Logits:
    """The head for one call: an adapted one is folded once, its weight cast and laid out once."""

    def __init__(self, head: Head, dtype: torch.dtype | None, *, keep: bool) -> None:
        weight = head.weight()
        kept = keep and weight.numel() * (dtype or weight.dtype).itemsize <= KEPT_BYTES
        self._project = Product([(weight, head.bias)], dtype, keep=kept)
        self._scale, self._softcap = head.scale, head.softcap

    def __call__(self, states: Tensor) -> Tensor:
        """[B, D] → [B, V], fp32."""
        with torch.autocast(states.device.type, enabled=False):
            logits = self._project(states).float()
        logits = logits if self._scale == 1.0 else logits * self._scale
        return self._softcap * torch.tanh(logits / self._softcap) if self._softcap is not None else logits


class _Stop:
    """Whether a completion's text holds a stop string. Only the tail is decoded at each step."""

    def __init__(self, contract: Decoder, strings: Sequence[str]) -> None:
        self.contract = contract
        self.strings = tuple(strings)
        # A token gives at least one byte of text and a character at most four, so this many tokens hold the longest.
        self.tail = 4 * max((len(s) for s in strings), default=0) + 8

    def __call__(self, ids: Sequence[int]) -> bool:
        if not self.strings:
            return False
        text = self.contract.decode(ids[-self.tail :])
        return any(s in text for s in self.strings)


class _Call:
    """One call of `sample`: the rows, their draws, and the finished completions."""

    def __init__(
        self, prompts: Sequence[Prompt], n: int, max_tokens: int, seed: int, drawn: Distribution, stop: _Stop,
        policy_version: int, progress: Progress | None, on_token: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.prompts, self.n, self.max_tokens, self.seed = prompts, n, max_tokens, seed
        self.drawn, self.stop, self.version, self.progress = drawn, stop, policy_version, progress
        self.on_token = on_token
        self.done: list[list[Completion | None]] = [[None] * n for _ in prompts]
        self.finished = 0
        self._seen: dict[tuple[int, int], Tensor] = {}

    def rows(self, prompt: int) -> list[Row]:
        # As packed floats: a list of them takes eight times the memory, a gigabyte for 256 rows of 128k tokens.
        draws = uniforms(self.seed, prompt, self.n, self.max_tokens).numpy()
        return [Row(prompt, i, array("f", draws[i].tobytes())) for i in range(self.n)]

    def extend(self, rows: list[Row], logits_BV: Tensor) -> None:
        """Draw the next token of each row."""
        uniform_B = torch.tensor([row.uniform[len(row.ids)] for row in rows], device=logits_BV.device)
        with torch.inference_mode():
            ids_B, logprobs_B = choose(logits_BV, uniform_B, self.drawn, self._seen_tokens(rows, logits_BV))
        for row, token, logprob in zip(rows, ids_B.tolist(), logprobs_B.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            if self.on_token is not None:
                self.on_token(token)

    def _seen_tokens(self, rows: list[Row], logits_BV: Tensor) -> Tensor | None:
        if self.drawn.repetition_penalty == 1.0:
            return None
        for row in rows:  # what a row has seen grows by its last token: going through all of it is quadratic
            key = (row.prompt, row.index)
            if key not in self._seen:
                self._seen[key] = torch.zeros(logits_BV.shape[1], dtype=torch.bool)
                self._seen[key][list(self.prompts[row.prompt].ids) + row.ids] = True
            elif row.ids:
                self._seen[key][row.ids[-1]] = True
        return torch.stack([self._seen[row.prompt, row.index] for row in rows]).to(logits_BV.device)

    def finish(self, rows: list[Row]) -> list[bool]:
        """Whether each row has ended; the ended ones become completions."""
        out: list[bool] = []
        for row in rows:
            why: Finish | None = None
            if row.ids[-1] in self.stop.contract.eos_ids:
                why = "eos"
            elif self.stop(row.ids):
                why = "stop"
            elif len(row.ids) >= self.max_tokens:
                why = "length"
            out.append(why is not None)
            if why is not None:
                self._complete(row, why)
        return out

    def _complete(self, row: Row, why: Finish) -> None:
        self._seen.pop((row.prompt, row.index), None)
        self.done[row.prompt][row.index] = Completion(
            ids=tuple(row.ids),
            mask=(True,) * len(row.ids),
            text=self.stop.contract.decode(row.ids),
            finish=why,
            logprobs=tuple(row.logprobs),
            distribution=self.drawn,
            policy_version=self.version,
            source="policy",
        )
        self.finished += 1
        if self.progress is not None:
            self.progress(self.finished, self.n * len(self.prompts))

    def groups(self) -> list[Group]:
        out = []
        for prompt, completions in zip(self.prompts, self.done, strict=True):
            assert all(c is not None for c in completions), "a row was neither finished nor decoded"
            out.append(Group(prompt, tuple(c for c in completions if c is not None)))
        return out
