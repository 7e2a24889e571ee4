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
        "Standard deviation inside a group, mean over groups. At 0 nothing is learned.",
    ),
    Plan(
        "Groups without signal",
        ("reward/dead_groups",),
        "Share of groups in which all completions got the same score.",
        percent=True,
    ),
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
    Plan(
        "KL to the reference", ("kl",), "k3 estimate per token, in nats: how far the policy has moved from its start."
    ),
    Plan(
        "Clipped tokens",
        ("clip/low", "clip/high"),
        "Share of tokens whose ratio hit the lower or upper clip.",
        percent=True,
    ),
    Plan("Largest ratio", ("ratio/max",), "Largest importance ratio of the step; 1 with one update per batch."),
    Plan("Gradient norm", ("grad_norm",), "Before clipping.", log=True),
    Plan("Learning rate", ("learning_rate",), "As the schedule set it.", own_axis=True),
    Plan(
        "Sampler against trainer",
        ("sampler/max_diff", "sampler/kl"),
        "Difference between the log-probs kept while sampling and those of the trainer, in nats.",
        log=True,
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


def plans(names: Collection[str]) -> tuple[Plan, ...]:
    """The plans that fit these metrics: `kl` is a baseline where `kl/raw` says so, and a penalty elsewhere."""
    wrong = "KL to the reference" if "kl/raw" in names else "Baseline z"
    return tuple(plan for plan in PLANS if plan.title != wrong)
