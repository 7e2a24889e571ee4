"""The rules of the advice for PPO, dynamic sampling and GMPO; see `preftune.train.advice`.

Each says in its docstring why it is a cause and where its threshold comes from. The thresholds are ours, set so that a
run which learns stays silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

from preftune.train.advice_rules import WINDOW, Found, Rule

if TYPE_CHECKING:
    from preftune.train.advice import Watch

MISLED = 30
"""Steps in a row with values worse than a constant: a new value head needs some steps before it is worth anything."""
KL_NATS, KL_PER_TOKEN = 30.0, 0.5
"""A completion this far from the reference, in all and per token, is another model's than that at the start."""


def _value_head(watch: Watch, m: Mapping[str, float]) -> Found:
    """Explained variance under 0: returns less values vary more than returns alone, so the advantages are noisier than
    with no value head. The median of the window, as one step may be far below 0 by chance; a head of zeros has 0."""
    values = watch.last("value/explained_variance")
    if len(values) < WINDOW or median(values) >= -0.02:
        return None
    clipped = watch.now("value/clipped") or 0.0
    change = (
        "raise `value.learning_rate`, or give the head a start: `value.warmup_steps`, or `value.path` (a reward model)."
    )
    if clipped > 0.3:
        change = (
            f"raise `value.clip` or set it to null ({clipped:.0%} of the values are stopped by it: it is small for "
            f"rewards of this size); then {change}"
        )
    return (
        f"The value head is worse than nothing: the explained variance of the returns is {median(values):.2g} (median "
        f"of {WINDOW} steps), below 0 for {MISLED} steps. Advantages get noisier by it.",
        change,
    )


def _kl_sequence(watch: Watch, m: Mapping[str, float]) -> Found:
    """Far: over 30 nats a completion and over ½ a token at once, as long completions sum up much at little per token.
    Below 0: π's own samples are likelier under π on average, so a mean clearly under 0 says they are not its own."""
    now, length = m["kl/sequence"], max(m["length/mean"], 1.0)
    if now > max(KL_NATS, KL_PER_TOKEN * length):
        beta = f" (β is {m['kl/beta']:.3g})" if "kl/beta" in m else ""
        return (
            f"Completions are {now:.3g} nats away from the reference, {now / length:.2g} per token: the policy has "
            f"left the model it started from{beta}.",
            "raise `policy.beta`, or set `policy.kl_target` (6 is usual), which adapts it; lower "
            "`train.learning_rate`.",
        )
    mean = watch.now("kl/sequence")
    if mean is not None and mean < -1.0 and now < 0.0:
        return (
            f"The KL of completions to the reference is below zero ({mean:.3g} nats, mean of {WINDOW} steps), which "
            "the policy's own samples can't give: they are drawn from another distribution than is trained.",
            "sample plainly (`sampling.top_k` 0, `sampling.top_p` 1, `sampling.min_p` 0, "
            "`sampling.repetition_penalty` 1).",
        )
    return None


def _never_ends(watch: Watch, m: Mapping[str, float]) -> Found:
    """Most completions are cut although that costs something: no completion of the group shows how to end, so the
    penalty is the same for all and teaches nothing."""
    if m["length/truncated"] < 0.5 or m["reward/penalty"] <= 0.0:
        return None
    return (
        f"{m['length/truncated']:.0%} of the completions never end, although a cut one costs score (mean penalty "
        f"{m['reward/penalty']:.2g}): where nearly all are cut, the penalty is the same for all and teaches nothing.",
        "raise `sampling.max_tokens` so that most answers fit; put an sft stage on whole answers before, so that the "
        "model knows how to end; or raise `policy.missing_eos_penalty`.",
    )


def _unfilled(watch: Watch, m: Mapping[str, float]) -> Found:
    """Dynamic sampling reached its bound in every step: the batch holds groups that teach nothing, and each step paid
    for all the draws."""
    if m["resample/missing"] < 1.0:
        return None
    rounds = f" after {m['resample/rounds']:.0f} further draws" if "resample/rounds" in m else ""
    return (
        f"Dynamic sampling does not fill the batch: {m['resample/missing']:.0f} of its prompts have answers of equal "
        f"score{rounds}.",
        "raise `sampling.group_size` or `sampling.temperature`, take prompts in `data` that are sometimes solved and "
        "sometimes not, or raise `policy.resample`; set that to 0 to save the draws.",
    )


def _critic_unread(watch: Watch, m: Mapping[str, float]) -> Found:
    """A critique that can't be read is asked for again, then its answer is left out: the rest is no fair sample. Under
    half, the run stops (gmpo.critic.min_parsed)."""
    if m["critic/parsed"] >= 0.75:
        return None
    return (
        f"Only {m['critic/parsed']:.0%} of the critiques can be read; answers without one are left out"
        + (f" ({m['critic/left_out']:.0%})." if "critic/left_out" in m else "."),
        "raise `gmpo.critic.cold_start` or `gmpo.critic.max_tokens`, lower `gmpo.critic.temperature`, or give "
        "`gmpo.critic.prompt` an instruction that this model follows.",
    )


def _critic_wrong(watch: Watch, m: Mapping[str, float]) -> Found:
    """Of two answers of different truth the wrong one scores higher as often as the right one: the policy is trained
    towards anything. A batch's share is noisy, so the window's mean counts."""
    now = watch.now("critic/agreement")
    if now is None or now > 0.5:
        return None
    return (
        f"The critic's scores are no better than chance: of a right and a wrong answer the right one scores higher in "
        f"{now:.0%} of cases (mean of {WINDOW} steps).",
        "raise `gmpo.critic.cold_start` or `gmpo.critic.learning_rate`, set `gmpo.critic.every` to 1, let it read "
        "`gmpo.critic.reference`, and check what `gmpo.critic.truth` calls right.",
    )


def _few_weights(watch: Watch, m: Mapping[str, float]) -> Found:
    """(Σw)²/Σw² over the answers of groups that count: under a tenth, a handful of answers makes the whole gradient."""
    effective, skipped = watch.now("gmpo/effective"), watch.now("gmpo/skipped_groups")
    if effective is None or skipped is None or skipped >= 0.8:
        return None
    share = effective / (1.0 - skipped)
    if share >= 0.1:
        return None
    return (
        f"A few answers carry all the weight: the effective number is {share:.0%} of those that count. The temperature "
        "is small for the spread of the rewards.",
        "raise `gmpo.temperature` (when dynamic: `gmpo.scale` or `gmpo.min_temperature`), or lower `gmpo.max_weight`.",
    )


def _skipped_groups(watch: Watch, m: Mapping[str, float]) -> Found:
    """GMPO's dead groups: scores of a critic are never exactly equal, so the spread counts."""
    if m["gmpo/skipped_groups"] < 0.8:
        return None
    return (
        f"{m['gmpo/skipped_groups']:.0%} of the groups are skipped: the scores of a prompt's answers hardly differ, so "
        "there is nothing to learn from them.",
        "raise `sampling.group_size` or `sampling.temperature`, take harder or easier prompts in `data`, lower "
        "`gmpo.min_spread`, or raise `gmpo.critic.cold_start` when the critic can't tell answers apart.",
    )


POLICY: tuple[Rule, ...] = (
    Rule("value-head", ("value/explained_variance",), MISLED, _value_head),
    Rule("kl-sequence", ("kl/sequence", "length/mean"), 3, _kl_sequence),
    Rule("never-ends", ("length/truncated", "reward/penalty"), 10, _never_ends),
    Rule("unfilled", ("resample/missing",), 10, _unfilled),
    Rule("critic-unread", ("critic/parsed",), 5, _critic_unread),
    Rule("critic-wrong", ("critic/agreement",), 10, _critic_wrong),
    Rule("few-weights", ("gmpo/effective", "gmpo/skipped_groups"), 5, _few_weights),
    Rule("skipped-groups", ("gmpo/skipped_groups",), 5, _skipped_groups),
)
