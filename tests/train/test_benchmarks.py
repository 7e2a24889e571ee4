"""A recipe's benchmarks: measured before and after training and nowhere else, resumed bit for bit, told in reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError, UsageError
from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from preftune.report.read import read_run
from preftune.report.verdicts import compare, headline
from tests.tiny import lines, same_run, save, sums, write

RULES = [
    {"prompt": "say a", "constraints": [{"kind": "characters", "at_most": 200}, {"kind": "words", "at_least": 900}]},
    {"prompt": "say b", "constraints": [{"kind": "characters", "at_most": 200}]},
    {"prompt": "say c", "constraints": [{"kind": "words", "at_least": 900}]},
]
CHOICES = [{"prompt": f"{a}+1=", "choices": [str(a + 1), "x", "zz"], "answer": 0} for a in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def recipe(folder: Path, base: Path, output: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "method": "sft", "model": {"path": str(base)}, "output": str(output),
        "data": {"path": str(write(folder / "sums.jsonl", sums(24)))},
        "train": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 3},
        "log": {"sinks": []},
        "eval": {
            "holdout": 4, "every": 2, "max_tokens": 8,
            "benchmarks": [
                {"task": "instructions", "name": "rules", "path": str(write(folder / "rules.jsonl", RULES))},
                {"task": "choices", "path": str(write(folder / "choices.jsonl", CHOICES))},
            ],
        },
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_pipeline(resolve(recipe(folder, base, folder / "run")))
    return folder / "run"


def test_they_are_measured_before_and_after_and_nowhere_else(finished: Path) -> None:
    steps: dict[str, list[int]] = {}
    for line in lines(finished / "metrics.jsonl"):
        if line["kind"] == "eval":
            steps.setdefault(line["split"], []).append(line["step"])
    assert steps == {"validation": [0, 2, 4, 6], "rules": [0, 6], "choices": [0, 6]}


def test_their_numbers_are_those_of_their_definition(finished: Path) -> None:
    first = next(line for line in lines(finished / "metrics.jsonl") if line.get("split") == "rules")["metrics"]
    # Of four constraints two (under 200 characters) are followed by any answer of eight characters that is not blank.
    assert first["followed/prompts"]["value"] == pytest.approx(1 / 3)
    assert first["followed/instructions"]["value"] == pytest.approx(2 / 4)
    assert first["length/mean"]["value"] <= 8 and first["followed/prompts"]["n"] == 3
    assert first["followed/instructions"]["low"] >= 0 and first["followed/instructions"]["high"] <= 1
    samples = [line for line in lines(finished / "samples.jsonl") if line["split"] == "rules"]
    assert [line["step"] for line in samples] == [0, 0, 0, 6, 6, 6]
    assert [line["score"] for line in samples[:3]] == [0.5, 1.0, 0.0]
    assert samples[0]["notes"] == {"constraints missed": "words: at_least 900"}


def test_the_choices_are_those_of_plain_log_probs(finished: Path, base: Path) -> None:
    """Against logits of transformers itself, without packing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    right = []
    for row in CHOICES:
        values = []
        for choice in row["choices"]:
            head, tail = tokenizer(row["prompt"]).input_ids, tokenizer(f" {choice}").input_ids
            with torch.no_grad():
                logits = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            picked = [float(logits[len(head) + n - 1, token]) for n, token in enumerate(tail)]
            values.append(sum(picked) / len(picked))
        right.append(float(max(range(3), key=lambda n: values[n]) == row["answer"]))
    import json

    rows = json.loads((finished / "measurements" / "choices-0.json").read_text())["rows"]
    assert rows["choices/accuracy"] == right
    assert all(math.isfinite(value) for value in rows["choices/margin"])


def test_the_report_tells_them_and_speaks_of_held_out_rows_first(finished: Path) -> None:
    run = read_run(finished)
    rows = compare(run)
    told = {(row.split, row.metric): row for row in rows}
    assert told["rules", "followed/prompts"].title == "Prompts followed in full"
    assert told["choices", "choices/accuracy"].percent and rows[0].split == "validation"
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Prompts followed in full" in page and "Right choices" in page


def test_a_run_with_nothing_else_speaks_of_them(base: Path, tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data", base, tmp_path / "run", train={"steps": 1, "batch_size": 4})
    raw["eval"] = {"max_tokens": 8, "benchmarks": raw["eval"]["benchmarks"][1:]}
    run_pipeline(resolve(raw))
    run = read_run(tmp_path / "run")
    sentence = headline(run, compare(run))[1]
    assert sentence.startswith("Right choices on 6\u00a0rows of choices")


def test_a_resumed_run_is_the_unbroken_one(base: Path, finished: Path, tmp_path: Path) -> None:
    raw = recipe(finished.parent, base, tmp_path / "run")
    pipeline = resolve(raw)
    from preftune.train import loop

    before = loop._Loop._save

    def stopping(self: Any) -> None:
        before(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_save", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(pipeline)
    run_pipeline(pipeline, resume=True)
    assert same_run(finished, tmp_path / "run") == []


def test_a_resumed_run_finds_the_same_rows(base: Path, tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data", base, tmp_path / "run")
    pipeline = resolve(raw)
    from preftune.train import loop

    def stopping(self: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_finish", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(pipeline)
    write(tmp_path / "data" / "choices.jsonl", CHOICES[1:])
    with pytest.raises(Exception, match="the choices data changed since the run began"):
        run_pipeline(pipeline, resume=True)


def test_a_reward_model_is_asked_nothing(base: Path, tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data", base, tmp_path / "run")
    raw["method"] = "reward"
    with pytest.raises(UsageError, match=r"eval\.benchmarks: a reward model writes no answers"):
        resolve(raw)
    # inherited from the recipe's top level it is meant for the other stages
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(8)]
    top = {key: value for key, value in raw.items() if key not in ("method", "data", "output")}
    top["eval"] = {"benchmarks": top["eval"]["benchmarks"], "max_tokens": 8}
    top["train"] = {"steps": 1, "batch_size": 4}
    data = {"path": str(write(tmp_path / "data" / "pairs.jsonl", pairs))}
    stages = [
        {"name": "rm", "method": "reward", "data": data},
        {"name": "go", "method": "sft", "data": {"path": raw["data"]["path"]}},
    ]
    result = run_pipeline(resolve({**top, "name": "both", "output": str(tmp_path / "both"), "stages": stages}))
    assert result is not None
    assert set(result.stages[0].after) == set() and set(result.stages[1].after) == {"rules", "choices"}
    assert "Right choices" in (tmp_path / "both" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("benchmarks", "said"),
    [
        ([{"task": "choices"}, {"task": "choices"}], "two benchmarks are named 'choices'"),
        ([{"task": "choices", "name": "test"}], "which are the run's own rows"),
        ([{"task": "choices", "name": "a b"}], "a name becomes a file's"),
        ([{"task": "choices", "unknown": "skip"}], "unknown is read by task instructions alone"),
        ([{"task": "instructions", "by": "letter"}], "by is read by task choices alone"),
        ([{"task": "choices", "unconditional": "So:"}], "unconditional is read with normalize: pmi alone"),
        ([{"task": "choises"}], "one of instructions, choices"),
        ([{"path": "x.jsonl"}], "missing; expected one of instructions, choices"),
        ([{"task": "choices", "pat": "x"}], "did you mean eval.benchmarks.0.path?"),
    ],
)
def test_wrong_settings_are_named(benchmarks: list[dict[str, Any]], said: str) -> None:
    raw = {
        "method": "sft", "model": {"path": "m"}, "data": {"path": "d"}, "train": {"steps": 1},
        "eval": {"benchmarks": benchmarks},
    }  # fmt: skip
    with pytest.raises(UsageError) as error:
        resolve(raw)
    assert said in str(error.value)


def test_a_row_that_does_not_fit_is_known_before_training(base: Path, tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data", base, tmp_path / "run")
    write(tmp_path / "data" / "rules.jsonl", [{"prompt": "a" * 125, "constraints": [{"kind": "quoted"}]}])
    with pytest.raises(DataError, match=r"rules.jsonl:1: 125 prompt tokens and max_tokens \(8\) exceed"):
        run_pipeline(resolve(raw))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
