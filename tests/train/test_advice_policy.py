"""Advice on PPO, dynamic sampling and GMPO: each rule speaks when it should, and the others stay silent there."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import pytest

from preftune.train.advice import Advice, Watch
from preftune.train.advice_policy import MISLED, POLICY
from preftune.train.advice_rules import WINDOW
from tests.train.test_advice import assert_real_settings, feed, healthy


def healthy_ppo(step: int, steps: int, rng: random.Random, group: int = 1) -> dict[str, float]:
    """PPO that learns: four epochs a batch, KL of completions up to 12 nats, a value head that starts at nothing."""
    done = step / steps
    line = healthy(step, steps, rng)
    return line | {
        "reward/dead_groups": 1.0 if group == 1 else line["reward/dead_groups"],
        "reward/std": 0.0 if group == 1 else line["reward/std"],
        "ratio/mean": 1.0, "ratio/max": 3 + rng.random(), "clip/high": 0.08, "clip/low": 0.08,
        "kl/sequence": 12 * done + rng.gauss(0, 0.4), "kl/beta": 0.05, "reward/kl_penalty": 0.6 * done,
        "reward/penalty": 0.2 * math.exp(-5 * done), "length/truncated": 0.4 * math.exp(-5 * done),
        # Single batches are far below 0 by chance.
        "value/explained_variance": 0.6 * (1 - math.exp(-4 * done)) - (3.0 if rng.random() < 0.1 else 0.0),
        "value/loss": 0.5, "value/clipped": 0.1, "grad_norm/value": 1.0,
    }  # fmt: skip


def healthy_gmpo(step: int, steps: int, rng: random.Random) -> dict[str, float]:
    """GMPO that learns while its critic becomes stricter: the mean score falls."""
    done = step / steps
    line = healthy(step, steps, rng)
    for name in ("clip/low", "clip/high", "ratio/max", "sampler/kl", "sampler/max_diff"):
        del line[name]
    return line | {
        "reward/mean": 0.7 - 0.3 * done + rng.gauss(0, 0.02), "reward/dead_groups": 0.0,
        "gmpo/temperature": 0.3, "gmpo/skipped_groups": 0.2 + 0.4 * done, "gmpo/effective": (0.8 - 0.4 * done) * 0.5,
        "gmpo/weight_max": 10.0, "gmpo/capped": 0.05, "critic/parsed": min(1.0, 0.9 + 0.1 * done),
        "critic/left_out": 0.01, "critic/agreement": min(1.0, 0.6 + 0.3 * done + rng.gauss(0, 0.08)),
        "critic/loss": 2.0 - done, "nll": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [60, 300])
def test_healthy_runs_hear_nothing(seed: int, steps: int) -> None:
    for group in (1, 4):
        rng = random.Random(seed)
        assert feed(Watch(), (healthy_ppo(k, steps, rng, group) for k in range(1, steps + 1))) == []
    rng = random.Random(seed)
    assert feed(Watch(), (healthy_gmpo(k, steps, rng) for k in range(1, steps + 1))) == []


def test_answers_collected_before_have_no_loss_that_must_fall() -> None:
    """Direct RLHF and offline GMPO log an nll that is no objective, and no mean reward of their own."""
    assert feed(Watch(), [{"nll": 2.0, "ratio/mean": 1.0}] * 100) == []
    assert feed(Watch(), [{"nll": 2.0, "gmpo/skipped_groups": 0.1, "gmpo/temperature": 0.3}] * 100) == []
    assert len(feed(Watch(), [{"nll": 2.0, "collected/score": 1.0}] * 100)) == 1  # rft: there it is the objective


GOOD = {"reward/mean": 1.0, "length/mean": 50.0, "length/truncated": 0.0}
# name → (metrics of a good step, what breaks it, first step after 20 good ones at which it speaks, words)
BROKEN: dict[str, tuple[dict[str, float], dict[str, float], int, str]] = {
    "value-head": (
        {"value/explained_variance": 0.3},
        {"value/explained_variance": -0.5},
        24 + MISLED,  # the median of the window is from step 25 on
        "explained variance of the returns is -0.5",
    ),
    "kl-sequence": (
        {"kl/sequence": 8.0, "kl": 0.2, "kl/beta": 0.05}, {"kl/sequence": 40.0, "kl": 2.0}, 23, "40 nats",
    ),
    "never-ends": ({"reward/penalty": 0.1}, {"length/truncated": 0.8, "reward/penalty": 0.8}, 30, "80% of the"),
    "unfilled": ({"resample/missing": 0.0}, {"resample/missing": 3.0, "resample/rounds": 4.0}, 30, "3 of its prompts"),
    "critic-unread": ({"critic/parsed": 0.95}, {"critic/parsed": 0.6, "critic/left_out": 0.3}, 25, "Only 60%"),
    "critic-wrong": ({"critic/agreement": 0.7}, {"critic/agreement": 0.3}, 34, "in 30% of cases"),
    "few-weights": (
        {"gmpo/effective": 0.5, "gmpo/skipped_groups": 0.2, "gmpo/temperature": 0.3}, {"gmpo/effective": 0.03}, 33,
        "effective number is",
    ),
    "skipped-groups": (
        {"gmpo/effective": 0.5, "gmpo/skipped_groups": 0.2}, {"gmpo/skipped_groups": 0.9}, 25, "90% of the groups",
    ),
}  # fmt: skip


def said_of(name: str) -> list[Advice]:
    good, bad, _, _ = BROKEN[name]
    return feed(Watch(), [{**GOOD, **good}] * 20 + [{**GOOD, **good, **bad}] * 60)


@pytest.mark.parametrize("name", BROKEN)
def test_a_cause_is_named_once_at_its_step(name: str) -> None:
    good, bad, due, words = BROKEN[name]
    (said,) = said_of(name)
    assert said.step == due
    assert words in said.saw
    # One step less of it is no cause, and what is remembered survives a resume.
    short = [{**GOOD, **good}] * 20 + [{**GOOD, **good, **bad}] * (due - 21)
    watch, resumed = Watch(), Watch()
    assert feed(watch, short) == []
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert feed(resumed, [{**GOOD, **good, **bad}], due) == [said]


def test_every_rule_is_tested_and_names_real_settings() -> None:
    assert set(BROKEN) == {rule.name for rule in POLICY}
    said = [advice for name in BROKEN for advice in said_of(name)]
    clipped = {"value/explained_variance": -0.5, "value/clipped": 0.6}
    below = {"kl/sequence": -2.0, "length/mean": 20.0}
    more = feed(Watch(), [clipped] * 60) + feed(Watch(), [below] * 20)
    assert len(more) == 2
    assert "60% of the values are stopped by it" in more[0].change and "`value.clip`" in more[0].change
    assert "below zero (-2 nats" in more[1].saw
    assert_real_settings([*said, *more])


@pytest.mark.parametrize(
    ("sequence", "length", "spoken"), [(29.0, 10.0, 0), (31.0, 10.0, 1), (90.0, 200.0, 0), (110.0, 200.0, 1)]
)
def test_the_kl_of_long_completions_may_sum_up(sequence: float, length: float, spoken: int) -> None:
    line = {"kl/sequence": sequence, "length/mean": length, "kl": 0.4}
    assert len(feed(Watch(), [line] * 30)) == spoken


def test_one_rule_speaks_of_one_kl() -> None:
    line = {"kl/sequence": 60.0, "kl": 5.0, "length/mean": 10.0}
    (said,) = feed(Watch(), [line] * 30)
    assert "`policy.kl_target`" in said.change
    (said,) = feed(Watch(), [{"kl": 5.0, "gmpo/skipped_groups": 0.1}] * 30)
    assert "`gmpo.beta`" in said.change and "policy.beta" not in said.change


def test_cut_answers_that_cost_score_are_another_cause_than_those_that_do_not() -> None:
    half = {"length/truncated": 0.4}
    (said,) = feed(Watch(), [half] * 20)
    assert "set `policy.missing_eos_penalty`" in said.change
    assert feed(Watch(), [{**half, "reward/penalty": 0.4}] * 60) == []
    assert feed(Watch(), [{"length/truncated": 0.9, "reward/penalty": 0.0}] * 60) == []  # an overlong ramp, unused
    (said,) = feed(Watch(), [{**half, "gmpo/skipped_groups": 0.1}] * 20)
    assert "policy." not in said.change


def test_dead_groups_are_none_where_a_value_head_compares_tokens() -> None:
    dead = {"reward/dead_groups": 1.0, "reward/mean": 0.5}
    assert len(feed(Watch(), [dead] * 20)) == 1
    assert feed(Watch(), [{**dead, "value/explained_variance": 0.2}] * 60) == []


def test_a_falling_score_of_a_learning_critic_is_no_falling_reward() -> None:
    def falling(**more: float) -> Iterable[dict[str, float]]:
        return (
            {"reward/mean": 0.9 - 0.01 * i, "reward/std": 0.1, "gmpo/skipped_groups": 0.1, **more} for i in range(60)
        )

    assert len(feed(Watch(), falling())) == 1  # frozen: its scale is one
    assert feed(Watch(), falling(**{"critic/loss": 1.0})) == []


def test_groups_that_are_skipped_do_not_make_weights_few() -> None:
    """Seven of eight groups skipped: the effective share of all answers is small, that of the others is not."""
    line = {"gmpo/effective": 0.1, "gmpo/skipped_groups": 0.79}
    assert feed(Watch(), [line] * 60) == []


def test_a_shaky_critic_above_chance_is_left_alone() -> None:
    rng = random.Random(0)
    lines = [{"critic/agreement": min(1.0, max(0.0, rng.gauss(0.62, 0.12)))} for _ in range(400)]
    assert feed(Watch(), lines) == []
    assert WINDOW == 10
