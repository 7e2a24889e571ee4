"""The last layer at the tokens that are read.

What a run reads of a packed row are the states that predict its completions, or with a reward model one state for each
completion. Every layer but the last must run on all tokens, since later ones attend to them. In the last one only keys
and values of the others matter: its output projection and its MLP, five sixths of its work, run at the tokens that are
read. That is an update's share of 1 / layers × five sixths × the tokens not read: a seventh of a small reward model.

No list of architectures decides: a layer is taken when it has the parts, and when the model's states, measured when the
engine is made, come out the same (`preftune.engine.probe`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preftune.engine.certain import decoder_layers
from preftune.errors import ModelError

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
WORTH = 0.9
"""Largest share of a row's tokens for which the others are left out: choosing costs a copy."""


class LastLayers:
    """The last layers of a policy's model and of its frozen copy, which follow `PackedLayout.needed`.

    Attributes:
        taken: whether every model has a last layer of the known form. Whether its numbers agree is not known yet.
    """

    def __init__(self, *models: Any) -> None:
        found = [_last_of(model) for model in models]
        self._layers: list[Any] = [layer for layer in found if layer is not None]
        self._hooks: list[Any] = []
        self.taken = bool(found) and len(self._layers) == len(found)
        if self.taken:
            self.on()

    def on(self) -> None:
        """Let the layers follow the layout."""
        if not self.taken or self._hooks:
            return
        for layer in self._layers:
            narrowed = _Narrowed(layer)
            layer.__dict__["forward"] = narrowed.forward
            self._hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(narrowed.before_projection))

    def off(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            if isinstance(getattr(layer.__dict__.get("forward"), "__self__", None), _Narrowed):
                del layer.__dict__["forward"]
        while self._hooks:
            self._hooks.pop().remove()

    def drop(self) -> None:
        """Leave the layers alone for good."""
        self.off()
        self.taken = False


def _last_of(model: Any) -> nn.Module | None:
    try:
        layer = decoder_layers(model)[-1]
    except ModelError:
        return None
    own = layer.__dict__.get("forward")
    if isinstance(getattr(own, "__self__", None), _Narrowed):
        del layer.__dict__["forward"]  # another engine's on this model, whose hook sees no rows from now on
    elif own is not None:
        return None  # someone else wraps it
    known = {name for name, _ in layer.named_children()} == _PARTS
    return layer if known and isinstance(getattr(layer.self_attn, "o_proj", None), nn.Module) else None


class _Narrowed:
    """x → x + attention(norm(x)) → that + mlp(norm(that)), from the output projection on at the needed tokens."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._needed: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        layout = kwargs.get("layout")
        needed: Tensor | None = getattr(layout, "needed", None)
        if needed is None:
            return type(layer).forward(layer, hidden_states, *args, **kwargs)
        self._needed = needed
        try:
            attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
        finally:
            self._needed = None
        states = hidden_states.index_select(1, needed) + attended
        return states + layer.mlp(layer.post_attention_layernorm(states))

    def before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Of the attention's output [1, N, H·d] the needed rows."""
        if self._needed is None:
            return None
        return (args[0].index_select(1, self._needed), *args[1:])


def rows_to_read(source: Tensor, tokens: int, *, step: int = 1) -> tuple[Tensor, Tensor] | None:
    """The different rows among `source`, ascending and filled up to a multiple of `step`, and where each of `source`
    stands among them. None where they are nearly all of the `tokens`."""
    rows, places = torch.unique(source, return_inverse=True)
    filling = -len(rows) % step
    if not len(rows) or len(rows) + filling > WORTH * tokens:
        return None
    return torch.cat([rows, rows[:1].expand(filling)]) if filling else rows, places
