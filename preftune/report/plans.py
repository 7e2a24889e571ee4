"""Which train metrics share a chart, in which order, and what the page says of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """A chart and the train metrics it draws. One name alone gets a thin raw and a bold smoothed curve."""

    title: str
    names: tuple[str, ...]
    note: str
    percent: bool = False
    log: bool = False
    follow: bool = False
    """The same metric's measurements on rows outside training are drawn into it, with their intervals."""
    own_axis: bool = False
    """In a pipeline each stage gets a chart of its own: methods mean different things by it, on different scales."""


PLANS = (
    Plan("Mean reward", ("reward/mean",), "Weighted sum of the rewards, mean over the step's completions."),
    Plan(
        "Reward spread",
        ("reward/std",),
        "Standard deviation inside a group, mean over groups. At 0 comparing answers to one prompt teaches nothing.",
    ),
    Plan(
        "Groups without signal",
        ("reward/dead_groups",),
        "Share of groups in which all completions got the same score.",
        percent=True,
    ),
    Plan(
        "Taken off the reward",
        ("reward/penalty", "reward/kl_penalty"),
        "Mean per completion: for a missing EOS or too great a length, and β times the KL to the reference.",
    ),
    Plan(
        "Dynamic sampling",
        ("resample/rounds", "resample/missing"),
        "Further draws to replace groups without spread, and places of the batch that stayed without.",
    ),
    Plan(
        "Prompts answered", ("resample/prompts",), "Prompts sampled for one step's batch, those thrown away included."
    ),
    Plan(
        "Temperature τ",
        ("gmpo/temperature",),
        "Weights are exp(advantage / τ): the smaller τ, the more the best answers count.",
    ),
    Plan(
        "Skipped groups",
        ("gmpo/skipped_groups",),
        "Share of groups whose scores lie too close together to learn from.",
        percent=True,
    ),
    Plan("Weights of answers", ("gmpo/weight_max", "gmpo/weight_mean"), "Over answers that are not skipped."),
    Plan(
        "Answers that count",
        ("gmpo/effective", "gmpo/capped"),
        "Effective answers, (Σw)² / Σw², as a share of all; and the share of weights at their cap.",
        percent=True,
    ),
    Plan(
        "Critiques that can be read",
        ("critic/parsed", "critic/retried", "critic/left_out", "critic/too_long", "critic/joint_parsed"),
        "Shares. An answer whose second critique can't be read either is left out.",
        percent=True,
    ),
    Plan(
        "Critic against the truth",
        ("critic/agreement", "critic/kept"),
        "Of two answers of different truth, how often the better one gets the higher score (50 % is chance); and the "
        "share of explanations on the truth's side, which alone are learnt from.",
        percent=True,
    ),
    Plan(
        "Critic's loss",
        ("critic/loss", "critic/nll"),
        "Cross-entropy of its scores plus the loss on kept explanations.",
    ),
    Plan("Critic's mean score", ("critic/reward",), "From 0 to 1, over the answers that have a critique."),
    Plan("Length of critiques", ("critic/length",), "Tokens, mean."),
    Plan("Lessons", ("gmpo/lessons",), "Lessons from critiques that stand before the question when sampling."),
    Plan(
        "Loss",
        ("loss",),
        "The objective that the step minimised. For policy gradients its level means little.",
        own_axis=True,
    ),
    Plan(
        "Loss per token (NLL)",
        ("nll",),
        "Mean negative log-likelihood of the trained tokens, in nats.",
        own_axis=True,
    ),
    Plan(
        "Accuracy",
        ("rewards/accuracy",),
        "Share of pairs in the data's order by the model's reward; ties count ½.",
        percent=True,
        follow=True,
    ),
    Plan(
        "Margin",
        ("rewards/margin",),
        "Reward of the chosen completion minus that of the rejected one, mean over pairs.",
        follow=True,
        own_axis=True,
    ),
    Plan(
        "Accuracy by length",
        ("rewards/accuracy_longer", "rewards/accuracy_shorter"),
        "On pairs whose chosen completion is the longer or the shorter one. Far apart: the model goes by length.",
        percent=True,
    ),
    Plan(
        "Rewards of both sides",
        ("rewards/chosen", "rewards/rejected"),
        "Mean over the step's pairs. What trains is their distance, not their level.",
        own_axis=True,
    ),
    Plan(
        "Near-certain tokens",
        ("certain/share", "certain/limited"),
        "Answer tokens to which the generator gave more than p_max, and the share of their gradients over g_max.",
        percent=True,
    ),
    Plan(
        "Gradient norm at near-certain tokens",
        ("certain/norm",),
        "Mean norm of the gradient that reaches their states at each layer, of one pair's loss, before the limit.",
        own_axis=True,
    ),
    Plan(
        "Log-probs of both sides",
        ("logprobs/chosen", "logprobs/rejected"),
        "Mean of the summed log-prob, in nats. Both falling: the good answers get less likely as well.",
    ),
    Plan(
        "Lengths of both sides",
        ("length/chosen", "length/rejected"),
        "Mean tokens in the step's batch: a property of the data.",
    ),
    Plan(
        "Baseline z",
        ("kl", "kl/raw"),
        "The estimated KL to the reference, in nats per completion: KTO's zero point. Raw: before its floor at 0.",
    ),
    Plan(
        "Completion length",
        ("length/mean", "length/max"),
        "Tokens of completions: mean and longest of the step.",
    ),
    Plan(
        "How completions end",
        ("length/truncated", "length/eos"),
        "Share cut at the token limit, and share that ended by itself.",
        percent=True,
    ),
    Plan("Entropy", ("entropy",), "Mean entropy of the next-token distribution at completion tokens, in nats."),
    Plan("KL to the reference", ("kl",), "Per token, in nats: how far the policy has moved from its start."),
    Plan(
        "KL of whole completions",
        ("kl/sequence",),
        "Mean over completions of Σ log π − log π₀, in nats: what the KL penalty is paid on.",
    ),
    Plan("β, the KL coefficient", ("kl/beta",), "It adapts where policy.kl_target is set."),
    Plan(
        "Explained variance",
        ("value/explained_variance",),
        "Of the returns, by the value head. 1: it knows them; 0: no better than a constant; below: it misleads.",
    ),
    Plan(
        "Value loss",
        ("value/loss", "value/error"),
        "½ of the clipped squared error, and the squared error itself, mean over tokens.",
        log=True,
    ),
    Plan("Mean value", ("value/mean",), "What the value head expects of the rest of a completion, mean over tokens."),
    Plan(
        "Clipped tokens",
        ("clip/low", "clip/high", "value/clipped"),
        "Share of tokens whose ratio hit the lower or upper clip, or whose value did.",
        percent=True,
    ),
    Plan("Largest ratio", ("ratio/max",), "Largest importance ratio of the step; 1 with one update per batch."),
    Plan(
        "Gradient norm",
        ("grad_norm", "grad_norm/value", "grad_norm/critic"),
        "Before clipping. Policy, value head and critic are clipped apart.",
        log=True,
    ),
    Plan("Learning rate", ("learning_rate",), "As the schedule set it.", own_axis=True),
    Plan(
        "Sampler against trainer",
        ("sampler/max_diff", "sampler/kl"),
        "Difference between the log-probs kept while sampling and those of the trainer, in nats.",
        log=True,
    ),
    Plan(
        "Importance correction",
        ("sampler/correction",),
        "Largest |w − 1| of w = min(π trainer / π sampler, cap): how far sampler and trainer are apart on some token.",
    ),
    Plan(
        "Diversity",
        ("diversity/distinct_2", "diversity/repetition"),
        "Share of distinct bigrams across completions, and share of repeated n-grams inside one.",
        percent=True,
    ),
    Plan(
        "Longest shared text",
        ("diversity/shared_substring",),
        "Characters that completions of different prompts have in common.",
    ),
    Plan(
        "Tokens per step", ("tokens/trained", "tokens/packed"), "Tokens with loss, and all tokens of the forward pass."
    ),
    Plan(
        "Saved by the shared prompt",
        ("tokens/saved",),
        "Share of tokens that need no computing, as a group's prompt is packed once.",
        percent=True,
    ),
)
PARTS_TITLE = "Reward, part by part"
PARTS_NOTE = "Each reward's own mean, before its weight."
PLANNED = {name for plan in PLANS for name in plan.names}
TABLED = ("field/", "pass/")
"""Beginnings of metrics that have a table, not a curve each."""


def plans(names: Collection[str]) -> tuple[Plan, ...]:
    """The plans that fit these metrics: `kl` is a baseline where `kl/raw` says so, and a penalty elsewhere."""
    wrong = "KL to the reference" if "kl/raw" in names else "Baseline z"
    return tuple(plan for plan in PLANS if plan.title != wrong)
