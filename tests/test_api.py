"""preftune from Python: own rewards, TRL's rewards, rows as data, resuming."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import preftune
from preftune import api
from preftune.errors import DataError, UsageError
from tests import tiny

torch.set_num_threads(1)

QUICK = {"sampling": {"group_size": 4, "max_tokens": 5}, "log": {"sinks": []}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save(tmp_path_factory.mktemp("api") / "model"))


def shorter(prompts, completions, **columns):
    return [-float(len(c)) for c in completions]


def test_the_example_of_the_docstring(model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert api.__doc__ is not None
    code = api.__doc__.partition("\n\n")[2]
    code = code.replace("my-model", model).replace('train={"steps": 10}', 'train={"steps": 2}, **quick')
    exec(code, names := {"quick": QUICK, "__name__": "example"})
    assert names["result"].steps == 2
    assert names["result"].report == Path("runs/grpo/report.html")
    assert (tmp_path / "runs/grpo/report.html").stat().st_size > 1000


def test_rows_and_an_own_reward_with_columns(model: str, tmp_path: Path) -> None:
    seen: list[dict[str, list[object]]] = []

    def right(prompts, completions, answer, **columns):
        seen.append({"prompts": prompts, "answer": answer})
        return [float(c.startswith(a)) for c, a in zip(completions, answer, strict=True)]

    result = api.train(
        "grpo", model=model, data=tiny.sums(12), eval_data=tiny.sums(3), rewards=[right, "exact"],
        output=tmp_path / "run", train={"steps": 2, "batch_size": 3}, **QUICK,
    )  # fmt: skip
    # three held-out rows before, 2 steps of 3 prompts x 4 completions, three rows after
    assert [len(call["prompts"]) for call in seen] == [3, 12, 12, 3]
    assert seen[0] == {"prompts": ["0+0=", "1+0=", "2+0="], "answer": ["0", "1", "2"]}
    assert set(result.before["test"]) >= {"reward/mean", "reward/right", "reward/exact"}
    kept = tiny.lines(tmp_path / "run-data.jsonl")
    assert kept == tiny.sums(12)
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert str(tmp_path / "run-data.jsonl") in recipe


def test_a_reward_written_for_trl_works_unchanged(model: str, tmp_path: Path) -> None:
    states: list[tuple[int, int]] = []

    def trl_reward(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
        states.append((trainer_state.global_step, trainer_state.max_steps))
        log_extra("first", [c[:1] for c in completions])
        log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
        return [None if not c else float(len(set(c))) for c in completions]

    def constant(completions, **kwargs):
        return [0.5] * len(completions)

    result = api.train(
        "grpo", model=model, data=tiny.sums(8), rewards=[trl_reward, constant], output=tmp_path / "run",
        train={"steps": 3, "batch_size": 2}, **QUICK,
    )  # fmt: skip
    assert result.steps == 3
    assert states == [(0, 3), (1, 3), (2, 3)]
    lines = tiny.lines(tmp_path / "run" / "metrics.jsonl")
    assert all(line["metrics"]["logged/tokens"] == pytest.approx(line["metrics"]["length/mean"]) for line in lines)
    assert all(line["metrics"]["reward/constant"] == 0.5 for line in lines)


def test_sft_needs_no_reward_and_takes_files_and_sources(model: str, tmp_path: Path) -> None:
    tiny.write(tmp_path / "rows.jsonl", [{"q": r["prompt"], "a": r["completion"]} for r in tiny.sums(9)])
    source = {"path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "q", "completion": "a"}}
    result = api.train("sft", model={"path": model, "lora": {"r": 2, "alpha": 4}}, data=source, name="mine",
                       output=tmp_path / "run", train={"steps": 1}, log={"sinks": []})  # fmt: skip
    assert result.steps == 1
    assert (tmp_path / "run/final/adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "run/summary.json").read_text())["name"] == "mine"


def test_resuming_with_rows(model: str, tmp_path: Path) -> None:
    def go(rows, *, resume: bool, poison: int = 99):
        calls = 0

        def reward(completions, **columns):
            nonlocal calls
            calls += 1
            if calls > poison:
                raise ConnectionError("the judge is away")
            return [float(len(c)) for c in completions]

        return api.train("grpo", model=model, data=rows, rewards=[reward], output=tmp_path / "run", resume=resume,
                         train={"steps": 4, "batch_size": 2}, **QUICK)  # fmt: skip

    with pytest.raises(preftune.PreftuneError, match="the judge is away"):
        go(tiny.sums(8), resume=False, poison=2)
    assert (tmp_path / "run/checkpoints/step-2").is_dir()
    with pytest.raises(UsageError, match=r"the run folder .* exists already"):
        go(tiny.sums(8), resume=False)
    with pytest.raises(UsageError, match="the data rows differ from those it began with"):
        go(tiny.sums(9), resume=True)
    assert go(tiny.sums(8), resume=True).steps == 4


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rewards": []}, UsageError, "grpo needs at least one reward"),
        ({"data": [{"prompt": "a", "extra": object()}]}, DataError, "row 1 of the data rows can't be written as JSON"),
        ({"data": [{"prompt": "a"}, {"prompt": float("nan")}]}, DataError, "row 2 of the data rows"),
        ({"train": {"lerning_rate": 1.0}}, UsageError, "learning_rate"),
        ({"eval_data": [{"prompt": "a"}], "eval": {"test": [{"path": "x"}]}}, UsageError, "either eval_data or eval"),
        ({"nonsense": 1}, UsageError, "nonsense"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(given, error, message: str, tmp_path: Path) -> None:
    settings = {"model": "none/such", "data": [{"prompt": "a"}], "rewards": [shorter], "output": tmp_path / "run"}
    with pytest.raises(error, match=re.escape(message)):
        api.train("grpo", **settings | given)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
