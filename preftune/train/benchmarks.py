"""A recipe's benchmarks: opened with the run, measured before and after training like a split of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from preftune.config import BenchmarkConfig, Recipe
from preftune.methods import Method
from preftune.models import Policy
from preftune.records import Group
from preftune.tasks.benchmark import Benchmark, Followed, Outcome, values_of
from preftune.tasks.rows import InstructionRow, TaskRow, TaskRows, read_task
from preftune.tokens import TokenContract
from preftune.train.evaluation import Measurement

if TYPE_CHECKING:
    from preftune.train.session import Session

Read: TypeAlias = list[tuple[BenchmarkConfig, TaskRows]]


def read_benchmarks(recipe: Recipe, method: Method, base_dir: Path | None) -> Read:
    """The rows of every benchmark; none for a reward model, which answers nothing. Raises DataError."""
    if method.reads == "scores":
        return []
    return [(config, read_task(config, base_dir)) for config in recipe.eval.benchmarks]


def open_benchmarks(read: Read, recipe: Recipe, contract: TokenContract, policy: Policy) -> dict[str, Benchmark]:
    """The benchmarks by name, as this policy reads them. Raises DataError for a row that does not fit it."""
    return {
        config.title: Benchmark.open(
            config, rows, contract, has_template=bool(policy.tokenizer.chat_template),
            context_length=policy.context_length, longest=recipe.eval.max_tokens or recipe.sampling.max_tokens,
        )
        for config, rows in read
    }  # fmt: skip


def facts_of(benchmarks: Sequence[Benchmark]) -> dict[str, dict[str, Any]]:
    """What the manifest says of them; a resumed run must find the same content."""
    return {
        one.title: {
            "content_hash": one.content_hash,
            "origins": [f"{one.config.path}: {len(one.rows)} rows of {one.config.task}"],
        }
        for one in benchmarks
    }


def measure_benchmark(session: Session, name: str, step: int) -> Measurement:
    """Measure the policy as it is now on one benchmark."""
    benchmark, recipe = session.benchmarks[name], session.recipe
    session.progress.begin(f"measuring {name} at step {step}")
    outcomes: list[Outcome] = []
    samples: list[Group] = []
    if benchmark.config.draws:
        answered = benchmark.answered(
            session.sampler, recipe.sampling, seed=recipe.seed, temperature=recipe.eval.temperature,
            tell=session.progress.tick, version=step,
        )  # fmt: skip
        outcomes = [judged for judged, _ in answered]
        for row, prompt, (judged, completion) in zip(benchmark.rows, benchmark.prompts, answered, strict=True):
            score, notes = _said(row, judged)
            told = replace(completion, score=score, breakdown={}, notes=notes)
            samples.append(Group(prompt, (told,)))
    else:
        session.policy.train_mode(False)
        outcomes = [*benchmark.compared(session.engine, session.budget, tell=session.progress.tick)]
    return Measurement(step, name, values_of(benchmark.rows, outcomes), tuple(samples))


def _said(row: TaskRow, judged: Outcome) -> tuple[float, dict[str, Any]]:
    """What samples.jsonl says of an answer: the share followed, and which constraints it missed."""
    if isinstance(row, InstructionRow) and isinstance(judged, Followed):
        missed = [str(one) for one, kept in zip(row.constraints, judged.strict, strict=True) if not kept]
        share = sum(judged.strict) / len(judged.strict)
        return share, {"constraints missed": "\n".join(missed)} if missed else {}
    assert not isinstance(judged, Followed)
    return judged.right, {}
