"""Numbers and metrics in plain words."""

from __future__ import annotations

import math
from collections.abc import Collection

from preftune.intervals import Interval
from preftune.report.read import Run

TITLES = {
    "reward/mean": "Mean reward",
    "reward/accuracy": "Accuracy",
    "reward/well_formed": "Share of well-formed answers",
    "reward/std": "Reward spread within groups",
    "reward/dead_groups": "Groups without spread",
    "reward/skipped": "Rewards left out",
    "length/mean": "Mean length",
    "length/max": "Longest",
    "length/chars": "Mean length in characters",
    "length/truncated": "Share cut at the limit",
    "length/eos": "Share ending in EOS",
    "nll": "Loss per token (NLL)",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "kl/raw": "KL to the reference, before its floor",
    "clip/low": "Clipped low",
    "clip/high": "Clipped high",
    "ratio/max": "Largest ratio",
    "sampler/kl": "KL, sampler to trainer",
    "sampler/max_diff": "Largest log-prob difference",
    "diversity/distinct_2": "Distinct bigrams",
    "diversity/shared_substring": "Longest shared text",
    "diversity/repetition": "Repetition inside a completion",
    "reward/penalty": "Penalty for length or a missing EOS",
    "reward/kl_penalty": "KL penalty, β × KL",
    "kl/sequence": "KL of a whole completion",
    "kl/beta": "β, the KL coefficient",
    "ratio/mean": "Mean ratio",
    "sampler/correction": "Largest importance correction",
    "grad_norm/value": "Gradient norm, value head",
    "grad_norm/critic": "Gradient norm, critic",
    "value/loss": "Value loss",
    "value/error": "Squared error of values",
    "value/mean": "Mean value",
    "value/clipped": "Clipped values",
    "value/explained_variance": "Explained variance of returns",
    "resample/rounds": "Further draws",
    "resample/prompts": "Prompts answered",
    "resample/missing": "Places filled with dead groups",
    "certain/share": "Near-certain tokens",
    "certain/limited": "Limited gradients",
    "certain/norm": "Gradient norm at near-certain tokens",
    "collected/score": "Mean score of the collected answers",
    "collected/prompts_kept": "Share of collected prompts trained on",
    "gmpo/temperature": "Temperature τ",
    "gmpo/skipped_groups": "Skipped groups",
    "gmpo/weight_max": "Largest weight",
    "gmpo/weight_mean": "Mean weight",
    "gmpo/capped": "Weights at their cap",
    "gmpo/effective": "Effective answers",
    "gmpo/lessons": "Lessons",
    "critic/parsed": "Critiques that can be read",
    "critic/retried": "Asked again",
    "critic/left_out": "Answers left out",
    "critic/too_long": "Answers too long for the critic",
    "critic/joint_parsed": "Joint critiques that can be read",
    "critic/reward": "Critic's mean score",
    "critic/length": "Tokens of a critique",
    "critic/agreement": "Right order by the critic",
    "critic/loss": "Critic's loss",
    "critic/nll": "Loss on its explanations",
    "critic/kept": "Explanations learnt from",
    "critic": "Critic's score",
    "truth": "Truth",
    "pass/number": "Pass over the data",
    "followed/prompts": "Prompts followed in full",
    "followed/instructions": "Instructions followed",
    "followed/prompts_loose": "Prompts followed in full, loosely",
    "followed/instructions_loose": "Instructions followed, loosely",
    "choices/accuracy": "Right choices",
    "choices/accuracy_sum": "Right choices by plain log-prob",
    "choices/margin": "Margin of the right choice",
    "choices/unread": "Answers without a letter",
    "tokens/trained": "Tokens trained",
    "tokens/packed": "Tokens packed",
    "tokens/saved": "Share saved by the shared prompt",
}
SHARES = {
    "reward/accuracy", "reward/well_formed", "reward/dead_groups", "length/truncated", "length/eos",
    "clip/low", "clip/high", "diversity/distinct_2", "diversity/repetition", "tokens/saved",
    "rewards/accuracy", "rewards/accuracy_longer", "rewards/accuracy_shorter", "logprobs/accuracy",
    "logprobs/accuracy_per_token", "certain/share", "certain/limited", "value/clipped", "collected/prompts_kept",
    "gmpo/skipped_groups", "gmpo/capped",
    "gmpo/effective", "critic/parsed", "critic/retried", "critic/left_out", "critic/too_long", "critic/joint_parsed",
    "critic/kept", "followed/prompts", "followed/instructions", "followed/prompts_loose",
    "followed/instructions_loose", "choices/accuracy", "choices/accuracy_sum", "choices/unread",
}  # fmt: skip
LOWER_IS_BETTER = {"nll", "loss", "length/truncated", "kl", "reward/competition-copied", "choices/unread"}
NBSP = "\u00a0"
"""Between a number and its unit, which belong on one line."""
NEUTRAL = {
    "length/mean", "length/max", "entropy", "rewards/chosen", "rewards/rejected", "logprobs/chosen",
    "logprobs/rejected",
}  # fmt: skip
"""Metrics that are neither good nor bad by themselves: their change is shown without a verdict."""


def is_neutral(metric: str) -> bool:
    """Whether a metric is neither good nor bad by itself; so is the share of contests that a persona wins."""
    return metric in NEUTRAL or metric.startswith("reward/competition-won")


def title(metric: str) -> str:
    """A metric's name for people: `reward/format_exact` → "Format exact"."""
    if metric in TITLES:
        return TITLES[metric]
    own = metric.removeprefix("reward/")
    words = own.replace("_", " ").replace("-", " ") if own != metric else own.replace("_", " ")
    words = words.strip() or metric
    return words[0].upper() + words[1:]


def number(value: float | None, *, percent: bool = False, sign: bool = False, digits: int = 4) -> str:
    """A number as text: `34.2 %`, `+1.27`, `3.1e−05`. None is a dash; a true minus sign is used, and a space that
    breaks no line before the unit."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    plus, value = "+" if sign else "", value + 0.0  # −0 becomes 0
    if percent:
        return f"{value * 100:{plus}.1f}{NBSP}%".replace("-", "−")
    if value and abs(value) < 1e-3:
        return f"{value:{plus}.1e}".replace("-", "−")
    if abs(value) >= 10_000:
        return f"{value:{plus},.0f}".replace("-", "−")
    return f"{value:{plus}.{digits}g}".replace("-", "−")


def signed(value: float, form: str) -> str:
    """With a sign, unless it rounds to zero."""
    text = f"{value:+{form}}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def span(interval: Interval, *, percent: bool = False) -> str:
    """The 95 % interval as text: `42.1 to 51.3`, without the unit."""
    if not interval.is_bounded:
        return "no interval: one row" if interval.n == 1 else "no interval: all rows equal"
    if percent:
        return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}".replace("-", "−")
    return f"{number(interval.low)} to {number(interval.high)}"


def duration(seconds: float) -> str:
    """`47 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s" if seconds < 10 else f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    pairs = ((minutes, "min"), (rest, "s")) if minutes < 60 else ((minutes // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{value}{NBSP}{unit}" for value, unit in pairs)


def moved(difference: Interval) -> bool | None:
    """True when chance does not explain the change, False when it may, None when these rows can't tell.

    Rows that all changed by the same amount give no interval. Six or more that all moved one way are still
    no chance: the two-sided sign test gives them 2 / 2^6 = 0.03.
    """
    if difference.is_bounded:
        return difference.excludes(0.0)
    if difference.value == 0.0 and difference.n > 1:
        return False
    return True if difference.n >= 6 else None


def is_share(run: Run, metric: str, intervals: list[Interval]) -> bool:
    """True when a metric is a share, so that percent is its unit: named in SHARES, or a reward that is 0 or 1
    in every sample. Wilson intervals stay within [0, 1]; a value outside rules it out."""
    if any(not 0 <= i.value <= 1 for i in intervals):
        return False
    if metric in SHARES:
        return True
    name = metric.removeprefix("reward/")
    values = {s.breakdown[name] for s in run.samples if s.breakdown.get(name) is not None}
    inside = all(i.low >= 0 and i.high <= 1 for i in intervals)
    return bool(values) and values <= {0.0, 1.0} and inside


def main_metric(run: Run, measured: Collection[str]) -> str:
    """The measured metric that the run is about; "" when nothing was measured.

    The one that picks the best checkpoint, except where completions are compared: there it may be a detail (a margin, a
    log-prob), and the run is about answers if it drew some, else about the order of the completions.
    """
    chosen = str((run.summary or {}).get("best_metric") or section(run, "eval").get("best") or "")
    order = ["rewards/auc", "rewards/accuracy"]
    compared = any(metric in measured for metric in order)
    wanted = [] if compared and not chosen.startswith("reward/") else [chosen]
    wanted += ["reward/accuracy", "reward/mean", *order, *_rewards(run), "nll", *sorted(measured)]
    return next((metric for metric in wanted if metric in measured), "")


def _rewards(run: Run) -> list[str]:
    """Metrics of the recipe's rewards in its order: what is left where no answer has a score, as beside a judge that
    compares."""
    listed = run.recipe.get("rewards")
    named = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [f"reward/{one.get('label') or one.get('name')}" for one in named]


def section(run: Run, name: str) -> dict[str, object]:
    """A section of the recipe; empty where the recipe has none."""
    found = run.recipe.get(name)
    return found if isinstance(found, dict) else {}


ROWS = {"test": "held-out rows", "validation": "validation rows", "train": "training rows"}


def rows_of(split: str) -> str:
    """A split's rows in words; those of a benchmark, which is none of the three, go by its name."""
    return ROWS.get(split, f"rows of {split}")
