"""`preftune human …` from the command line: its words and exit codes, and the whole loop with a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from preftune.cli.main import main
from preftune.data.collected import read_collected
from preftune.human.rounds import open_round
from preftune.human.status import status
from preftune.recipes import load_recipe, resolve
from tests import tiny
from tests.human import people

torch.set_num_threads(1)
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns what it said, on both streams."""

    def command(*arguments: object, code: int = 0) -> str:
        found = main(["human", *map(str, arguments)])
        said = capsys.readouterr()
        assert found == code, said.err
        return said.out + said.err

    return command


def test_help_names_the_commands_and_loads_no_torch(tmp_path: Path) -> None:
    people.recipe(tmp_path)
    script = (
        "import sys\nfrom preftune.cli.main import main\n"
        "for arguments in (['human'], ['human', '--help'], ['human', 'export', '--help'],\n"
        "    ['human', 'import', '--help'], ['human', 'train', '--help'], ['human', 'status', '--help'],\n"
        "    ['human', 'imprt', 'x'],\n"
        f"    ['human', 'export', {str(tmp_path / 'people.yaml')!r}, '--human.rate', 'stars'],\n"
        f"    ['human', 'import', {str(tmp_path)!r}, 'x.csv'], ['human', 'status', {str(tmp_path)!r}]):\n"
        "    try:\n        code = main(arguments)\n    except SystemExit as stop:\n        code = stop.code\n"
        "    print('RESULT', code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r"^RESULT (\d) (\w+)$", done.stdout, re.M) == [
        *[("0", "False")] * 6, *[("2", "False")] * 3, ("0", "False"),
    ], done.stdout + done.stderr  # fmt: skip
    for word in (
        "export RECIPE",
        "import ROOT FILE",
        "train ROOT",
        "status ROOT",
        "--partial",
        "--replace",
        "--human.rate",
    ):
        assert word in done.stdout, word
    assert "did you mean preftune human import?" in done.stderr
    assert "human.rate" in done.stderr and f"{tmp_path} holds no round" in done.stderr


def test_words_of_a_round(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch)
    recipe, root = people.recipe(tmp_path, raters=2), tmp_path / "rounds"
    said = run("export", recipe, "--human.prompts", 3)
    assert "round 1: 9 answers to 3 prompts, by some/model" in said
    assert f"give raters {root / 'round-1' / 'answers.csv'} (or answers.jsonl)" in said
    assert "ratings wanted for each answer: 2" in said and f"preftune human import {root} FILE" in said
    assert "round 1 waits for ratings" in run("export", recipe, code=2)

    answers = root / "round-1" / "answers.csv"
    anna = people.fill(answers, tmp_path / "anna.csv", people.by_length, "anna")
    holes = people.fill(answers, tmp_path / "ben.csv", people.by_length, "ben", keep=7)
    said = run("import", root, anna)
    assert "round 1: 9 new ratings; 9 in all" in said and "warning: one rater only" in said
    assert "3 of 3 prompts wait for more raters (human.raters 2): import further files" in said
    said = run("import", root, holes, code=2)
    assert said.startswith("error: 1 problem in what was sent; nothing was imported") and "no row (r1-003" in said
    said = run("import", root, holes, "--partial")
    assert "round 1: 7 new ratings; 16 in all" in said
    assert "ben has not rated 1 of 3 prompts wholly, and does not count there: 3" in said
    assert "agreement: Krippendorff's alpha 1.00 (interval)" in said and "1 of 3 prompts wait" in said
    assert "1 of 3 prompts have not been rated wholly by 2 raters" in run("train", root, code=2)
    ben = people.fill(answers, tmp_path / "ben.csv", people.by_length, "ben")
    said = run("import", root, ben)
    assert "2 new ratings, 7 were there before; 18 in all" in said
    assert f"all prompts are rated; train with: preftune human train {root}" in said
    other = people.fill(answers, tmp_path / "ben.csv", lambda row: 10 - people.by_length(row), "ben")
    assert "import with --replace" in run("import", root, other, code=2)
    said = run("import", root, other, "--replace")
    assert "9 new ratings, 9 earlier ones replaced; 18 in all" in said
    assert "warning: raters agree little" in said and "9 disputed pairs in agreement.json" in said
    lines = run("status", root).splitlines()
    assert lines[0].startswith("round  state") and lines[1].split()[:6] == ["1", "rated", "3", "9", "3", "2"]


def test_what_is_no_command(tmp_path: Path, run: Run) -> None:
    assert "preftune human rates: no such command; commands: export, import, train, status, or a recipe" in run(
        "rates", code=2
    )
    assert "none.yaml does not exist" in run(tmp_path / "none.yaml", code=2)
    assert "the following arguments are required" in run("import", tmp_path, code=2)
    (tmp_path / "empty").mkdir()
    assert run("status", tmp_path / "empty") == f"{tmp_path / 'empty'}: no round yet\n"


# --- the whole loop with a model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny.save(folder / "model", initializer_range=0.3)
    tiny.write(folder / "train.jsonl", tiny.sums(12))
    return folder


def _recipe(home: Path, root: Path, **changes: Any) -> Path:
    whole: dict[str, Any] = {
        "method": "human", "name": "people", "output": str(root), "data": {"path": str(home / "train.jsonl")},
        "model": {"path": str(home / "model"), "lora": {"r": 4, "alpha": 8}}, "log": {"sinks": []},
        "sampling": {"group_size": 4, "max_tokens": 8}, "human": {"prompts": 4, "low": 0, "high": 20},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
    }  # fmt: skip
    path = root.parent / "people.yaml"
    path.write_text(yaml.safe_dump({**whole, **changes}), encoding="utf-8")
    return path


def _longer_is_better(row: dict[str, Any]) -> int:
    return len(row["answer"].removeprefix("'"))  # the CSV's guard against formulas


def _logprobs(model: Path, round_1: Path) -> list[list[float]]:
    """Mean log-prob of each completion of a round under a model, by plain transformers."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    adapter = (model / "adapter_config.json").exists()
    loaded = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(model).eval()
    out = []
    for group in read_collected(round_1 / "collected.jsonl").groups:
        out.append([])
        for c in group.completions:
            ids = torch.tensor([[*group.prompt.ids, *c.ids]])
            with torch.no_grad():
                logits = loaded(ids).logits[0, len(group.prompt.ids) - 1 : -1].float()
            chosen = logits.log_softmax(-1).gather(1, ids[0, len(group.prompt.ids) :, None])
            out[-1].append(float(chosen.sum()))
    return out


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_two_rounds_with_a_tiny_model(home: Path, tmp_path: Path, run: Run, name: str) -> None:
    root = tmp_path / "rounds"
    recipe = _recipe(home, root)
    run("export", recipe)
    first = root / "round-1"
    collected = read_collected(first / "collected.jsonl")
    assert len(collected.groups) == 4 and all(len(g.completions) == 4 for g in collected.groups)
    assert all(
        c.logprobs is not None and len(c.logprobs) == len(c.ids) for g in collected.groups for c in g.completions
    )
    assert json.loads((first / "round.json").read_text())["state"] == "exported"

    sent = people.fill(first / name, tmp_path / f"anna{Path(name).suffix}", _longer_is_better, "anna")
    said = run("import", root, sent, "--train")
    assert f"round 1 is trained: {first / 'train' / 'final'}" in said
    rated = read_collected(first / "rated.jsonl")
    assert all(c.score == len(c.text) for g in rated.groups for c in g.completions)
    summary = json.loads((first / "train" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 1)

    # what people liked better has become likelier beside what they liked less, in each prompt that had a spread
    before, after = _logprobs(home / "model", first), _logprobs(first / "train" / "final", first)
    moved = 0.0
    for group, old, new in zip(rated.groups, before, after, strict=True):
        mean = sum(group.scores) / len(group.scores)
        moved += sum((score - mean) * (n - o) for score, o, n in zip(group.scores, old, new, strict=True))
    assert moved > 0.0

    assert "is trained already" in run("train", root, code=2)
    said = run("export", recipe)
    assert f"by {(first / 'train' / 'final').resolve()}" in said
    second = open_round(root / "round-2")
    assert second.recipe.model.on_adapter == "continue"
    asked = {group.prompt.text for group in collected.groups}
    assert not asked & {group.prompt.text for group in second.collected.groups}
    assert second.collected.about["policy"] != collected.about["policy"]
    one, two = status(root)
    assert (one.state, two.state, one.rated) == ("trained", "exported", 4) and one.score is not None
    sent = people.fill(root / "round-2" / name, tmp_path / f"ben{Path(name).suffix}", _longer_is_better, "ben")
    run("import", root, sent)
    run("train", root)
    assert [r.state for r in status(root)] == ["trained", "trained"]
    assert len(run("status", root).splitlines()) == 3


def test_ranks_and_whole_weights_with_a_tiny_model(home: Path, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "rounds"
    recipe = _recipe(home, root, model={"path": str(home / "model")}, human={"prompts": 3, "rate": "rank"})
    run("export", recipe)
    ranks = people.ranks_by_length(open_round(root / "round-1").answers)
    sent = people.fill(root / "round-1" / "answers.csv", tmp_path / "anna.csv", lambda row: ranks[row["id"]], "anna")
    run("import", root, sent)
    run("train", root)
    for group in read_collected(root / "round-1" / "rated.jsonl").groups:
        assert all(0.0 <= score <= 1.0 for score in group.scores)
    run("export", recipe)
    model = open_round(root / "round-2").recipe.model
    assert (model.on_adapter, model.path) == (None, str((root / "round-1" / "train" / "final").resolve()))


def test_rated_answers_are_a_recipe_of_their_own(home: Path, tmp_path: Path, run: Run) -> None:
    """`preftune human RECIPE` on the file that a round has made gives the round's model."""
    root = tmp_path / "rounds"
    recipe = _recipe(home, root)
    run("export", recipe)
    run("import", root, people.fill(root / "round-1" / "answers.csv", tmp_path / "a.csv", _longer_is_better), "--train")
    rated, output = root / "round-1" / "rated.jsonl", tmp_path / "run"
    run(root / "round-1" / "recipe.yaml", "--collect.path", rated, "--output", output)
    assert _logprobs(output / "final", root / "round-1") == _logprobs(
        root / "round-1" / "train" / "final", root / "round-1"
    )


def test_the_page_shows_what_there_is(tmp_path: Path) -> None:
    """docs/methods/human.md: its recipe resolves, its table is what a rater's file is, its files are the round's."""
    from preftune.human.files import read_sent

    page = (Path(__file__).parents[2] / "docs" / "methods" / "human.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (stage,) = resolve(yaml.safe_load(recipe)).stages
    shipped = load_recipe(Path(__file__).parents[2] / "recipes" / "human.yaml").stages[0]
    assert stage.human == shipped.human and stage.train.batch_size == shipped.train.batch_size
    assert stage.human.prompts <= stage.train.batch_size  # one step a round, as both say
    (sample,) = re.findall(r"^```csv\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "sample.csv").write_text(sample, encoding="utf-8")
    sent = read_sent(tmp_path / "sample.csv")
    assert not sent.problems and sent.columns == ["id", "prompt", "answer", "score", "rater", "comment"]
    for name in ("answers.csv", "HOW_TO_RATE.md", "collected.jsonl", "round.json", "ratings.jsonl", "agreement.json"):
        assert f"`{name}`" in page, name
