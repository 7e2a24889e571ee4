"""A limit on what a reward model learns from tokens that their generator was nearly sure to write.

With P pairs in the optimizer batch and L the mean of their losses, G_{l,t} = P · ∂L/∂h_{l,t} is the gradient that
arrives at the hidden state of token t where it enters layer l (l = 1: its embedding). For a near-certain token

    G_{l,t} ← G_{l,t} · min(1, g_max / ‖G_{l,t}‖)

and the layers below see the limited one. The forward pass is what it was, bit for bit. P stands there so that g_max
means the same for every batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from preftune.engine.head import decoder_of
from preftune.engine.pack import Pack
from preftune.errors import ModelError
from preftune.losses.batch import Additive


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a model's decoder in the order in which states pass through them.

    Raises:
        ModelError: there is no one list of them.
    """
    decoder = decoder_of(model)
    count = decoder.config.get_text_config().num_hidden_layers
    found = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise ModelError(f"{type(decoder).__name__} has no list of {count} layers, so loss.p_max can't limit gradients")
    return list(found[0])


class GradientLimit:
    """Limits the gradient of one pack's near-certain tokens, and counts what it did.

    Args:
        certain: for each completion of the pack, in the order of `Pack.members`, which of its tokens are near-certain.
        g_max: largest norm of G; None: nothing is limited, norms are counted all the same.
        pairs: P of the whole optimizer batch.
    """

    def __init__(self, certain: Sequence[Tensor], *, g_max: float | None, pairs: float) -> None:
        self.certain, self.g_max, self.pairs = list(certain), g_max, pairs
        self._seen = 0
        self._over: list[Tensor] = []
        self._norms: list[Tensor] = []

    def in_row(self, packed: Pack) -> Tensor:
        """Places of the near-certain tokens in a shared-prompt row."""
        spans = (span for segment in packed.segments for span in segment.completions)
        places = [at + flags[:n].nonzero()[:, 0] for (at, n), flags in zip(spans, self.certain, strict=True)]
        return torch.cat(places).to(packed.input_ids_N.device)

    def in_rows(self, packed: Pack, width: int, rows: range) -> Tensor:
        """The same in right-padded rows of this width, flattened; `rows`: which of the pack's completions they are."""
        spans = [(segment.prompt, n) for segment in packed.segments for _, n in segment.completions]
        places = []
        for place, row in enumerate(rows):
            prompt, n = spans[row]
            places.append(place * width + prompt + self.certain[row][:n].nonzero()[:, 0])
        return torch.cat(places).to(packed.input_ids_N.device)

    @contextmanager
    def acting(self, model: Any, places: Tensor) -> Iterator[None]:
        """Within it one forward runs: the gradients of that forward's states are limited when they arrive.

        Args:
            places: of the near-certain tokens in the flattened states.
        """
        if not len(places):
            yield
            return
        hooks = [
            layer.register_forward_pre_hook(self._before(places), with_kwargs=True) for layer in decoder_layers(model)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, places: Tensor) -> Callable[[nn.Module, Any, Any], None]:
        def watch(layer: nn.Module, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            if states.requires_grad:  # under a frozen embedding nothing learns
                states.register_hook(lambda gradient: self._limit(gradient, places))

        return watch

    def _limit(self, gradient: Tensor, places: Tensor) -> Tensor | None:
        """The gradient [.., D] with its rows at `places` limited; None where nothing changes."""
        rows_KD = gradient.flatten(0, -2)[places]
        norms_K = rows_KD.to(torch.promote_types(rows_KD.dtype, torch.float32)).norm(dim=-1) * self.pairs
        self._seen += len(places)
        self._norms.append(norms_K.sum())
        if self.g_max is None:
            return None
        over_K = norms_K > self.g_max
        self._over.append(over_K.sum())
        factor_K = torch.where(over_K, self.g_max / norms_K, 1.0)
        limited = gradient.clone(memory_format=torch.contiguous_format)
        limited.flatten(0, -2)[places] = rows_KD * factor_K[:, None].to(rows_KD.dtype)
        return limited

    def metrics(self, completions: Sequence[Any]) -> dict[str, Additive]:
        """What was seen, once the backward is over. `completions`: those of the pack."""
        limitable = sum(sum(one.mask[:-1]) for one in completions)
        found = sum(int(flags.sum()) for flags in self.certain)
        out = {"certain/share": Additive(torch.tensor(float(found)), torch.tensor(float(limitable)))}
        if self._seen:
            seen = torch.tensor(float(self._seen))
            out["certain/norm"] = Additive(torch.stack(self._norms).sum().float().cpu(), seen)
            if self._over:
                out["certain/limited"] = Additive(torch.stack(self._over).sum().float().cpu(), seen)
        return out
