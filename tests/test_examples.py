"""Each file of examples/ runs, on a tiny model built on the spot, and does what it says."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import preftune
from preftune.config import SamplingConfig, TokensConfig
from preftune.methods import Evidence
from preftune.records import Completion, Group, Message, Prompt
from preftune.tokens import TokenContract
from tests import tiny

torch.set_num_threads(1)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

CHAT = "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"  # noqa: E501


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of examples/, as a script beside it would: reward workers find it on sys.path too."""
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save(tmp_path_factory.mktemp("examples") / "model"))


def test_every_example_has_a_test() -> None:
    tested = {"own_reward", "trl_reward", "sft_then_grpo", "new_method", "lookup_tool", "gsm8k_preferences"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested | {"gsm8k_small_model"}  # that one: see below


def test_train_can_be_called_again_and_after_an_import_of_its_package(tmp_path: Path) -> None:
    """Importing preftune.train.loop binds the name preftune.train to the package, over the function."""
    from preftune.train.loop import RunResult

    assert RunResult is not None
    with pytest.raises(preftune.PreftuneError, match="no-such-method"):
        preftune.train("no-such-method", model="m", data="d.jsonl", output=tmp_path / "run")


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (EXAMPLES.parent / "README.md").read_text("utf-8"), re.M | re.S)
    tiny.write(tmp_path / "train.jsonl", tiny.sums(20))
    model = str(tiny.save(tmp_path / "model", max_position_embeddings=512))
    for was, now in (
        ("Qwen/Qwen3-0.6B-Base", model),
        ('"steps": 100', '"steps": 2'),
        ('"holdout": 100', '"holdout": 5'),
    ):
        assert was in code
        code = code.replace(was, now)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    assert names["brief"](["7\n", "8"], ["7", "7"]) == [1.0, 0.0]
    assert str(names["result"].report) in capsys.readouterr().out
    assert names["result"].difference["validation"]["reward/mean"].n == 5


def test_own_reward(example: Callable[[str], ModuleType], model: str, tmp_path: Path) -> None:
    own = example("own_reward")
    scores = own.brief_and_right([" 7\n", "8", "a1", "", "1 2"], answer=["7", "7", "7", "7", "7"])
    assert scores == [1.0, 0.5, 0.25, 0.0, pytest.approx(1 / 3)]

    result = own.train(model, tmp_path / "run", steps=12, learning_rate=1e-2)
    assert (result.steps, result.report.exists()) == (12, True)
    before, after = result.before["test"]["reward/mean"], result.after["test"]["reward/mean"]
    assert before.n == after.n == 9
    first, last = (rewards(result.folder)[part] for part in (slice(0, 3), slice(-3, None)))
    assert sum(last) / 3 > sum(first) / 3 + 0.1  # a random model learns to write digits
    assert (tmp_path / "run-data.jsonl").exists()  # the rows, beside the run


def rewards(folder: Path) -> list[float]:
    return [line["metrics"]["reward/mean"] for line in tiny.lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_trl_rewards_mean_here_what_they_mean_in_trl(
    example: Callable[[str], ModuleType], model: str, tmp_path: Path
) -> None:
    """The same function objects, through TRL's own reward code and through ours."""
    import datasets
    import trl

    from preftune.rewards import build_rewards

    theirs = example("trl_reward")
    prompt = [{"role": "user", "content": "2 times 4?"}]
    texts = ["8, please", "thank you: 6", "no idea", "please and thank you 8"]
    answers = [8, 8, 8, None]

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4,
        num_generations=4, max_steps=10,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        tiny.model(), [theirs.close, theirs.polite], args, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt, "answer": 8}]),
    )  # fmt: skip
    trainer.state.max_steps = 10
    inputs = [{"prompt": prompt, "answer": answer} for answer in answers]
    expected = trainer._calculate_rewards(inputs, [prompt] * 4, [said(t) for t in texts], [[1]] * 4)

    groups = [
        Group(
            Prompt((1,), "", (Message("user", "2 times 4?"),), {"answer": answer}),
            (Completion((1,), (True,), text=text),),
        )
        for text, answer in zip(texts, answers, strict=True)
    ]
    with build_rewards([], [theirs.close, theirs.polite], tmp_path) as ours:
        scored = ours.score(groups, step=0, total_steps=10)
        later = ours.score(groups, step=5, total_steps=10)
    found = [dict(group.completions[0].breakdown) for group in scored.groups]
    assert [row["close"] for row in found] == [1.0, pytest.approx(1 / 3), 0.0, None]
    assert expected[:, 0].isnan().tolist() == [False, False, False, True]
    assert expected[:3, 0].tolist() == pytest.approx([row["close"] for row in found[:3]])
    assert expected[:, 1].tolist() == [row["polite"] for row in found] == [0.0] * 4
    assert [group.completions[0].breakdown["polite"] for group in later.groups] == [0.5, 0.5, 0.0, 1.0]
    assert scored.metrics["logged/share_with_a_number"] == 0.75
    assert [extra["last_number"] for extra in scored.extras] == ["8", "6", "", "8"]


def test_trl_rewards_train(example: Callable[[str], ModuleType], model: str, tmp_path: Path) -> None:
    result = example("trl_reward").train(
        model, tmp_path / "run", steps=2, tokens={"chat_template": CHAT},
        sampling={"group_size": 2, "max_tokens": 4}, train={"steps": 2, "batch_size": 3},
    )  # fmt: skip
    (sample, *_) = tiny.lines(result.folder / "samples.jsonl")
    assert set(sample["breakdown"]) == {"close", "polite"}
    assert sample["prompt"].startswith("u:") and sample["prompt"].endswith("a:")


def test_sft_then_grpo(example: Callable[[str], ModuleType], model: str, tmp_path: Path) -> None:
    first, second = example("sft_then_grpo").train(model, tmp_path, sft_steps=30, grpo_steps=3, learning_rate=1e-2)
    losses = [line["metrics"]["nll"] for line in tiny.lines(first.folder / "metrics.jsonl") if line["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    manifest = json.loads((second.folder / "manifest.json").read_text(encoding="utf-8"))
    assert str(first.folder / "final") in manifest["lineage"]
    assert second.before["test"]["reward/regex"].value > 0.5  # the form is there before GRPO begins


def test_new_method(example: Callable[[str], ModuleType], model: str, tmp_path: Path) -> None:
    new = example("new_method")
    group = Group(Prompt((1,), ""), tuple(Completion((1,), (True,), score=score) for score in (0.0, 2.0, 2.0, 1.0)))
    dead = Group(Prompt((1,), ""), (Completion((1,), (True,), score=3.0),) * 2)
    recipe: Any = None
    assert new.best_of_group([group, dead], recipe, Evidence()).tolist() == [0, 1, 0, 0, 0, 0]

    from preftune.losses import Denominators, TokenBatch

    logprobs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    batch = TokenBatch(logprobs, torch.tensor([0, 0, 1]), 2, torch.ones(2), advantages_S=torch.tensor([1.0, 0.0]))
    out = new.weighted_nll(batch, Denominators.count([2, 1], [1.0, 1.0], 6), recipe)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(3.0 / 3)  # (1 + 2) · 1 + 4 · 0, over three tokens
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, 0.0])

    result = new.train(model, tmp_path / "run", steps=12, learning_rate=1e-2)
    found = rewards(result.folder)
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + 0.1
    certificate = json.loads((result.folder / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["passed"] is True and len(certificate["checks"]) == 3


def test_gsm8k_preferences_numbers(example: Callable[[str], ModuleType]) -> None:
    """Five solutions of two questions, by hand."""
    it = example("gsm8k_preferences")
    one = {
        (1, "human"): it.Solution("rrrr", True), (1, "a"): it.Solution("rr", True), (1, "b"): it.Solution("www", False),
        (2, "a"): it.Solution("wwww", False), (2, "b"): it.Solution("rrrrr", True),
    }  # fmt: skip
    able = it.skill(one, [1, 2])
    assert able == {"human": 1.0, "a": 0.5, "b": 0.5}
    pairs = it.make_pairs(one, [1, 2], {"human": 1.0, "a": 0.4, "b": 0.6}, 0)
    assert pairs == [
        it.Pair(0, (1, "human"), (1, "b"), shorter=False, abler=True),
        it.Pair(0, (1, "a"), (1, "b"), shorter=True, abler=False),
        it.Pair(0, (2, "b"), (2, "a"), shorter=False, abler=True),
    ]
    assert it.without_human(pairs) == pairs[1:]
    scores = [{(1, "human"): 0.0, (1, "a"): 2.0, (1, "b"): 1.0, (2, "a"): 3.0, (2, "b"): 3.0}]
    wins = [(pair, it.won(scores, pair)) for pair in pairs]
    assert [value for _, value in wins] == [0.0, 1.0, 0.5]

    # Question 1 has ½ over its two pairs, question 2 has ½: no deviation, so no bounds.
    overall = it.accuracy(wins)
    assert (overall.value, overall.is_bounded, overall.n) == (0.5, False, 2)
    # Questions 1 and 2 in both cells: means ½ and ¾, deviations (½, −½)/2/2 and (¼, −¼)/2/2 add up to ±3/16;
    # half-width t(1)·sqrt(2 · 9/256 · 2/1) = 12.706 · 0.375.
    found = it.mean_of_cells([[(1, 1.0), (2, 0.0)], [(1, 1.0), (2, 0.5)]])
    assert (found.value, found.high - found.value) == (0.625, pytest.approx(12.7062 * 0.375, rel=1e-4))
    # The same question in two seeds is one unit: t's usual interval of its means.
    twice = it.mean_of_cells([[(1, 1.0), (1, 1.0), (2, 0.0), (2, 0.0), (3, 0.0), (3, 0.0)]])
    assert (twice.value, twice.high - twice.value, twice.n) == (
        pytest.approx(1 / 3), pytest.approx(4.30265 * (1 / 3**0.5) / 3**0.5, rel=1e-4), 3,
    )  # fmt: skip

    # A fit on right solutions that are all the shorter ones, by whichever writer, prefers short ones.
    shorter = {
        (q, w): it.Solution("x" * (3 + 5 * wrong), not wrong)
        for q in range(8) for w, wrong in (("a", q % 2), ("b", 1 - q % 2))
    }  # fmt: skip
    prefers = it.fit_length_and_writer(shorter, it.make_pairs(shorter, range(8), {"a": 0.5, "b": 0.5}, 0))
    assert all(prefers(p.right) > prefers(p.wrong) for p in it.make_pairs(shorter, range(8), {"a": 1, "b": 0}, 0))


def test_gsm8k_preferences(
    example: Callable[[str], ModuleType], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All runs and controls on rows of our own. Started again, it trains nothing and says the same."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(1, 25):
        marks = (i % 3 > 0, i % 2 > 0)  # both right, one of them, none
        texts = [f"{'so ' * (i % 5 + k)}{i + 2 + (not mark)}\nA: {i + 2 + (not mark)}" for k, mark in enumerate(marks)]
        rows.append({
            "question": f"Ann has {i} pens and gets 2 more?",
            "reference": f"{i}+2={i + 2}\nA: {i + 2}",
            "responses": [
                {"model": f"writer-{k}", "text": text, "correct": mark}
                for k, (text, mark) in enumerate(zip(texts, marks, strict=True))
            ],
        })  # fmt: skip
    data = tiny.write(tmp_path / "solutions.jsonl", rows)
    output = tmp_path / "runs"
    it = example("gsm8k_preferences")
    given = [
        "unused.jsonl", str(data), "--output", str(output), "--model", model, "--seeds", "1",
        "--train.epochs", "1", "--train.batch_size", "8", "--eval.holdout", "9",
        "--kto.train.batch_size", "5",
    ]  # fmt: skip
    assert it.main(given) == 0
    said = capsys.readouterr().out
    text = (output / "results.md").read_text(encoding="utf-8")
    assert text in said
    for name in ("reward model", "KTO, log π", "length and writer, fitted", "control: DPO, shuffled labels"):
        assert f"| {name} | " in text
    folders = sorted(path.parent.name for path in output.glob("*/summary.json"))
    assert len(folders) == 6

    sizes = {
        name: yaml.safe_load((output / f"{name}-0" / "recipe.yaml").read_text(encoding="utf-8"))["train"]["batch_size"]
        for name in ("reward", "kto")
    }
    assert sizes == {"reward": 8, "kto": 5}

    # Shuffling moves the marks within a question and keeps their number; the human takes part where it is used.
    for name in ("reward", "dpo"):
        marks = [[r["correct"] for r in line["responses"]] for line in tiny.lines(output / f"{name}-0-shuffled.jsonl")]
        true = [[r["correct"] for r in row["responses"]] + [True] * (name == "dpo") for row in rows]
        assert marks != true and [sorted(m) for m in marks] == [sorted(t) for t in true]
    # The three methods measure the same questions, and the scores are those of the run.
    found = {name: it.read_scores(output / f"{name}-0")["reward after"] for name in ("reward", "dpo", "kto")}
    questions = {name: {question for question, _ in scores} for name, scores in found.items()}
    assert questions["reward"] <= questions["dpo"] <= questions["kto"] and len(questions["kto"]) == 9
    _, solutions = it.read_solutions(data)
    pairs = it.make_pairs(solutions, questions["reward"], {"writer-0": 1, "writer-1": 0, "human": 1}, 0)
    values = [(p, it.won([found["reward"]], p)) for p in it.without_human(pairs)]
    summary = json.loads((output / "reward-0" / "summary.json").read_text(encoding="utf-8"))
    assert it.accuracy(values).value == pytest.approx(summary["after"]["validation"]["rewards/accuracy"]["value"])

    before = {path: path.stat().st_mtime_ns for path in output.rglob("summary.json")}
    assert it.main(given) == 0
    assert (output / "results.md").read_text(encoding="utf-8") == text
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("summary.json")}
    with pytest.raises(SystemExit):
        it.main([*given, "--surprise"])


class Scripted:
    """A sampler that writes what it is told, turn by turn."""

    def __init__(self, contract: TokenContract, turns: list[str]) -> None:
        self.contract, self.turns, self.asked = contract, turns, list[str]()

    def sample(self, prompts: list[Prompt], n: int, settings: SamplingConfig, **kwargs: Any) -> list[Group]:
        text = self.turns.pop(0)
        self.asked += [p.text for p in prompts]
        ids = tuple(self.contract.encode(text))
        stopped = any(stop in text for stop in settings.stop)
        one = Completion(ids, (True,) * len(ids), text, "stop" if stopped else "length", (-1.0,) * len(ids))
        return [Group(p, (one,) * n) for p in prompts]


def test_lookup_tool(example: Callable[[str], ModuleType]) -> None:
    contract = TokenContract(tiny.tokenizer(), TokensConfig())
    rollout = example("lookup_tool").prices(contract)
    sampler = Scripted(contract, ["price( cake )", "so 4"])
    prompt = Prompt(tuple(contract.encode("cake?")), "cake?")
    ((group),) = rollout(sampler, [prompt], 1, SamplingConfig(max_turns=3, max_tokens=40), seed=0, policy_version=0)
    (completion,) = group.completions
    assert completion.text == "price( cake )=4;so 4"
    assert sampler.asked == ["cake?", "cake?price( cake )=4;"]
    written = "".join("x" if wrote else "." for wrote in completion.mask)
    assert written == "x" * 13 + "..." + "x" * 4
    assert completion.length == 17
    assert example("lookup_tool").look_up("bread") == "unknown"
