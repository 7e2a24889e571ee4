"""Advice: each rule speaks exactly when it should, once, and a healthy run hears nothing."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Mapping

import pytest
from pydantic import BaseModel

from preftune.config import Recipe
from preftune.train.advice import CLEAR, RULES, WATCHED, Advice, Watch
from preftune.train.advice_fixed import FIXED, FLAT, SATURATED
from preftune.train.advice_rules import COLLAPSE_STOP, COLLAPSE_WARN, GENERAL, WINDOW


def feed(watch: Watch, lines: Iterable[Mapping[str, float]], start: int = 1) -> list[Advice]:
    return [advice for step, line in enumerate(lines, start) for advice in watch.update(step, line)]


def healthy(step: int, steps: int, rng: random.Random) -> dict[str, float]:
    """A GRPO run that learns: reward up, entropy down to a sixth, more dead groups, a little drift, noise."""
    done = step / steps
    reward = 0.35 + 0.55 * done + rng.gauss(0, 0.04)
    return {
        "loss": rng.gauss(0, 0.02),
        "grad_norm": math.exp(rng.gauss(-0.5, 0.3)),
        "reward/mean": reward,
        "reward/std": 0.35 * (1.1 - done),
        "reward/dead_groups": min(0.75, 0.1 + 0.6 * done + abs(rng.gauss(0, 0.03))),
        "length/mean": 30 + 8 * done + rng.gauss(0, 1),
        "length/truncated": 0.05 * (1 - done),
        "entropy": 0.6 * math.exp(-1.8 * done) + rng.gauss(0, 0.01),
        "kl": 0.3 * done + abs(rng.gauss(0, 0.005)),
        "clip/low": 0.01,
        "clip/high": 0.02,
        "ratio/max": 1.4 + rng.random(),
        "sampler/kl": 1e-8,
        "sampler/max_diff": 1e-5,
        "diversity/distinct_2": 0.5 - 0.2 * done,
        "diversity/shared_substring": 28 + 20 * done,  # "… so the answer is 4" and the like
        "diversity/repetition": 0.03,
    }


STEADY = {
    "reward/mean": 1.0, "reward/std": 0.2, "length/mean": 50.0, "diversity/distinct_2": 0.6,
    "diversity/shared_substring": 20.0, "diversity/repetition": 0.05, "entropy": 0.8, "kl": 0.02, "grad_norm": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [40, 200, 1000])
def test_a_healthy_run_hears_nothing(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    watch = Watch()
    assert feed(watch, (healthy(step, steps, rng) for step in range(1, steps + 1))) == []
    assert not watch.collapsed


def test_a_healthy_sft_run_hears_nothing() -> None:
    rng = random.Random(0)
    losses = [5 * 0.97**i + abs(rng.gauss(0, 0.02)) for i in range(300)]
    lines = [{"loss": v, "nll": v, "entropy": v, "grad_norm": 1.0} for v in losses]  # learns its data by heart
    assert feed(Watch(), lines) == []


# name of the rule → (metrics that break it, first step after 20 good ones at which it must speak, a word it must say)
BROKEN: dict[str, tuple[dict[str, float], int, str]] = {
    "non-finite": ({"loss": math.nan}, 21, "loss stopped being a finite number"),
    "grad-spike": ({"grad_norm": 8.0}, 21, "8 times the largest of the 20 steps before"),
    "dead-groups": ({"reward/dead_groups": 0.9}, 25, "90% of the groups"),
    "truncated": ({"length/truncated": 0.4}, 25, "40% of the completions were cut"),
    "entropy-collapse": ({"entropy": 0.04}, 25, "from 0.8 to 0.04 nats"),
    "entropy-rise": ({"entropy": 2.5}, 25, "from 0.8 to 2.5 nats"),
    "kl": ({"kl": 1.5}, 23, "1.5 nats per token"),
    "clipped": ({"clip/low": 0.2, "clip/high": 0.2}, 25, "40% of the tokens were clipped"),
    "ratio": ({"ratio/max": 80.0}, 23, "reached 80"),
    "sampler": ({"sampler/kl": 0.05}, 23, "KL 0.05 nats"),
    "repetition": ({"diversity/repetition": 0.7}, 25, "70% of their n-grams"),
    "one-text": (
        {"diversity/shared_substring": 150.0, "diversity/distinct_2": 0.07},
        20 + COLLAPSE_WARN,
        "share 150 characters of about 200",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_cause_is_named_once_at_its_step(name: str) -> None:
    breaking, due, words = BROKEN[name]
    watch = Watch()
    quiet = [STEADY] * 20
    said = feed(watch, quiet + [{**STEADY, **breaking}] * 12)
    assert [advice.step for advice in said] == [due]
    assert words in said[0].saw


@pytest.mark.parametrize("name", BROKEN)
def test_a_shorter_break_is_no_cause(name: str) -> None:
    breaking, due, _ = BROKEN[name]
    bad = [{**STEADY, **breaking}] * (due - 21)
    assert feed(Watch(), [STEADY] * 20 + bad + [STEADY] * 20) == []


def test_a_cause_that_comes_back_after_clearing_is_named_again() -> None:
    bad, good = {"length/truncated": 0.5}, {"length/truncated": 0.0}
    assert [a.step for a in feed(Watch(), [bad] * 5 + [good] * CLEAR + [bad] * 5)] == [5, 10 + CLEAR]
    # One good step less is not cleared: the same cause goes on, so nothing is said twice.
    assert [a.step for a in feed(Watch(), [bad] * 5 + [good] * (CLEAR - 1) + [bad] * 5)] == [5]


def test_reward_falling_from_its_peak() -> None:
    up = [{"reward/mean": 0.3 + 0.02 * i, "reward/std": 0.3} for i in range(30)]
    down = [{"reward/mean": 0.9 - 0.02 * i, "reward/std": 0.3} for i in range(30)]
    said = feed(Watch(), up + down)
    assert len(said) == 1
    assert "peak of 0.8" in said[0].saw
    # The gain is about 0.4 (means of ten), so a fall of 0.12 would do; half of the spread, 0.15, is more.
    assert 40 < said[0].step < 60
    assert feed(Watch(), up + [{"reward/mean": 0.8, "reward/std": 0.3}] * 60) == []


@pytest.mark.parametrize(("factor", "word"), [(1.02, "grew"), (0.97, "shrank")])
def test_length_drift_with_flat_reward(factor: float, word: str) -> None:
    drifting = [{"reward/mean": 0.5, "reward/std": 0.3, "length/mean": 100 * factor**i} for i in range(60)]
    said = feed(Watch(), drifting)
    assert len(said) == 1
    assert word in said[0].saw
    rising = [{**line, "reward/mean": 0.5 + 0.02 * i} for i, line in enumerate(drifting)]
    assert feed(Watch(), rising) == []  # longer answers that earn more are no drift


def test_short_answers_that_share_text_are_no_collapse() -> None:
    """Everything says "So the answer is N": much shared text, few distinct bigrams from the start."""
    watch, other = Watch(), Watch()
    line = {**STEADY, "length/mean": 8.0, "diversity/shared_substring": 19.0, "diversity/distinct_2": 0.1}
    assert feed(watch, [line] * 100) == []
    longer = {**STEADY, "length/mean": 15.0, "diversity/shared_substring": 45.0, "diversity/distinct_2": 0.12}
    assert feed(other, [longer] * 100) == []
    assert not watch.collapsed and not other.collapsed


def test_collapse_needs_steps_in_a_row_and_goes_away() -> None:
    bad = {**STEADY, "diversity/shared_substring": 190.0, "diversity/distinct_2": 0.07}
    watch = Watch()
    feed(watch, [STEADY] * 20)
    for step in range(COLLAPSE_STOP - 1):
        watch.update(21 + step, bad)
        assert not watch.collapsed
    watch.update(30, bad)
    assert watch.collapsed
    watch.update(31, STEADY)
    assert not watch.collapsed


def test_a_collapse_within_the_first_steps_is_no_baseline_of_its_own() -> None:
    """A huge learning rate needs fewer steps than a baseline of ten."""
    mad = {**STEADY, "diversity/shared_substring": 190.0, "diversity/distinct_2": 0.07}
    watch = Watch()
    said = feed(watch, [STEADY] * 4 + [{**mad, "diversity/distinct_2": 0.3}] * 2 + [mad] * COLLAPSE_STOP)
    assert [a.step for a in said] == [6 + COLLAPSE_WARN]
    assert "at first 60.0%" in said[0].saw
    assert watch.collapsed
    # Nor is the first step of a run judged by itself.
    assert feed(Watch(), [STEADY] + [mad] * 2 + [STEADY] * 20) == []


def test_a_slide_towards_one_text_is_marked_before_it_is_a_collapse() -> None:
    """Half of the prompts get the text: no advice yet, but no checkpoint to go back to either."""
    half = {**STEADY, "diversity/shared_substring": 190.0, "diversity/distinct_2": 0.33}
    watch = Watch()
    assert feed(watch, [STEADY] * 20 + [half] * 3) == []
    assert watch.state_dict()["held"]["collapse"] == 3 and watch.state_dict()["held"]["one-text"] == 0
    watch.update(24, STEADY)  # one good step in the middle of it is not good enough
    assert watch.state_dict()["held"]["collapse"] == 2
    feed(watch, [{**half, "diversity/distinct_2": 0.4}] * 2, 25)  # two thirds of the start: no slide
    assert watch.state_dict()["held"]["collapse"] == 0


def test_a_mad_policy_has_a_good_step_now_and_then() -> None:
    bad = {**STEADY, "diversity/shared_substring": 190.0, "diversity/distinct_2": 0.07}
    watch = Watch()
    feed(watch, [STEADY] * 20 + [bad, bad, bad, STEADY] * 2 + [bad])  # seven with it, less two without
    assert not watch.collapsed
    watch.update(30, bad)
    assert watch.collapsed
    calm = Watch()
    feed(calm, [STEADY] * 20 + [bad, STEADY] * 40)
    assert not calm.collapsed


def test_collapse_measures_against_characters_when_they_are_logged() -> None:
    line = {**STEADY, "diversity/shared_substring": 60.0, "diversity/distinct_2": 0.07}
    without, with_chars = Watch(), Watch()
    feed(without, [STEADY] * 20 + [line] * 10)  # 60 of about 200 characters: no
    feed(with_chars, [STEADY] * 20 + [{**line, "length/chars": 80.0}] * 10)  # 60 of 80: yes
    assert (without.collapsed, with_chars.collapsed) == (False, True)


def test_loss_not_falling() -> None:
    said = feed(Watch(), [{"nll": 2.0}] * 100)
    assert [a.step for a in said] == [59]  # holds from step 10 on, for 50 steps
    assert feed(Watch(), [{"nll": 0.01}] * 100) == []


def test_kl_jump_is_seen_under_the_absolute_limit() -> None:
    said = feed(Watch(), [{"kl": 0.01}] * 20 + [{"kl": 0.4}] * 5)
    assert [a.step for a in said] == [23]


def test_non_finite_numbers_break_no_other_rule() -> None:
    line = {**STEADY, "kl": math.nan, "entropy": math.inf, "sampler/kl": 0.0, "sampler/max_diff": math.nan}
    said = feed(Watch(), [STEADY] * 20 + [line] * 10)
    assert [a.saw for a in said] == ["entropy, kl, sampler/max_diff stopped being a finite number."]


def test_a_resumed_watch_says_the_same() -> None:
    rng = random.Random(3)
    lines = [healthy(step, 40, rng) for step in range(1, 41)]
    lines += [
        {**STEADY, "kl": 1.4, "entropy": 0.01, "diversity/distinct_2": 0.05, "diversity/shared_substring": 150.0}
    ] * 20
    lines += [{**STEADY, "reward/mean": 0.1, "length/mean": 200.0}] * 40
    whole = Watch()
    expected = feed(whole, lines)
    assert len(expected) >= 4
    for cut in range(1, len(lines), 3):
        first, second = Watch(), Watch()
        said = feed(first, lines[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        said += feed(second, lines[cut:], cut + 1)
        assert said == expected
        assert second.state_dict() == whole.state_dict()


# --- fixed data: preferences, labels, reward models ---------------------------------------------------------------


def preferring(
    step: int, steps: int, rng: random.Random, *, raises: bool, beta: float = 0.1, pairs: int = 8
) -> dict[str, float]:
    """A DPO run that learns: 200-token answers, whose likelihood under the reference differs from batch to batch.

    The chosen side rises a little, or falls a little as in most runs.
    """
    done = step / steps
    chosen, rejected = (5.0 if raises else -5.0) * done, -30.0 * done  # log π/π₀ in nats
    noise = 1 / math.sqrt(pairs)
    length = 200 * (1 + 0.4 * noise * rng.gauss(0, 1))
    level = -1.0 + 0.3 * noise * rng.gauss(0, 1)
    margin = beta * (chosen - rejected) + 0.1 * rng.gauss(0, 1)
    accuracy = min(1.0, max(0.0, 1 / (1 + math.exp(-2 * margin)) + 0.3 * noise * rng.gauss(0, 1)))
    return {
        "loss": math.log(1 + math.exp(-margin)),
        "grad_norm": math.exp(rng.gauss(0, 0.3)),
        "nll": -level - chosen / length,
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/margin": margin,
        "rewards/accuracy": accuracy,
        "rewards/accuracy_longer": min(1.0, accuracy + 0.2 * rng.random()),
        "rewards/accuracy_shorter": max(0.0, accuracy - 0.2 * rng.random()),
        "logprobs/chosen": level * length + chosen,
        "logprobs/rejected": (level - 0.1 * noise * rng.gauss(0, 1)) * length + rejected,
        "length/chosen": length,
        "length/rejected": length,
    }


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("steps", [60, 400])
def test_healthy_preference_runs_hear_nothing(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    lines = [preferring(step, steps, rng, raises=seed % 2 == 0) for step in range(1, steps + 1)]
    assert feed(Watch(), lines) == []
    # KTO logs as much, and z: sums over whole completions, above 1 in health, and at its floor now and then.
    labels = [
        {**line, "kl": max(0.0, raw), "kl/raw": raw, "kto/balance": 1.2}
        for i, line in enumerate(lines)
        for raw in [0.05 * i + rng.gauss(0, 2)]
    ]
    assert feed(Watch(), labels) == []
    # A reward model's scores part to both sides of 0.
    heads = [
        {
            **{name: value for name, value in line.items() if not name.startswith(("logprobs", "nll"))},
            "rewards/chosen": line["rewards/margin"] / 2 + 0.5,
            "rewards/rejected": -line["rewards/margin"] / 2 + 0.5,
        }
        for line in lines
    ]
    assert feed(Watch(), heads) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("beta", "spoken"), [(0.1, 0), (0.5, 0), (2.0, 1)])
def test_beta_too_large_is_told_by_rewards_that_grow_without_the_log_probs(beta: float, spoken: int, seed: int) -> None:
    """h = log π/π₀ of chosen − rejected grows to 4/β, where the loss is content. β itself is nowhere in the metrics."""
    rng = random.Random(seed)
    lines = []
    for step in range(1, 121):
        apart = 4 / beta * step / 120
        level = -20 + rng.gauss(0, 0.2)  # short answers, one style
        lines.append({
            "rewards/chosen": beta * apart / 2, "rewards/rejected": -beta * apart / 2,
            "logprobs/chosen": level + apart / 2, "logprobs/rejected": level - apart / 2,
        })  # fmt: skip
    said = feed(Watch(), lines)
    assert len(said) == spoken
    if spoken:
        assert "the log-probs of chosen and rejected answers moved apart by" in said[0].saw
        assert said[0].change.startswith("lower `loss.beta`")


def test_rewards_without_a_reference_are_no_large_beta() -> None:
    """cpo's rewards are β·log π: they start where the log-probs are, and only their growth counts."""
    lines = [
        {
            "rewards/chosen": 0.1 * (-100 + 0.3 * i), "rewards/rejected": 0.1 * (-140 - 0.3 * i),
            "logprobs/chosen": -100 + 0.3 * i, "logprobs/rejected": -140 - 0.3 * i,
        }
        for i in range(100)
    ]  # fmt: skip
    assert feed(Watch(), lines) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_inside_the_noise_of_batches_is_none(seed: int) -> None:
    """Texts of another batch are a third likelier or less likely per token: no run of means is a fall."""
    rng = random.Random(seed)
    levels = [-1.0 + 0.2 * rng.gauss(0, 1) for _ in range(400)]
    lines = [
        {"logprobs/chosen": 100 * v, "logprobs/rejected": 100 * v, "length/chosen": 100.0, "length/rejected": 100.0}
        for v in levels
    ]
    assert feed(Watch(), lines) == []
    assert (
        len(
            feed(
                Watch(),
                [
                    {**line, **{k: v - 60 * min(1, i / 60) for k, v in line.items() if "logprobs" in k}}
                    for i, line in enumerate(lines)
                ],
            )
        )
        == 1
    )


def falling(chosen: float, rejected: float, steps: int = 40) -> list[dict[str, float]]:
    """100-token answers whose log-probs, 1 nat per token at first, lose so much per token and step."""
    return [
        {
            "logprobs/chosen": -100 - 100 * chosen * i, "logprobs/rejected": -100 - 100 * rejected * i,
            "length/chosen": 100.0, "length/rejected": 100.0,
        }
        for i in range(steps)
    ]  # fmt: skip


def test_chosen_and_rejected_both_fall() -> None:
    # Ten-step means: chosen -1.09 at first, 0.02 less with each step, so more than a tenth less from step 16 on.
    said = feed(Watch(), falling(0.02, 0.04))
    assert [a.step for a in said] == [20]
    assert "chosen -1.09 to -1.29, rejected -1.18 to -1.58" in said[0].saw
    assert "`loss.sft_weight`" in said[0].change and "apo-zero" in said[0].change
    assert feed(Watch(), falling(-0.01, 0.02)) == []
    assert feed(Watch(), falling(0.001, 0.02)) == []  # a little of it is usual
    for rewards in ((0.1, -1.0), (-0.5, -1.0)):  # beside a reference: only less likely than under it
        sides = dict(zip(("rewards/chosen", "rewards/rejected"), rewards, strict=True))
        assert len(feed(Watch(), [{**line, **sides} for line in falling(0.01, 0.02)])) == (rewards[0] < 0)
    kto = feed(Watch(), [{**line, "kl": 0.1, "kl/raw": 0.1} for line in falling(0.01, 0.02)])
    assert "`loss.desirable_weight`" in kto[0].change and "sft_weight" not in kto[0].change


def test_longer_answers_are_no_fall() -> None:
    """Twice the length has half the log-prob, and nothing was unlearned."""
    lines = [
        {f"{kind}/{side}": sign * 100.0 * (1 + i / 20) for side in ("chosen", "rejected")
         for kind, sign in (("logprobs", -1), ("length", 1))}
        for i in range(60)
    ]  # fmt: skip
    assert feed(Watch(), lines) == []


def test_beta_too_small_lets_the_policy_go_far() -> None:
    said = feed(Watch(), falling(0.05, -0.01, steps=60))  # the chosen side alone, 3 nats per token in the end
    assert len(said) == 1
    assert "The chosen answers lost" in said[0].saw and "`loss.beta`" in said[0].change
    # the means of ten steps are a nat per token apart 20 steps after the first ten, and for ten steps
    assert said[0].step == 10 + 20 + 9


def test_loss_above_its_start() -> None:
    rising = [{"loss": 0.7 + 0.02 * i, "rewards/chosen": 0.0, "logprobs/chosen": -1.0} for i in range(60)]
    (said,) = feed(Watch(), rising)
    # ten-step means: 0.79 at first, and 1.5 times that 20 steps on
    assert said.step == 10 + 20 + 9
    assert "0.79 in the first 10 steps" in said.saw and "`loss.beta`" in said.change
    (head,) = feed(Watch(), [{"loss": line["loss"], "rewards/chosen": 0.0} for line in rising])
    assert "beta" not in head.change
    assert feed(Watch(), [{"loss": line["loss"]} for line in rising]) == []  # a policy gradient's loss says nothing


def test_pairs_in_chance_order() -> None:
    line = {"rewards/accuracy": 0.5, "rewards/margin": 0.003, "logprobs/chosen": -10.0}
    (said,) = feed(Watch(), [line] * 200)
    assert said.step == WINDOW - 1 + FLAT
    assert "50% of them are right and the mean margin is 0.003" in said.saw
    assert "`loss.beta`" in said.change
    assert feed(Watch(), [line] * (WINDOW + FLAT - 2)) == []
    learning = [{**line, "rewards/accuracy": 0.5 + 0.1 * min(1, i / 100)} for i in range(400)]  # 60 % is little
    assert feed(Watch(), learning) == []
    (head,) = feed(Watch(), [{"rewards/accuracy": 0.5}] * 200)
    assert "beta" not in head.change


def test_saturated_accuracy() -> None:
    start = [{"rewards/accuracy": 0.6, "loss": 0.69}] * 10
    done = [{"rewards/accuracy": 1.0, "loss": 0.01}] * 100
    (said,) = feed(Watch(), start + done)
    # loss: the mean of ten steps is under a tenth of 0.69 once none of the first ten is left in it
    assert said.step == 10 + 10 + SATURATED - 1
    assert "100.0% are in order and the loss is 0.01 (at first 0.69)" in said.saw
    assert feed(Watch(), start + [{"rewards/accuracy": 0.97, "loss": 0.01}] * 100) == []
    # conservative DPO keeps a loss: it asks for a margin, not for ever more of it
    assert feed(Watch(), start + [{"rewards/accuracy": 1.0, "loss": 0.33}] * 100) == []


def test_margin_that_follows_length_alone() -> None:
    """80 % of the pairs have a longer better answer: who always prefers the longer one is right in 80 %."""
    line = {"rewards/accuracy": 0.8, "rewards/accuracy_longer": 1.0, "rewards/accuracy_shorter": 0.0}
    (said,) = feed(Watch(), [{**line, "logprobs/chosen": -10.0}] * 40)
    assert said.step == WINDOW - 1 + 20
    assert "100% of the pairs" in said.saw and "0% where it is the shorter" in said.saw
    assert "that is 50%, not 80%" in said.saw and "simpo" in said.change
    (head,) = feed(Watch(), [line] * 40)
    assert "simpo" not in head.change and "balance `data`" in head.change
    # the other way round is the same; some length in the order is not all of it
    swapped = {**line, "rewards/accuracy_longer": 0.0, "rewards/accuracy_shorter": 1.0}
    assert len(feed(Watch(), [swapped] * 40)) == 1
    partly = {"rewards/accuracy": 0.8, "rewards/accuracy_longer": 0.85, "rewards/accuracy_shorter": 0.6}
    assert feed(Watch(), [partly] * 100) == []
    # steps without a pair of the second kind leave it out, and are no reason to be silent
    sparse = [{k: v for k, v in line.items() if i % 2 or "shorter" not in k} for i in range(60)]
    assert len(feed(Watch(), sparse)) == 1


@pytest.mark.parametrize(("ratio", "spoken"), [(0.5, 1), (0.98, 1), (1.0, 0), (1.334, 0), (1.5, 1), (9.0, 1)])
def test_kto_balance(ratio: float, spoken: int) -> None:
    said = feed(Watch(), [{"kto/balance": ratio}] * 30)
    assert [a.step for a in said] == [1] * spoken
    assert all("`loss.desirable_weight` to auto" in a.change for a in said)


def test_kto_reference_point_at_its_floor() -> None:
    line = {"kl": 0.0, "kl/raw": -30.0, "rewards/chosen": -0.4}
    (said,) = feed(Watch(), [line] * 60)
    assert said.step == WINDOW - 1 + 30
    assert "lost 30 nats" in said.saw and "mean reward -0.4" in said.saw
    assert feed(Watch(), [{**line, "rewards/chosen": 0.4}] * 60) == []  # the good ones rise: all is well
    assert feed(Watch(), [{**line, "kl/raw": -2.0}] * 60) == []
    assert feed(Watch(), [line] * 20 + [{**line, "kl": 1.0, "kl/raw": 1.0}] * 5 + [line] * 20) == []


def test_scores_of_a_reward_model_drift() -> None:
    line = {"rewards/chosen": 9.0, "rewards/rejected": 6.0}
    (said,) = feed(Watch(), [line] * 60)
    assert said.step == WINDOW - 1 + 20
    assert "mean 9 for chosen and 6 for rejected" in said.saw and "`loss.center`" in said.change
    assert len(feed(Watch(), [{"rewards/chosen": -5.0, "rewards/rejected": -8.0}] * 60)) == 1
    assert feed(Watch(), [{"rewards/chosen": 6.0, "rewards/rejected": -6.0}] * 60) == []
    assert feed(Watch(), [{"rewards/chosen": 9.0, "rewards/rejected": 1.0}] * 60) == []
    # cpo's rewards are β·log π, below 0 by nature
    assert feed(Watch(), [{"rewards/chosen": -9.0, "rewards/rejected": -12.0, "logprobs/chosen": -90.0}] * 60) == []


def test_every_metric_that_a_rule_needs_is_watched() -> None:
    """One that is not would be missing from the windows without a word; the balance of the data has no history."""
    assert {name for rule in RULES for name in rule.needs} - set(WATCHED) == {"kto/balance"}


def test_every_change_names_real_settings() -> None:
    """Each `section.field` in a rule's advice is a field of the recipe, so that it can be typed as it stands."""
    said = [
        a for breaking, _, _ in BROKEN.values() for a in feed(Watch(), [STEADY] * 20 + [{**STEADY, **breaking}] * 9)
    ]
    said += feed(Watch(), [{"nll": 2.0}] * 100)
    said += feed(Watch(), falling(0.01, 0.02))
    said += feed(Watch(), falling(0.05, -0.01, steps=60))
    said += feed(Watch(), [{"loss": 0.7 + 0.02 * i, "rewards/chosen": 0.0, "logprobs/chosen": -1.0} for i in range(60)])
    said += feed(Watch(), [{"rewards/accuracy": 0.5, "logprobs/chosen": -1.0}] * 200)
    said += feed(Watch(), [{"rewards/accuracy": 1.0, "loss": max(0.01, 0.7 - 0.05 * i)} for i in range(99)])
    sides = {"rewards/accuracy_longer": 1.0, "rewards/accuracy_shorter": 0.0, "logprobs/chosen": -1.0}
    said += feed(Watch(), [{"rewards/accuracy": 0.8, **sides}] * 40)
    said += feed(Watch(), [{"kto/balance": 3.0, "kl": 0.0, "kl/raw": -30.0, "rewards/chosen": -0.4}] * 60)
    said += feed(Watch(), [{"rewards/chosen": 9.0, "rewards/rejected": 6.0}] * 60)
    apart = [(0.1 * i, -0.1 * i) for i in range(40)]
    said += feed(
        Watch(),
        [
            {f"{k}/{s}": v for k in ("rewards", "logprobs") for s, v in zip(("chosen", "rejected"), p, strict=True)}
            for p in apart
        ],
    )
    said += feed(Watch(), [{"reward/mean": 1 - 0.02 * i} for i in range(60)])
    for factor in (1.03, 0.97):
        said += feed(Watch(), [{"reward/mean": 0.5, "length/mean": 100 * factor**i} for i in range(60)])
    speaking = [rule for rule in (*GENERAL, *FIXED) if not rule.silent]
    assert len(said) == len(speaking) + 1  # length drift speaks both ways
    assert_real_settings(said)


def assert_real_settings(said: Iterable[Advice]) -> None:
    for advice in said:
        names = re.findall(r"`([a-z_.]+)`", advice.change)
        assert names
        for name in names:
            model: object = Recipe
            for part in name.split("."):
                assert isinstance(model, type) and issubclass(model, BaseModel), name
                assert part in model.model_fields, name
                model = model.model_fields[part].annotation
