"""The rules of the advice that hold for every method, and those of methods that sample; see `preftune.train.advice`.

The thresholds are ours: they are set so that a run which learns stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from preftune.train.advice import Watch

WINDOW = 10
"""Steps whose mean a rule looks at, and as many at the start for its baseline."""

COLLAPSE_WARN = 3
COLLAPSE_STOP = 6
"""Steps with one text for all prompts, less those without, before the advice, and before `Watch.collapsed`."""
SHARED_CHARS = 40
SHARED_SHARE = 0.6
DISTINCT_DROP = 1 / 3
DISTINCT_SLIDE = 0.6
"""The share of its first distinct bigrams under which a policy slides towards one text: about half of the prompts get
it then, and greedy decoding, which takes the likeliest answer, may give it to all of them."""
EARLY = 3
"""Steps from which on a collapse is judged. With a huge learning rate ten steps are enough for all of it."""
CHARS_PER_TOKEN = 4.0
"""Used only when `length/chars` isn't logged."""

Found: TypeAlias = tuple[str, str] | None
"""What a rule saw and what to change, or None when it doesn't hold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause.

    Attributes:
        needs: metrics without which a step leaves the rule untouched.
        patience: steps that it must hold before it speaks.
        check: sees the watch after the step's values went in, and the step's own finite metrics.
        forgets: a step on which it does not hold takes all the steps back; False: it takes back one.
        silent: it gives no advice; how long it has held is what counts.
    """

    name: str
    needs: tuple[str, ...]
    patience: int
    check: Callable[[Watch, Mapping[str, float]], Found]
    forgets: bool = True
    silent: bool = False


def learns_as_gmpo(m: Mapping[str, float]) -> bool:
    """Whether GMPO logged the step: it weighs answers by itself, and has its own settings."""
    return "gmpo/skipped_groups" in m


def _beta(m: Mapping[str, float]) -> str:
    """The setting that holds the policy near its reference."""
    return "`gmpo.beta`" if learns_as_gmpo(m) else "`policy.beta`"


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
    if "value/explained_variance" in m:  # a value head tells answers apart where their scores don't, or a group has one
        return None
    if learns_as_gmpo(m) or m["reward/dead_groups"] < 0.8:  # GMPO's own rule: skipped groups
        return None
    reward = f" (mean reward {m['reward/mean']:.3g})" if "reward/mean" in m else ""
    return (
        f"{m['reward/dead_groups']:.0%} of the groups are dead: all completions of a prompt got the same "
        f"score{reward}, so there is nothing to learn from them.",
        "raise `sampling.group_size` or `sampling.temperature`, take harder prompts in `data` when the reward is high "
        "and easier ones when it is low, or add a graded reward to `rewards`.",
    )


def _reward_fall(watch: Watch, m: Mapping[str, float]) -> Found:
    if watch.last("critic/loss"):  # a critic that learns may become stricter: another scale, no worse answers
        return None
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
        f"lower `train.learning_rate`, set {_beta(m)} above 0, or stop earlier (`train.steps`, `eval.patience`); the "
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
        (
            "check that the critic does not pay for length (`gmpo.critic.prompt`), or lower `sampling.max_tokens`."
            if learns_as_gmpo(m)
            else "add a length reward to `rewards`, set `policy.preset` to dr-grpo (its loss does not favour length), "
            "or lower `sampling.max_tokens`."
        )
        if grew
        else "check that `rewards` don't pay for short or empty answers; lower `train.learning_rate` or raise "
        f"{_beta(m)}."
    )
    return (
        f"Completions {'grew' if grew else 'shrank'} from {peak.length:.0f} to {now:.0f} tokens since step {peak.step} "
        "while the reward stayed flat.",
        change,
    )


def _truncated(watch: Watch, m: Mapping[str, float]) -> Found:
    if m["length/truncated"] < 0.3 or "reward/penalty" in m:  # where cut answers cost score: "never-ends"
        return None
    return (
        f"{m['length/truncated']:.0%} of the completions were cut at the token limit before they ended.",
        "raise `sampling.max_tokens`."
        if learns_as_gmpo(m)
        else "raise `sampling.max_tokens`, set `policy.missing_eos_penalty` above 0, or set `policy.mask_truncated` so "
        "that cut answers carry no loss.",
    )


def _entropy_collapse(watch: Watch, m: Mapping[str, float]) -> Found:
    start = watch.baseline("entropy")
    if start is None or m["entropy"] >= 0.1 * start or m["entropy"] >= 0.1:
        return None
    return (
        f"Entropy collapsed from {start:.3g} to {m['entropy']:.3g} nats per token: the policy writes almost the same "
        "each time and no longer explores.",
        f"raise `sampling.temperature`, lower `train.learning_rate`, raise {_beta(m)}."
        if learns_as_gmpo(m)
        else "raise `sampling.temperature` or `policy.clip_high` (0.28), lower `train.learning_rate`, raise "
        "`policy.beta`.",
    )


def _entropy_rise(watch: Watch, m: Mapping[str, float]) -> Found:
    start = watch.baseline("entropy")
    if start is None or m["entropy"] <= max(3 * start, start + 1.0):
        return None
    return (
        f"Entropy rose from {start:.3g} to {m['entropy']:.3g} nats per token: the policy is dissolving into noise.",
        f"lower `train.learning_rate`, raise {_beta(m)}, or lower `sampling.temperature`.",
    )


def _kl(watch: Watch, m: Mapping[str, float]) -> Found:
    # KTO's z is of whole completions, not per token, and above 1 in health; "kl-sequence" has the KL that is in the
    # reward.
    if "kl/raw" in m or "kl/sequence" in m:
        return None
    before = watch.before("kl")
    jumped = len(before) >= WINDOW and m["kl"] > 0.2 and m["kl"] > 10 * max(before[:WINDOW])
    if m["kl"] <= 1.0 and not jumped:
        return None
    return (
        f"The policy is {m['kl']:.3g} nats per token away from the reference: it has left the model it started from.",
        f"raise {_beta(m)} ({'0.05' if learns_as_gmpo(m) else '0.04'} is usual), lower `train.learning_rate`, or lower "
        "`train.max_grad_norm`.",
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
        f"lower `train.learning_rate`, raise {_beta(m)}, lower `sampling.max_tokens`, or add a reward against it to "
        "`rewards`.",
    )


def _collapse(watch: Watch, m: Mapping[str, float], drop: float = DISTINCT_DROP) -> Found:
    shared, distinct = m["diversity/shared_substring"], m["diversity/distinct_2"]
    chars = m.get("length/chars", CHARS_PER_TOKEN * m["length/mean"])
    if shared < SHARED_CHARS or shared < SHARED_SHARE * chars:
        return None
    first = watch.first("diversity/distinct_2")
    if len(first) <= EARLY:
        return None
    start = max(fmean(first[:EARLY]), fmean(first))  # the first ten may hold the collapse itself
    if distinct > drop * start:
        return None
    return (
        f"Different prompts get the same text: completions share {shared:.0f} characters of about {chars:.0f}, and "
        f"only {distinct:.1%} of their bigrams are distinct (at first {start:.1%}).",
        f"go back to a checkpoint before this step, lower `train.learning_rate`, raise {_beta(m)}, and check what "
        "`rewards` pay for this text. `log.stop_on_collapse` ends such a run by itself.",
    )


def _slide(watch: Watch, m: Mapping[str, float]) -> Found:
    """On the way to a collapse, or in it: no step to go back to."""
    return _collapse(watch, m, DISTINCT_SLIDE)


COLLAPSE_NEEDS = ("diversity/shared_substring", "diversity/distinct_2", "length/mean")

GENERAL: tuple[Rule, ...] = (
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
    Rule(
        "one-text",
        COLLAPSE_NEEDS,
        COLLAPSE_WARN,
        _collapse,
        forgets=False,  # a mad policy has a good step now and then
    ),
    # A checkpoint that was saved while this held is not gone back to (`_collapsing` in preftune/train/loop.py).
    Rule("collapse", COLLAPSE_NEEDS, 1, _slide, forgets=False, silent=True),
)
