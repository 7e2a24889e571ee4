"""How a model turns its last hidden states into logits, read off the model and then checked against it.

`read_head` finds the projection (tied or not, with or without an adapter) and the scale and soft-cap that the
model's forward applies after it; `probe_head` measures whether that is the whole story. A model whose head does more
(a transform before the projection, a cut vocabulary) goes through `ModuleHead`: its own full logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from preftune.engine.logprobs import CHUNK_ELEMENTS, fused_logprobs
from preftune.errors import ModelError
from preftune.models.classifier import reward_head_name

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config fields of a final soft-cap: Gemma and those after it, RecurrentGemma, xLSTM."""

_MULTIPLYING = ("hyperclovax",)
"""Model types whose `logits_scaling` multiplies. Everywhere else (Granite, MiniCPM 3) it divides."""


@dataclass(frozen=True)
class Head:
    """logits = softcap · tanh(scale · (W h + b) / softcap), or scale · (W h + b) where softcap is None.

    `weight()` and `bias` look at the live module on every use, so they follow the optimizer, the active adapter and
    `disable_adapter()`.

    Attributes:
        module: the output embeddings as they stand in the model, adapters around them included.
        scale: multiplies the logits.
        softcap: the final soft-cap, applied after `scale`.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    def weight(self) -> Tensor:
        """The effective weight [V, D]: the projection's own parameter, no copy, unless a LoRA adapter is active on
        it; then W + Σ scaling · B A, differentiable in all of them.

        Raises:
            ModelError: an adapter on the head whose effect is not that sum.
        """
        base, adapters = _resolve(self.module)
        weight: Tensor = base.weight
        if not adapters:
            return weight
        # Adapters are often kept in fp32 over a 16-bit base: sum in the wider type, so small updates survive till here.
        total = weight.to(torch.promote_types(weight.dtype, adapters[0].up.weight.dtype))
        for adapter in adapters:
            total = torch.addmm(total, adapter.up.weight, adapter.down.weight, alpha=adapter.scaling)
        return total.to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias [V], or None."""
        base, adapters = _resolve(self.module)
        bias: Tensor | None = base.bias
        for adapter in adapters:
            if adapter.up.bias is not None:
                extra = adapter.up.bias * adapter.scaling
                bias = extra.to(base.weight.dtype) if bias is None else (bias + extra).to(bias.dtype)
        return bias


@dataclass(frozen=True)
class _Adapter:
    down: Any  # nn.Linear, D → rank
    up: Any  # nn.Linear, rank → V
    scaling: float


def _resolve(module: nn.Module) -> tuple[nn.Linear, list[_Adapter]]:
    """The plain linear layer that acts now, and the LoRA adapters that act on top of it."""
    if isinstance(module, ModulesToSaveWrapper):
        names = module.active_adapters
        off = module.disable_adapters or not names or any(name not in module.modules_to_save for name in names)
        inner = module.original_module if off else module.modules_to_save[names[0]]
        return _resolve(inner)
    if isinstance(module, LoraLinear):
        (base, _), names = _resolve(module.get_base_layer()), []
        if not module.disable_adapters and not module.merged:
            names = [name for name in module.active_adapters if name in module.lora_A]
        elif module.disable_adapters and module.merged:
            raise ModelError("the head's adapter is merged into its weight and switched off: unmerge it first")
        for name in names:
            if name in module.lora_variant:
                raise ModelError(
                    f"adapter {name!r} on the output head is a LoRA variant (DoRA or the like), and only plain LoRA "
                    "is supported there: leave the head out of target_modules, or put it into modules_to_save"
                )
            dropout = module.lora_dropout[name]
            if module.training and isinstance(dropout, nn.Dropout) and dropout.p > 0.0:
                raise ModelError(
                    f"adapter {name!r} has dropout {dropout.p} on the output head, where it is not supported: "
                    "set lora dropout to 0, or leave the head out of target_modules"
                )
        return base, [_Adapter(module.lora_A[n], module.lora_B[n], float(module.scaling[n])) for n in names]
    if not isinstance(module, nn.Linear) or module.weight.shape != (module.out_features, module.in_features):
        raise ModelError(f"the output head is a {type(module).__name__}, not a plain linear layer")
    weight = module.weight
    if not weight.is_floating_point():
        raise ModelError(
            f"the output head's weight is quantised ({weight.dtype}): load the model with its head in bf16"
        )
    return module, []


def base_of(model: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself. Its LoRA layers stay in place and active.

    Raises:
        ModelError: a prompt-learning adapter, which lives in the wrapper and would be lost.
    """
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type
        raise ModelError(f"a {kind} adapter adds its own positions outside the base model: use LoRA, or merge it first")
    return model.get_base_model()


def decoder_of(model: Any) -> Any:
    """The inner model whose `last_hidden_state` the head projects. Adapters act inside it, and `disable_adapter()` of
    the wrapper switches them off there too.

    Raises:
        ModelError: the model has no inner model apart from its head.
    """
    base = base_of(model)
    decoder = base.get_decoder()
    if decoder is base.get_output_embeddings():  # ModernBERT's head is what is called `decoder` there
        decoder = base.base_model
    if decoder is base:
        raise ModelError(
            f"{type(base).__name__} has no inner model that gives hidden states: use a causal language model"
        )
    return decoder


def read_head(model: Any) -> Head:
    """The head of a transformers causal language model (or of a peft wrapper around one). Cheap: no forward.

    Raises:
        ModelError: no output embeddings, or ones that are not a linear layer.
    """
    base = base_of(model)
    module = base.get_output_embeddings()
    if module is None:
        raise ModelError(f"{type(base).__name__} has no output head: use a causal language model")
    _resolve(module)
    config = base.config.get_text_config()
    scale = 1.0
    if isinstance(factor := getattr(base, "logit_scale", None), int | float):  # Cohere
        scale *= factor
    if factor := getattr(config, "lm_head_multiplier", None):  # Falcon-H1
        scale *= factor
    if factor := getattr(config, "logits_mup_width_multiplier", None):  # Inkling
        scale /= factor
    if factor := getattr(config, "logits_scaling", None):
        scale = scale * factor if config.model_type in _MULTIPLYING else scale / factor
    softcap = next((float(cap) for name in _SOFTCAPS if (cap := getattr(config, name, None)) is not None), None)
    return Head(module, scale, softcap)


_GAIN = 10.0
"""Standard deviation of the logits in `probe_head`'s second comparison. A freshly made model's logits may be so small
that a missing soft-cap or scale would hardly show."""


@torch.no_grad()
def probe_head(model: Any, head: Head, *, seed: int = 0) -> float:
    """How far `head` is from the model's own forward: max |Δ log-prob| in nats over random tokens and targets.

    Two comparisons: on the model's own hidden states, and with random states put in the decoder's place, scaled
    so that logits are large. For an fp32 model, above 1e-4 means that the head does something `head` doesn't know.

    Args:
        model: a causal language model or peft wrapper; put into eval mode and back.
        head: what `read_head(model)` gave.
        seed: of the random tokens and states.
    """
    base, decoder = base_of(model), decoder_of(model)
    weight_VD = head.weight()
    vocabulary, width = weight_VD.shape
    g = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(vocabulary, (2, 12), generator=g).to(weight_VD.device)
    targets_TK = torch.randint(vocabulary, (ids_BL.numel(), 16), generator=g).to(weight_VD.device)
    random_TD = torch.randn(ids_BL.numel(), width, generator=g).to(weight_VD)
    spread = (head.scale * (random_TD @ weight_VD.T)).std()
    random_BLD = (random_TD * (_GAIN / spread.clamp_min(1e-6))).view(*ids_BL.shape, width)

    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        if len(seen) == 1:  # the second forward
            output.last_hidden_state = random_BLD
        seen.append(output.last_hidden_state)
        return output

    training = base.training
    base.eval()
    handle = decoder.register_forward_hook(keep)
    worst = 0.0
    try:
        for calls in (1, 2):
            logits_BLV = base(input_ids=ids_BL, use_cache=False).logits
            if len(seen) != calls or logits_BLV.shape != (*ids_BL.shape, vocabulary):
                return float("inf")
            own_TK = torch.log_softmax(logits_BLV.flatten(0, 1).float(), dim=-1).gather(1, targets_TK)
            states_TD = seen[-1].flatten(0, 1).to(weight_VD.dtype).repeat_interleave(targets_TK.shape[1], dim=0)
            options: dict[str, Any] = {"bias_V": head.bias, "scale": head.scale, "softcap": head.softcap}
            fused_TK, _ = fused_logprobs(states_TD, weight_VD, targets_TK.flatten(), **options)
            delta = (fused_TK.view_as(own_TK) - own_TK).abs().max().item()
            worst = max(worst, float("inf") if math.isnan(delta) else delta)
    finally:
        handle.remove()
        base.train(training)
    return worst


def scores_of(model: Any, states_SD: Tensor) -> Tensor:
    """A reward model's scores from its last hidden states, [S]: the head in fp32 (fp64 for fp64 states), whatever
    autocast is in force. Differentiable in states and head.

    Raises:
        ModelError: a head that is not one linear layer with one output.
    """
    base = base_of(model)
    head = Head(getattr(base, reward_head_name(base)))
    weight, bias = head.weight(), head.bias
    if weight.shape[0] != 1:
        raise ModelError(f"the head of {type(base).__name__} gives {weight.shape[0]} numbers; a reward model's gives 1")
    with torch.autocast(states_SD.device.type, enabled=False):
        dtype = torch.promote_types(states_SD.dtype, torch.float32)
        scores_S = states_SD.to(dtype) @ weight[0].to(dtype)
        return scores_S if bias is None else scores_S + bias[0].to(dtype)


@torch.no_grad()
def check_score_head(model: Any) -> None:
    """Make sure that the model's own score is its head on the last token's last hidden state and nothing else: its
    forward is run once, the head's input compared with the decoder's output, and its output replaced by the places
    of the tokens, of which the model must hand on the last.

    Raises:
        ModelError: it reads another token (BERT's first), or does more between decoder and score.
    """
    base, decoder = base_of(model), decoder_of(model)
    kind = type(base).__name__
    name = reward_head_name(base)
    head = getattr(base, name)
    dtype = _resolve(head)[0].weight.dtype
    states: list[Tensor] = []
    inputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        states.append(output.last_hidden_state)

    def before(_module: nn.Module, args: Any) -> Any:
        inputs.append(args[0])
        return args[0].to(dtype), *args[1:]  # the head is fp32 also on a bf16 decoder

    def places(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.arange(output.shape[-2], device=output.device, dtype=output.dtype)[None, :, None]

    table = base.get_input_embeddings().weight
    pad = base.config.get_text_config().pad_token_id
    ids = [i for i in range(min(table.shape[0], 9)) if i != pad]
    training = {m: m.training for m in base.modules()}
    base.eval()
    handles = [
        decoder.register_forward_hook(keep),
        head.register_forward_pre_hook(before),
        head.register_forward_hook(places),
    ]
    try:
        logits = base(input_ids=torch.tensor([ids], device=table.device), use_cache=False).logits
    except Exception as error:
        raise ModelError(f"the forward of {kind} fails: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, was in training.items():
            module.training = was
    if any(not bool(state.isfinite().all()) for state in states):
        raise ModelError(f"{kind} gives states that are not finite: its weights are broken")
    if len(states) != 1 or len(inputs) != 1 or inputs[0].shape != states[0].shape or not inputs[0].equal(states[0]):
        raise ModelError(
            f"{kind} does more than a linear head on its decoder's states: it can't be a reward model here"
        )
    if logits.shape != (1, 1) or float(logits) != len(ids) - 1:
        raise ModelError(f"{kind} does not read its score at the last token: it can't be a reward model here")


@dataclass(frozen=True)
class ModuleHead:
    """Log-probs through the model's own forward and its full logits: right for any head, and as large as it is."""

    model: Any

    def logprobs(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor,
        source_T: Tensor,
        target_T: Tensor,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> tuple[Tensor, Tensor | None]:
        """Like `fused_logprobs`, for right-padded rows; differentiable in all the model's parameters.

        Args:
            source_T: places in the flattened rows whose logits predict the targets.
            target_T: int64 token ids.

        Raises:
            ModelError: a target that the model has no logit for.
        """
        out = self.model(input_ids=input_ids_BL, attention_mask=attention_mask_BL, use_cache=False)
        logits_RV = out.logits.flatten(0, 1)
        if target_T.numel() and (int(target_T.min()) < 0 or int(target_T.max()) >= logits_RV.shape[1]):
            raise ModelError(f"a target id lies outside the model's {logits_RV.shape[1]} logits: wrong tokenizer?")

        def some(logits_RV: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            chosen = logits_RV[source]
            chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32)) / temperature
            logprobs = torch.log_softmax(chosen, dim=-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1) if with_entropy else logprobs.new_empty(len(source))
            return logprobs.gather(1, target[:, None]).squeeze(1), entropy

        step = max(1, chunk_elements // logits_RV.shape[1])
        # Recomputed in the backward: only the model's own logits stay in memory, not a softmax of each chunk too.
        parts = [
            checkpoint(some, logits_RV, source, target, use_reentrant=False)
            for source, target in zip(torch.split(source_T, step), torch.split(target_T, step), strict=True)
        ]
        logprobs_T = torch.cat([logprobs for logprobs, _ in parts])
        return logprobs_T, torch.cat([entropy for _, entropy in parts]) if with_entropy else None
