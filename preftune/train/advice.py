"""Watches a run's metrics and says in words what goes wrong, at which step, and which setting to change.

Each rule looks at the numbers of a step, together with the means of the last WINDOW steps and of the first ones
(the baseline), and either holds or doesn't. It speaks once when it has held for its `patience` steps in a row, and
again only after it has been clear for CLEAR steps. A step that lacks a rule's metrics leaves that rule untouched,
so every method uses the same table. The thresholds are ours: they are set so that a run which learns stays silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

WINDOW = 10
KEPT = 21
"""Values remembered per metric: the current one and the 20 before it, for spikes."""
CLEAR = 10

COLLAPSE_WARN = 3
COLLAPSE_STOP = 6
"""Steps in a row with one text for all prompts before the advice, and before `Watch.collapsed`."""
SHARED_CHARS = 40
SHARED_SHARE = 0.6
DISTINCT_DROP = 1 / 3
CHARS_PER_TOKEN = 4.0
"""Used only when `length/chars` isn't logged."""

WATCHED = (
    "loss", "nll", "grad_norm", "reward/mean", "reward/std", "reward/dead_groups", "length/mean", "length/truncated",
    "entropy", "kl", "clip/low", "clip/high", "ratio/max", "sampler/kl", "sampler/max_diff", "diversity/distinct_2",
    "diversity/shared_substring", "diversity/repetition", "logprobs/chosen", "logprobs/rejected",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, at which step, and what to change. One line of advice.jsonl."""

    step: int
    saw: str
    change: str


@dataclass(slots=True)
class _Peak:
    """Where the smoothed reward was best, and how long completions were then."""

    step: int
    reward: float
    length: float | None


class Watch:
    """Feed it every train step's metrics, in order. Its state is JSON, so that a resumed run says the same."""

    def __init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._first: dict[str, list[float]] = {}
        self._peak: _Peak | None = None
        self.broken: list[str] = []
        self._held: dict[str, int] = {}
        self._clear: dict[str, int] = {}
        self._active: list[str] = []

    @property
    def collapsed(self) -> bool:
        """True while all prompts have been getting the same text for COLLAPSE_STOP steps in a row.

        A step counts when both hold, as short answers share text such as "The answer is 7" in health too:

        - the longest text shared by completions of different prompts has at least SHARED_CHARS characters and at
          least SHARED_SHARE of the mean completion's length (`length/chars`, else CHARS_PER_TOKEN × `length/mean`);
        - distinct bigrams across prompts are at most DISTINCT_DROP of what they were in the first WINDOW steps.

        One text for B prompts has 1/B of distinct bigrams, so the second needs about four prompts per step. A policy
        that was so from the beginning isn't called collapsed: a learned boilerplate looks the same.
        """
        return self._held.get("collapse", 0) >= COLLAPSE_STOP

    def update(self, step: int, metrics: Mapping[str, float]) -> list[Advice]:
        """Take in one step's train metrics; return what there is to say about it, usually nothing."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self.broken = [name for name in metrics if name in WATCHED and name not in finite]
        for name in WATCHED:
            if name in finite:
                first = self._first.setdefault(name, [])
                if len(first) < WINDOW:
                    first.append(finite[name])
                recent = self._recent.setdefault(name, [])
                recent.append(finite[name])
                del recent[:-KEPT]
        self._track_peak(step, finite)
        out = []
        for rule in RULES:
            if any(name not in finite for name in rule.needs):
                continue
            found = rule.check(self, finite)
            if found is None:
                self._held[rule.name] = 0
                self._clear[rule.name] = self._clear.get(rule.name, 0) + 1
                if self._clear[rule.name] >= CLEAR and rule.name in self._active:
                    self._active.remove(rule.name)
                continue
            self._clear[rule.name] = 0
            self._held[rule.name] = self._held.get(rule.name, 0) + 1
            if self._held[rule.name] >= rule.patience and rule.name not in self._active:
                self._active.append(rule.name)
                out.append(Advice(step, *found))
        return out

    def state_dict(self) -> dict[str, Any]:
        """Everything the watch remembers, as JSON types."""
        peak = self._peak
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "first": {name: list(values) for name, values in self._first.items()},
            "peak": None if peak is None else {"step": peak.step, "reward": peak.reward, "length": peak.length},
            "held": dict(self._held),
            "clear": dict(self._clear),
            "active": list(self._active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises KeyError when it is not one."""
        self._recent = {name: list(values) for name, values in state["recent"].items()}
        self._first = {name: list(values) for name, values in state["first"].items()}
        self._peak = None if state["peak"] is None else _Peak(**state["peak"])
        self._held, self._clear = dict(state["held"]), dict(state["clear"])
        self._active = list(state["active"])

    def now(self, name: str) -> float | None:
        """Mean of the last WINDOW values, or None before there are as many."""
        values = self._recent.get(name, ())
        return fmean(values[-WINDOW:]) if len(values) >= WINDOW else None

    def baseline(self, name: str) -> float | None:
        """Mean of the first WINDOW values, or None before there are as many."""
        values = self._first.get(name, ())
        return fmean(values) if len(values) >= WINDOW else None

    def before(self, name: str) -> list[float]:
        """Up to 20 values before the current one."""
        return self._recent.get(name, [])[:-1]

    @property
    def peak(self) -> _Peak | None:
        return self._peak

    def _track_peak(self, step: int, metrics: Mapping[str, float]) -> None:
        reward = self.now("reward/mean")
        if reward is None or "reward/mean" not in metrics:
            return
        # A tenth of the spread inside groups: less than that is noise, not a new peak.
        margin = 0.1 * (self.now("reward/std") or 0.0)
        if self._peak is None or reward > self._peak.reward + margin:
            self._peak = _Peak(step, reward, self.now("length/mean"))


Found = tuple[str, str] | None
"""What a rule saw and what to change, or None when it doesn't hold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause. `check` sees the watch after the step's values went in, and the step's own finite metrics."""

    name: str
    needs: tuple[str, ...]
    patience: int
    check: Callable[[Watch, Mapping[str, float]], Found]


def _non_finite(watch: Watch, m: Mapping[str, float]) -> Found:
    if not watch.broken:
        return None
    return (
        f"{', '.join(watch.broken)} stopped being a finite number.",
        "lower `train.learning_rate` and `train.max_grad_norm`, raise `train.warmup`, or set `train.precision` to "
        "fp32; then continue from a checkpoint before this step.",
    )


def _grad_spike(watch: Watch, m: Mapping[str, float]) -> Found:
    before = watch.before("grad_norm")
    if len(before) < WINDOW:
        return None
    largest = max(before)
    if largest <= 0 or m["grad_norm"] <= 5 * largest:
        return None
    return (
        f"The gradient norm jumped to {m['grad_norm']:.3g}, {m['grad_norm'] / largest:.0f} times the largest of the "
        f"{len(before)} steps before.",
        "lower `train.max_grad_norm` or `train.learning_rate`; a larger `train.batch_size` makes steps steadier.",
    )


def _dead_groups(watch: Watch, m: Mapping[str, float]) -> Found:
    if m["reward/dead_groups"] < 0.8:
        return None
    reward = f" (mean reward {m['reward/mean']:.3g})" if "reward/mean" in m else ""
    return (
        f"{m['reward/dead_groups']:.0%} of the groups are dead: all completions of a prompt got the same "
        f"score{reward}, so there is nothing to learn from them.",
        "raise `sampling.group_size` or `sampling.temperature`, take harder prompts in `data` when the reward is high "
        "and easier ones when it is low, or add a graded reward to `rewards`.",
    )


def _reward_fall(watch: Watch, m: Mapping[str, float]) -> Found:
    now, start, peak = watch.now("reward/mean"), watch.baseline("reward/mean"), watch.peak
    if now is None or start is None or peak is None:
        return None
    # 0.3 of the gain, and not less than noise could do.
    fall = max(0.3 * (peak.reward - start), 0.5 * (watch.now("reward/std") or 0.0), 0.1 * abs(peak.reward), 1e-6)
    if peak.reward - now <= fall:
        return None
    return (
        f"The mean reward fell from its peak of {peak.reward:.3g} (step {peak.step}) to {now:.3g} (means of {WINDOW} "
        "steps).",
        "lower `train.learning_rate`, set `policy.beta` above 0, or stop earlier (`train.steps`, `eval.patience`); the "
        "best checkpoint is kept when `eval.best` is set.",
    )


def _length_drift(watch: Watch, m: Mapping[str, float]) -> Found:
    now, peak = watch.now("length/mean"), watch.peak
    if now is None or peak is None or not peak.length or 0.5 < now / peak.length < 1.5:
        return None
    if abs(now - peak.length) < 5:  # half of a four-token answer is no drift
        return None
    grew = now > peak.length
    change = (
        "add a length reward to `rewards`, set `policy.preset` to dr-grpo (its loss does not favour length), or "
        "lower `sampling.max_tokens`."
        if grew
        else "check that `rewards` don't pay for short or empty answers; lower `train.learning_rate` or raise "
        "`policy.beta`."
    )
    return (
        f"Completions {'grew' if grew else 'shrank'} from {peak.length:.0f} to {now:.0f} tokens since step {peak.step} "
        "while the reward stayed flat.",
        change,
    )


def _truncated(watch: Watch, m: Mapping[str, float]) -> Found:
    if m["length/truncated"] < 0.3:
        return None
    return (
        f"{m['length/truncated']:.0%} of the completions were cut at the token limit before they ended.",
        "raise `sampling.max_tokens`, set `policy.missing_eos_penalty` above 0, or set `policy.mask_truncated` so that "
        "cut answers carry no loss.",
    )


def _entropy_collapse(watch: Watch, m: Mapping[str, float]) -> Found:
    start = watch.baseline("entropy")
    if start is None or m["entropy"] >= 0.1 * start or m["entropy"] >= 0.1:
        return None
    return (
        f"Entropy collapsed from {start:.3g} to {m['entropy']:.3g} nats per token: the policy writes almost the same "
        "each time and no longer explores.",
        "raise `sampling.temperature` or `policy.clip_high` (0.28), lower `train.learning_rate`, raise `policy.beta`.",
    )


def _entropy_rise(watch: Watch, m: Mapping[str, float]) -> Found:
    start = watch.baseline("entropy")
    if start is None or m["entropy"] <= max(3 * start, start + 1.0):
        return None
    return (
        f"Entropy rose from {start:.3g} to {m['entropy']:.3g} nats per token: the policy is dissolving into noise.",
        "lower `train.learning_rate`, raise `policy.beta`, or lower `sampling.temperature`.",
    )


def _kl(watch: Watch, m: Mapping[str, float]) -> Found:
    before = watch.before("kl")
    jumped = len(before) >= WINDOW and m["kl"] > 0.2 and m["kl"] > 10 * max(before[:WINDOW])
    if m["kl"] <= 1.0 and not jumped:
        return None
    return (
        f"The policy is {m['kl']:.3g} nats per token away from the reference: it has left the model it started from.",
        "raise `policy.beta` (0.04 is usual), lower `train.learning_rate`, or lower `train.max_grad_norm`.",
    )


def _clipped(watch: Watch, m: Mapping[str, float]) -> Found:
    share = m["clip/high"] + m.get("clip/low", 0.0)  # cispo has no lower clip
    if share < 0.3:
        return None
    return (
        f"{share:.0%} of the tokens were clipped: most of each batch pushes against the limit and teaches nothing.",
        "lower `train.updates_per_batch` or `train.learning_rate`, or raise `policy.clip_high`.",
    )


def _ratio(watch: Watch, m: Mapping[str, float]) -> Found:
    if m["ratio/max"] < 50:
        return None
    return (
        f"The largest importance ratio reached {m['ratio/max']:.3g}: the policy that is trained is far from the one "
        "that wrote the samples.",
        "lower `train.updates_per_batch` or `train.learning_rate`.",
    )


def _sampler(watch: Watch, m: Mapping[str, float]) -> Found:
    kl, largest = m["sampler/kl"], m.get("sampler/max_diff", 0.0)
    if kl <= 0.01 and largest <= 1.0:
        return None
    return (
        f"Sampler and trainer disagree about the same tokens: KL {kl:.3g} nats, largest difference {largest:.3g}.",
        "sample plainly (`sampling.top_k` 0, `sampling.top_p` 1, `sampling.min_p` 0, `sampling.repetition_penalty` 1), "
        "or set `train.precision` and `model.dtype` to full precision.",
    )


def _repetition(watch: Watch, m: Mapping[str, float]) -> Found:
    start = watch.baseline("diversity/repetition")
    if start is None or m["diversity/repetition"] < max(0.5, 1.5 * start):
        return None
    return (
        f"Completions repeat themselves: {m['diversity/repetition']:.0%} of their n-grams had been written before "
        f"(at first {start:.0%}).",
        "lower `train.learning_rate`, raise `policy.beta`, lower `sampling.max_tokens`, or add a reward against it to "
        "`rewards`.",
    )


def _collapse(watch: Watch, m: Mapping[str, float]) -> Found:
    shared, distinct = m["diversity/shared_substring"], m["diversity/distinct_2"]
    chars = m.get("length/chars", CHARS_PER_TOKEN * m["length/mean"])
    if shared < SHARED_CHARS or shared < SHARED_SHARE * chars:
        return None
    start = watch.baseline("diversity/distinct_2")
    if start is None or distinct > DISTINCT_DROP * start:
        return None
    return (
        f"Different prompts get the same text: completions share {shared:.0f} characters of about {chars:.0f}, and "
        f"only {distinct:.1%} of their bigrams are distinct (at first {start:.1%}).",
        "go back to a checkpoint before this step, lower `train.learning_rate`, raise `policy.beta`, and check what "
        "`rewards` pay for this text. `log.stop_on_collapse` ends such a run by itself.",
    )


def _loss_flat(watch: Watch, m: Mapping[str, float]) -> Found:
    start, now = watch.baseline("nll"), watch.now("nll")
    # Under 0.05 nats there is nothing left to learn; on-policy methods have a reward to judge by instead.
    if "reward/mean" in m or start is None or now is None or start < 0.05 or now < 0.98 * start:
        return None
    return (
        f"The loss is not falling: {start:.3g} nats per token in the first {WINDOW} steps, {now:.3g} now.",
        "raise `train.learning_rate` when it is flat and lower it when it rises; check in a dry run that the decoded "
        "completions (`data`, `tokens.loss_on`) are what the model should learn.",
    )


def _both_fall(watch: Watch, m: Mapping[str, float]) -> Found:
    said = []
    for side in ("chosen", "rejected"):
        start, now = watch.baseline(f"logprobs/{side}"), watch.now(f"logprobs/{side}")
        if start is None or now is None or now >= start - 0.1 * abs(start):
            return None
        said.append(f"{side} {start:.3g} to {now:.3g}")
    return (
        f"Chosen and rejected log-probs both fall ({', '.join(said)}): the model also unlearns the good answers.",
        "lower `train.learning_rate`, train fewer `train.epochs`, or put an sft stage on the chosen answers before.",
    )


RULES = (
    Rule("non-finite", (), 1, _non_finite),
    Rule("grad-spike", ("grad_norm",), 1, _grad_spike),
    Rule("dead-groups", ("reward/dead_groups",), 5, _dead_groups),
    Rule("reward-fall", ("reward/mean",), 5, _reward_fall),
    Rule("length-drift", ("reward/mean", "length/mean"), 5, _length_drift),
    Rule("truncated", ("length/truncated",), 5, _truncated),
    # On fixed data a low entropy is what the data teaches; exploring matters where the policy writes.
    Rule("entropy-collapse", ("entropy", "reward/mean"), 5, _entropy_collapse),
    Rule("entropy-rise", ("entropy", "reward/mean"), 5, _entropy_rise),
    Rule("kl", ("kl",), 3, _kl),
    Rule("clipped", ("clip/high",), 5, _clipped),
    Rule("ratio", ("ratio/max",), 3, _ratio),
    Rule("sampler", ("sampler/kl",), 3, _sampler),
    Rule("repetition", ("diversity/repetition",), 5, _repetition),
    Rule("collapse", ("diversity/shared_substring", "diversity/distinct_2", "length/mean"), COLLAPSE_WARN, _collapse),
    Rule("loss-flat", ("nll",), 50, _loss_flat),
    Rule("both-fall", ("logprobs/chosen", "logprobs/rejected"), 5, _both_fall),
)
