"""Rewards that go wrong in every way, loaded by path as a user's file would be. Each looks for a word in the text."""

import os
import signal
import sys
import time


def good(completions, **kwargs):
    return [float(len(text)) for text in completions]


def raises(completions, **kwargs):
    for text in completions:
        if "bomb" in text:
            raise ValueError(f"can't read {text!r}")
    return [1.0] * len(completions)


def hangs(completions, **kwargs):
    if any("bomb" in text for text in completions):
        time.sleep(60)
    return [1.0] * len(completions)


def crashes(completions, **kwargs):
    if any("bomb" in text for text in completions):
        os._exit(3)
    return [1.0] * len(completions)


def is_killed(completions, **kwargs):
    if any("bomb" in text for text in completions):
        os.kill(os.getpid(), signal.SIGSEGV)
    return [1.0] * len(completions)


def exits(completions, **kwargs):
    if any("bomb" in text for text in completions):
        sys.exit(4)
    return [1.0] * len(completions)


def nan(completions, **kwargs):
    return [float("nan") if "bomb" in text else 1.0 for text in completions]


def infinite(completions, **kwargs):
    return [float("inf") if "bomb" in text else 1.0 for text in completions]


def huge_integer(completions, **kwargs):
    return [10**400 if "bomb" in text else 1.0 for text in completions]


def word(completions, **kwargs):
    return ["good" if "bomb" in text else 1.0 for text in completions]


def drops_rows(completions, **kwargs):
    return [1.0 for text in completions if "bomb" not in text]


def one_too_many(completions, **kwargs):
    return [1.0] * len(completions) + [1.0]


def scalar(completions, **kwargs):
    return 1.0


def nothing(completions, **kwargs):
    print("printing must not disturb the frames")


def batch_of_one_only(completions, **kwargs):
    if len(completions) > 1:
        raise RuntimeError("one at a time, please")
    return [2.0]


def wants_color(completions, color):
    return [1.0 if text == c else 0.0 for text, c in zip(completions, color, strict=True)]


def scaled(completions, factor=1.0, answer=None):
    return [factor * len(text) for text in completions]


def process_id(completions, log_metric):
    log_metric("pid", os.getpid())
    return [0.0] * len(completions)


def torch_is_loaded(completions):
    return [float("torch" in sys.modules or "pydantic" in sys.modules)] * len(completions)


def unpicklable_extra(completions, log_extra):
    log_extra("thing", [lambda: 0 for _ in completions])
    return [0.0] * len(completions)


def trl_style(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
    """Unchanged from a TRL script: every argument that TRL 1.16 offers."""
    got = [text.split()[-1] for text in completions]
    log_extra("got", got)
    log_extra("ids", [len(ids) for ids in completion_ids])
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return [None if a is None else float(g == a) for g, a in zip(got, answer, strict=True)]


async def async_style(prompts, completions, **kwargs):
    import asyncio

    await asyncio.sleep(0)
    return [float(len(prompt)) for prompt in prompts]


def conversation(prompts, completions, **kwargs):
    assert prompts[0] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    return [float(len(completion[0]["content"])) for completion in completions]


def first_to_log(completions, log_extra, log_metric, first_delay=0.0):
    time.sleep(first_delay)
    log_extra("who", ["first"] * len(completions))
    log_metric("shared", 1.0)
    return [0.1] * len(completions)


def second_to_log(completions, log_extra, log_metric, second_delay=0.0):
    time.sleep(second_delay)
    log_extra("who", ["second"] * len(completions))
    log_metric("shared", 3.0)
    return [0.2] * len(completions)
