"""The rules of the advice for fixed data: SFT, preferences, labels, reward models; see `preftune.train.advice`.

They read logged metrics alone, so none knows β. `rewards/*` are β times something, `logprobs/*` are in nats: where a
rule needs the two apart it sets one beside the other. Sums of log-probs are divided by `length/*` first: batches
differ in length far more than a policy moves. The thresholds are ours, set so that a run which learns stays silent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, variance
from typing import TYPE_CHECKING

from preftune.train.advice_rules import WINDOW, Found, Rule, learns_as_gmpo

if TYPE_CHECKING:
    from preftune.train.advice import Watch

SATURATED = 50
"""Steps in a row with all pairs in order and next to no loss before the advice."""
FLAT = 100
"""Steps in a row with pairs in chance order; warm-up has to fit in."""
BALANCE = (1.0, 4 / 3)
"""KTO's bounds of λ_D·n_D : λ_U·n_U (Ethayarajh et al. 2024)."""


def _is_kto(m: Mapping[str, float]) -> bool:
    return "kl/raw" in m


def _is_reward_model(m: Mapping[str, float]) -> bool:
    return "logprobs/chosen" not in m and "logprobs/rejected" not in m


def _loss_flat(watch: Watch, m: Mapping[str, float]) -> Found:
    if "reward/mean" in m or any(name.startswith("rewards/") for name in m):
        return None  # there is a reward or an order to judge by; the nll is no objective
    if "ratio/mean" in m or learns_as_gmpo(m):
        return None  # policy gradients and weights on answers that were collected before: nor is it here
    start, now = watch.baseline("nll"), watch.now("nll")
    # Under 0.05 nats there is nothing left to learn.
    if start is None or now is None or start < 0.05 or now < 0.98 * start:
        return None
    return (
        f"The loss is not falling: {start:.3g} nats per token in the first {WINDOW} steps, {now:.3g} now.",
        "raise `train.learning_rate` when it is flat and lower it when it rises; check in a dry run that the decoded "
        "completions (`data`, `tokens.loss_on`) are what the model should learn.",
    )


def _per_token(watch: Watch, side: str) -> tuple[list[float], list[float]] | None:
    """Mean log-prob per token of a side's batches, of the first steps and of the last. None before there are enough."""
    out = []
    for values in (watch.first, watch.last):
        sums, lengths = values(f"logprobs/{side}"), values(f"length/{side}")
        if len(sums) < WINDOW or len(lengths) < WINDOW or min(lengths) <= 0.0:
            return None
        out.append([total / length for total, length in zip(sums, lengths, strict=True)])
    return out[0], out[1]


def _both_fall(watch: Watch, m: Mapping[str, float]) -> Found:
    said = []
    for side in ("chosen", "rejected"):
        found, reward = _per_token(watch, side), watch.now(f"rewards/{side}")
        if found is None or (reward is not None and reward >= 0.0):  # with a reference: not less likely than under it
            return None
        start, now = fmean(found[0]), fmean(found[1])
        # Batches of other texts differ as well: four standard errors, and a tenth.
        error = math.sqrt(sum(variance(values) / len(values) for values in found))
        if start - now <= max(0.1 * abs(start), 4 * error):
            return None
        said.append(f"{side} {start:.3g} to {now:.3g}")
    change = (
        "lower `train.learning_rate`, raise `loss.beta`, raise `loss.desirable_weight`, or put an sft stage on the "
        "good answers before."
        if _is_kto(m)
        else "set `loss.sft_weight` (0.1 to 1), set `loss.name` to apo-zero (it raises the chosen side by itself), "
        "lower `train.learning_rate`, raise `loss.beta`, or put an sft stage on the chosen answers before."
    )
    return (
        f"Chosen and rejected log-probs both fall (nats per token: {', '.join(said)}): the model also unlearns the "
        "good answers.",
        change,
    )


def _beta_small(watch: Watch, m: Mapping[str, float]) -> Found:
    found = _per_token(watch, "chosen")
    if found is None:
        return None
    start, now = fmean(found[0]), fmean(found[1])
    if start - now < 1.0:
        return None
    return (
        f"The chosen answers lost {start - now:.2g} nats per token since the start ({start:.3g} to "
        f"{now:.3g}): the policy has gone far from where it began, and what it writes now is hardly theirs.",
        "raise `loss.beta` (too small a β lets the policy go as far as it likes; 0.1 is usual), lower "
        "`train.learning_rate`, or train fewer `train.epochs`; take a checkpoint before this step.",
    )


def _beta_large(watch: Watch, m: Mapping[str, float]) -> Found:
    """Rewards moved apart by as much as the log-probs did, in nats: β is 1 or more, and the policy stays put.

    Rows differ from batch to batch, which moves log-probs but not rewards, so noise makes the rule silent, not loud.
    """
    grown = []
    for kind in ("rewards", "logprobs"):
        names = f"{kind}/chosen", f"{kind}/rejected"
        start, now = [watch.baseline(name) for name in names], [watch.now(name) for name in names]
        if start[0] is None or start[1] is None or now[0] is None or now[1] is None:
            return None
        grown.append((now[0] - now[1]) - (start[0] - start[1]))
    margin, moved = grown
    if margin < 1.0 or abs(moved) > margin:
        return None
    return (
        f"The margin of the rewards grew by {margin:.2g} while the log-probs of chosen and rejected answers moved "
        f"apart by {abs(moved):.2g} nats in all: the loss is content with a policy that hardly differs from its "
        "reference.",
        "lower `loss.beta` (0.1 is usual, 0.01 to 0.5 the range in use).",
    )


def _loss_rises(watch: Watch, m: Mapping[str, float]) -> Found:
    start, now = watch.baseline("loss"), watch.now("loss")
    if start is None or now is None or start <= 0.0 or now < 1.5 * start:
        return None
    reward_model = _is_reward_model(m)
    return (
        f"The loss is above its start: {start:.3g} in the first {WINDOW} steps, {now:.3g} now. Large rewards the wrong "
        "way round outweigh the rest.",
        "lower `train.learning_rate`, or raise `train.batch_size`."
        if reward_model
        else "lower `train.learning_rate`; lower `loss.beta` when it is above 0.1, as β times a step is what the "
        "rewards move by.",
    )


def _preferences_flat(watch: Watch, m: Mapping[str, float]) -> Found:
    now = watch.now("rewards/accuracy")
    if now is None or now > 0.55:
        return None
    margin = f" and the mean margin is {m['rewards/margin']:.2g}" if "rewards/margin" in m else ""
    return (
        f"The pairs are still in chance order: {now:.0%} of them are right{margin}, {FLAT} steps and more after the "
        "start.",
        "raise `train.learning_rate`; check in a dry run that `data` has the better answer as chosen; more `data` or a "
        "larger model when the difference is hard to see."
        if _is_reward_model(m)
        else "raise `train.learning_rate`; check in a dry run that `data` has the better answer as chosen. Where the "
        "margin is tiny too, `loss.beta` may hold the policy at the reference: lower it.",
    )


def _saturated(watch: Watch, m: Mapping[str, float]) -> Found:
    accuracy, start, now = watch.now("rewards/accuracy"), watch.baseline("loss"), watch.now("loss")
    if accuracy is None or start is None or now is None or accuracy < 0.99 or start <= 0.0 or now > 0.1 * start:
        return None
    return (
        f"Nothing is left to learn from these pairs: {accuracy:.1%} are in order and the loss is {now:.2g} (at first "
        f"{start:.2g}). What still changes is memory, or the pairs were too easy.",
        "train fewer `train.epochs` or `train.steps`, keep the best held-out measurement (`eval.best`, "
        "`eval.patience`), or take pairs in `data` whose two answers are closer.",
    )


def _length_alone(watch: Watch, m: Mapping[str, float]) -> Found:
    longer, shorter = watch.now("rewards/accuracy_longer"), watch.now("rewards/accuracy_shorter")
    accuracy = watch.now("rewards/accuracy")
    if longer is None or shorter is None or accuracy is None:
        return None
    controlled = (longer + shorter) / 2
    if accuracy < 0.6 or controlled > 0.6 or abs(longer - shorter) < 0.4:
        return None
    change = "balance `data`: as many pairs whose better answer is the shorter one, or pairs of nearly equal length."
    if not _is_reward_model(m):
        change = f"set `loss.name` to simpo or ipo (they compare means per token, not sums), or {change}"
    return (
        f"The margin follows length: {longer:.0%} of the pairs are in order where the better answer is the longer one, "
        f"{shorter:.0%} where it is the shorter. With both counted alike that is {controlled:.0%}, not {accuracy:.0%}.",
        change,
    )


def _kto_balance(watch: Watch, m: Mapping[str, float]) -> Found:
    ratio = m["kto/balance"]
    if 0.99 * BALANCE[0] <= ratio <= 1.01 * BALANCE[1]:  # weights in a recipe are rounded numbers
        return None
    return (
        f"Good and bad completions are out of balance: λ_D·n_D is {ratio:.3g} times λ_U·n_U over the training data; "
        "KTO is made for 1 to 4/3.",
        "set `loss.desirable_weight` to auto, or set it and `loss.undesirable_weight` yourself.",
    )


def _kto_floor(watch: Watch, m: Mapping[str, float]) -> Found:
    z, raw, desirable = watch.now("kl"), watch.now("kl/raw"), watch.now("rewards/chosen")
    if z is None or raw is None or desirable is None or z > 0.0 or raw > -10.0 or desirable > 0.0:
        return None
    return (
        f"KTO's reference point z stays at its floor of 0: completions of other prompts lost {-raw:.3g} nats on "
        f"average, and the good ones lose as well (mean reward {desirable:.2g}). Training only pushes down.",
        "lower `train.learning_rate`, raise `loss.beta`, or raise `loss.desirable_weight` (auto balances it).",
    )


def _score_drift(watch: Watch, m: Mapping[str, float]) -> Found:
    if not _is_reward_model(m):
        return None
    chosen, rejected = watch.now("rewards/chosen"), watch.now("rewards/rejected")
    if chosen is None or rejected is None or chosen * rejected <= 0.0 or min(abs(chosen), abs(rejected)) < 3.0:
        return None
    return (
        f"The scores drift away from 0: mean {chosen:.3g} for chosen and {rejected:.3g} for rejected. Pairs fix only "
        "differences, and a score far from 0 says nothing by itself.",
        "raise `loss.center` (0.01 is the default), lower `train.learning_rate`; `train.normalize` records mean and "
        "deviation, so that users of the model see scores around 0.",
    )


FIXED: tuple[Rule, ...] = (
    Rule("loss-flat", ("nll",), 50, _loss_flat),
    Rule("both-fall", ("logprobs/chosen", "logprobs/rejected", "length/chosen", "length/rejected"), 5, _both_fall),
    Rule("beta-small", ("logprobs/chosen", "length/chosen"), 10, _beta_small),
    Rule("beta-large", ("rewards/chosen", "rewards/rejected", "logprobs/chosen", "logprobs/rejected"), 20, _beta_large),
    Rule("loss-rises", ("loss", "rewards/chosen"), 10, _loss_rises),
    Rule("preferences-flat", ("rewards/accuracy",), FLAT, _preferences_flat),
    Rule("saturated", ("rewards/accuracy", "loss"), SATURATED, _saturated),
    # A step may lack one of the two kinds of pairs; the window's mean then reaches further back.
    Rule("length-alone", ("rewards/accuracy",), 20, _length_alone),
    Rule("kto-balance", ("kto/balance",), 1, _kto_balance),
    Rule("kto-floor", ("kl", "kl/raw"), 30, _kto_floor),
    Rule("score-drift", ("rewards/chosen", "rewards/rejected"), 20, _score_drift),
)
