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
from preftune.train.advice import CLEAR, COLLAPSE_STOP, COLLAPSE_WARN, RULES, Advice, Watch


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
    "collapse": (
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


def test_chosen_and_rejected_both_fall() -> None:
    both = [{"logprobs/chosen": -100.0 - i, "logprobs/rejected": -120.0 - 2 * i} for i in range(40)]
    said = feed(Watch(), both)
    assert len(said) == 1
    assert "chosen -104 to" in said[0].saw
    margin = [{"logprobs/chosen": -100.0 + 0.1 * i, "logprobs/rejected": -120.0 - 2 * i} for i in range(40)]
    assert feed(Watch(), margin) == []


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


def test_every_change_names_real_settings() -> None:
    """Each `section.field` in a rule's advice is a field of the recipe, so that it can be typed as it stands."""
    said = [
        a for breaking, _, _ in BROKEN.values() for a in feed(Watch(), [STEADY] * 20 + [{**STEADY, **breaking}] * 9)
    ]
    said += feed(Watch(), [{"nll": 2.0}] * 100)
    said += feed(Watch(), [{"logprobs/chosen": -1.0 - i, "logprobs/rejected": -1.0 - i} for i in range(40)])
    said += feed(Watch(), [{"reward/mean": 1 - 0.02 * i} for i in range(60)])
    for factor in (1.03, 0.97):
        said += feed(Watch(), [{"reward/mean": 0.5, "length/mean": 100 * factor**i} for i in range(60)])
    assert len(said) == len(RULES) + 1  # length drift speaks both ways
    for advice in said:
        names = re.findall(r"`([a-z_.]+)`", advice.change)
        assert names
        for name in names:
            model: object = Recipe
            for part in name.split("."):
                assert isinstance(model, type) and issubclass(model, BaseModel), name
                assert part in model.model_fields, name
                model = model.model_fields[part].annotation
