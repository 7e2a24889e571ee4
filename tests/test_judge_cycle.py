"""recipes/judge-cycle.yaml from end to end, and a judge that an earlier stage trained."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.cli.main import main
from preftune.data.collected import read_collected
from preftune.demo.arithmetic import problems
from preftune.pipeline import run_pipeline
from preftune.recipes import load_recipe, resolve
from tests import tiny
from tests.judges.fakes import Server, blocks
from tests.judges.sums import blind, build_tokenizer, verdict

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "judge-cycle.yaml"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    running = Server()
    yield running
    running.close()


def shorter(prompt: str) -> str:
    """Prefers the answer with fewer characters."""
    shown = blocks(prompt)
    a, b = len(shown["answer A"]), len(shown["answer B"])
    return f"<verdict>{'tie' if a == b else 'A' if a < b else 'B'}</verdict>"


def test_the_cycle_names_what_it_should() -> None:
    stages = load_recipe(RECIPE).stages
    assert [stage.name for stage in stages] == ["generate-1", "judge-1", "generate-2", "judge-2"]
    first, _, third, _ = stages
    assert first.rewards[0].args["path"] == first.model.path  # the model judges itself
    assert [stage.model.path for stage in stages[1:]] == [f"stage:{stage.name}" for stage in stages[:-1]]
    assert third.rewards[0].args["path"] == "stage:judge-1"
    assert first.eval.holdout == third.eval.holdout and first.seed == third.seed  # the same questions
    contests = [stage.eval.test[0] for stage in stages[1:]]
    assert contests[0] == contests[1] == contests[2] and contests[0].split == "validation"
    assert all(reward.weight == 0 for stage in stages for reward in stage.rewards if reward.name == "math-equal")


def test_flags_for_data_leave_the_answers_of_stages_alone() -> None:
    overrides = {"data.path": "mine.jsonl", "data.columns.prompt.from": "question", "data.limit": "9"}
    stages = load_recipe(RECIPE, overrides).stages
    for stage in (stages[0], stages[2]):
        (source,) = stage.data
        assert (source.path, source.limit, source.columns["prompt"].source) == ("mine.jsonl", 9, "question")
    for stage in (stages[1], stages[3]):
        assert all(s.path.startswith("stage:") and s.limit is None and not s.columns for s in stage.data)
    own = load_recipe(RECIPE, {"judge-2.data.1.limit": "5"}).stages[3].data
    assert [source.limit for source in own] == [None, 5]


def test_contests_are_a_setting_of_training_data() -> None:
    from preftune.judges import EvaluationConfig
    from preftune.scoring.settings import ScoreConfig

    data = {"path": "x.jsonl", "contest": {}}
    with pytest.raises(ValueError, match="contest is a setting of training data and has no meaning here"):
        EvaluationConfig.model_validate({"judge": {"model": "m"}, "data": data})
    with pytest.raises(ValueError, match=r"data\.contest has no meaning for scoring"):
        ScoreConfig.model_validate({"model": {"path": "m"}, "data": data})


@pytest.mark.slow
def test_the_recipe_runs(server: Server, tmp_path: Path) -> None:
    """On a model of single characters, with a judge behind an endpoint; right is what is short, so that there are right
    answers to be had."""
    server.rule = shorter
    tiny.model(0, max_position_embeddings=4096, initializer_range=0.3).save_pretrained(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")
    rows = tiny.write(tmp_path / "rows.jsonl", [{"prompt": r["prompt"], "answer": r["answer"]} for r in tiny.sums(14)])
    flags = {
        "model.path": str(tmp_path / "model"), "data.path": str(rows), "tokens.chat_template": TEMPLATE,
        "sampling.max_tokens": "5", "eval.max_tokens": "3", "train.batch_size": "8", "log.sinks": "[]",
        "output": str(tmp_path / "run"), "generate-1.eval.holdout": "4", "generate-2.eval.holdout": "4",
    }  # fmt: skip
    for number in (1, 2):
        judge = {"model": "big", "base_url": server.url, "swap": number == 1}
        flags |= {
            f"generate-{number}.rewards.0.args": json.dumps(judge), f"generate-{number}.rewards.1.name": "length",
            f"generate-{number}.rewards.1.args": "{at_most: 1, ramp: 9}",
        }  # fmt: skip
        flags |= {f"judge-{number}.collect.min_score": "null", f"judge-{number}.data.0.responses.score": "length"}
    flags |= {f"{name}.eval.test.0.responses.score": "length" for name in ("judge-1", "judge-2", "generate-2")}
    flags["judge-2.data.1.responses.score"] = "length"
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["run", str(RECIPE), *words]) == 0
    run = tmp_path / "run"
    summaries = {name: json.loads((run / name / "summary.json").read_text()) for name in
                 ("generate-1", "judge-1", "generate-2", "judge-2")}  # fmt: skip
    assert all(summary["status"] == "finished" for summary in summaries.values())
    # Way 1: of each prompt's answers the one is kept that the judge prefers.
    found = read_collected(run / "generate-1" / "collected.jsonl")
    assert len(found.groups) == 10 and server.requests
    for group in found.groups:
        lengths = [len(c.text) for c in group.completions]
        for c in group.completions:
            others = list(lengths)
            others.remove(len(c.text))
            rate = sum(1.0 if len(c.text) < n else 0.5 if len(c.text) == n else 0.0 for n in others) / len(others)
            assert c.breakdown["judge"] == pytest.approx(rate)
    # Way 2: contests of these answers; the same held-out ones in every stage.
    pooled = read_collected(run / "judge-2" / "collected.jsonl").groups
    origins = {origin for group in pooled for origin in group.prompt.columns["origins"]}
    assert origins == {"generate-1", "generate-2"}
    counts = {summaries[name]["after"]["test"]["reward/judge-pick"]["n"] for name in list(summaries)[1:]}
    assert len(counts) == 1
    held = {g.prompt.text for g in read_collected(run / "generate-1" / "collected-validation.jsonl").groups}
    for name in summaries:
        for group in read_collected(run / name / "collected.jsonl").groups:
            question = group.prompt.columns.get("question", "")
            assert not any(question and f"user: {question}<eos>" in text for text in held)
            assert group.prompt.text not in held
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Answering and judging" in page


@pytest.mark.slow
def test_a_stage_is_judged_by_the_model_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that learns to say A whatever it sees; then its own answers to sums are judged by it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    tokenizer = build_tokenizer(0)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    some = islice(problems("train", 0, 1.0), 8)
    prompts = [blind(problem, random.Random(0))[0] for problem in some]
    said = [{"prompt": [{"role": "user", "content": text}], "completion": verdict("A")} for text in prompts]
    asked = [{"prompt": [{"role": "user", "content": f"{n}+1?"}]} for n in range(6)]
    recipe: dict[str, Any] = {
        "name": "two", "output": str(tmp_path / "run"), "log": {"sinks": []},
        "model": {"path": str(tmp_path / "model")},
        "stages": [
            {"name": "warm", "method": "sft", "data": {"path": str(tiny.write(tmp_path / "said.jsonl", said))},
             "train": {"steps": 100, "batch_size": 8, "learning_rate": 2e-2}},
            {"name": "answer", "method": "rft", "model": {"path": "stage:warm"},
             "data": {"path": str(tiny.write(tmp_path / "asked.jsonl", asked))},
             "sampling": {"group_size": 3, "max_tokens": 16, "temperature": 2.5},
             "rewards": [{"name": "judge", "args": {"path": "stage:warm", "max_tokens": 16, "swap": False}}],
             "train": {"steps": 2, "batch_size": 3}},
        ],
    }  # fmt: skip
    run_pipeline(resolve(recipe))
    assert f"path: {tmp_path / 'run' / 'warm' / 'final'}" in (tmp_path / "run" / "answer" / "recipe.yaml").read_text()
    judged = [c for g in read_collected(tmp_path / "run" / "answer" / "collected.jsonl").groups for c in g.completions]
    # A judge of 32 dimensions, taught on eight rows, may lose its words over a random text.
    assert len(judged) == 18 and sum(c.notes["judge"]["failed"] for c in judged) <= 4
    assert {c.notes["judge"]["says"] for c in judged if c.notes["judge"]["votes"]} == {verdict("A")}
    assert len({c.score for c in judged}) > 1  # the place decides, and the place is drawn: somebody wins
