"""Asking one model what is missing: in this process, or behind an endpoint."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from preftune.config import BenchmarkConfig, SamplingConfig, TokensConfig
from preftune.curation.generate.config import DrawConfig, TierConfig
from preftune.curation.generate.prompts import Asked
from preftune.curation.generate.remote import Outcome as Reply
from preftune.curation.generate.remote import RemoteTier
from preftune.errors import SamplingError
from preftune.evaluate.config import EvaluateConfig, EvaluatedModel
from preftune.tasks.benchmark import Benchmark, Outcome, judge_answer, request
from preftune.tasks.rows import TaskRow, TaskRows

CHUNK = 32
"""Rows that are drawn together: 0 to 31, 32 to 63, … A chunk of which some are missing is drawn anew as a whole, so
that answers that are not greedy do not depend on where a command was stopped."""

Keep: TypeAlias = Callable[[str, Sequence[tuple[int, Outcome]]], None]
Fail: TypeAlias = Callable[[str, int, str], None]


@dataclass(frozen=True, slots=True)
class Todo:
    """What one model is still to be asked on one task."""

    config: BenchmarkConfig
    rows: TaskRows
    missing: list[int]


def procedure(model: EvaluatedModel, config: BenchmarkConfig) -> BenchmarkConfig:
    """How a model is asked: endpoints give no log-probs of given texts, so they are asked for the letter."""
    if model.endpoint is None or config.task != "choices" or config.by == "letter":
        return config
    return config.model_copy(update={"by": "letter", "normalize": "tokens"})


def ask_local(
    model: EvaluatedModel,
    config: EvaluateConfig,
    todo: Sequence[Todo],
    keep: Keep,
    tell: Callable[[str, int, int], None],
) -> None:
    """Load a model, ask it what is missing of each task, and give its memory back.

    Raises:
        ModelError: it can't be loaded. DataError: a row does not fit it.
    """
    import torch

    from preftune.sampling.answering import load_for_answers
    from preftune.sampling.local import LocalSampler
    from preftune.talk.place import find
    from preftune.tokens import TokenContract

    place = find(str(model.path))
    engine = load_for_answers(place.path, model)
    policy = engine.policy
    tokens = TokensConfig(chat_template=model.chat_template, chat_template_kwargs=model.chat_template_kwargs)
    contract = TokenContract(policy.tokenizer, tokens, policy.generation_eos)
    sampler = LocalSampler(engine, contract)
    for one in todo:
        benchmark = Benchmark.open(
            one.config, one.rows, contract, has_template=bool(policy.tokenizer.chat_template or model.chat_template),
            context_length=policy.context_length, longest=config.max_tokens,
        )  # fmt: skip
        total = len(one.rows.rows)
        done = total - len(one.missing)
        wanted = set(one.missing)
        tell(one.config.title, done, total)
        for chunk, places in groupby(range(total), key=lambda n: n // CHUNK):
            rows = list(places)
            if wanted.isdisjoint(rows):
                continue
            outcomes: list[Outcome]
            if one.config.draws:
                answered = benchmark.answered(
                    sampler, SamplingConfig(rows=model.rows), seed=config.seed * 1_000_003 + chunk,
                    temperature=config.temperature, rows=rows,
                )  # fmt: skip
                outcomes = [judged for judged, _ in answered]
            else:
                outcomes = [*benchmark.compared(engine, config.max_tokens_per_batch, rows=rows)]
            new = [(n, outcome) for n, outcome in zip(rows, outcomes, strict=True) if n in wanted]
            keep(one.config.title, new)
            done += len(new)
            tell(one.config.title, done, total)
    del policy, engine, sampler, contract
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ask_remote(
    model: EvaluatedModel, config: EvaluateConfig, todo: Sequence[Todo], keep: Keep, fail: Fail,
    tell: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    """Ask an endpoint, several rows at a time. A request that fails is written down, and the next one is sent.

    Raises:
        SamplingError: no usable key, or `stop_after` failures in a row that are not the rows' own.
    """
    assert model.endpoint is not None
    for one in todo:
        draw = DrawConfig(temperature=config.temperature, max_tokens=one.config.max_tokens or config.max_tokens)
        tier = TierConfig(name=model.title, rank=1, endpoint=model.endpoint, sampling=draw, form="chat")
        remote = RemoteTier(tier, seed=config.seed)
        rows, total = one.rows.rows, len(one.rows.rows)
        done, failed = total - len(one.missing), 0
        tell(one.config.title, done, total)

        def take(
            asked: Asked, reply: Reply, one: Todo = one, rows: Sequence[TaskRow] = rows, total: int = total
        ) -> None:
            nonlocal done, failed
            title = one.config.title
            if not reply.answers:
                fail(title, asked.index, reply.problem)
                failed = failed if reply.refused else failed + 1
                if failed >= config.stop_after:
                    raise SamplingError(
                        f"{failed} requests in a row failed, the last: {reply.problem}. The answers so far are kept; "
                        "go on with --resume"
                    )
                return
            failed = 0
            answer = reply.answers[0]
            counted = answer.usage[1] if answer.usage is not None else None
            keep(title, [(asked.index, judge_answer(rows[asked.index], answer.text, answer.finish, counted))])
            done += 1
            tell(title, done, total)

        try:
            remote.ask_all(((_asked(n, rows[n], one.config), [0]) for n in one.missing), take)
        finally:
            remote.close()


def _asked(number: int, row: TaskRow, config: BenchmarkConfig) -> Asked:
    return Asked(number, row.where, request(row, config, chat=True), {}, {}, "", number)
