"""recipes/competition.yaml: what its three rounds reward, and a run of all of them on a file with a model made here."""

from __future__ import annotations

import json
from pathlib import Path

from preftune.cli.main import main
from preftune.recipes import load_recipe
from tests.tiny import lines, save, write

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "competition.yaml"
TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"


def test_the_rounds_follow_their_source() -> None:
    """METHODS section 5: form, roles and answer; then self-reflection and originality; then length."""
    stages = load_recipe(RECIPE).stages
    assert [stage.name for stage in stages] == ["form", "thought", "length"]
    assert [stage.model.path for stage in stages[1:]] == ["stage:form", "stage:thought"]
    counted = [{reward.name: reward.weight for reward in stage.rewards if reward.weight} for stage in stages]
    new = [set(after) - set(before) for before, after in zip([{}, *counted], counted, strict=False)]
    kinds = [{name.removeprefix("competition-") for name in names} for names in new]
    assert kinds[0] == {"tags", "structure", "winner", "answer", "voice"}
    assert kinds[1] == {"reflection", "originality", "reflective-winner", "winner-right"}
    assert kinds[2] == {"length"}
    limits = [stage.sampling.max_tokens for stage in stages]
    assert limits == sorted(limits) and len(set(limits)) == 3
    assert all(stage.train.until for stage in stages[:2])
    assert {stage.eval.temperature for stage in stages} == {0.5}
    measured = {"strict", "competition-won", "competition-winner-right", "competition-copied"}
    for stage in stages:
        assert measured <= {reward.label or reward.name for reward in stage.rewards}
    # the same rows are held out in all rounds: they share seed, data and number
    assert len({(stage.seed, stage.eval.holdout, str(stage.data)) for stage in stages}) == 1


def test_it_runs_on_a_file(tmp_path: Path) -> None:
    model = save(tmp_path / "model", max_position_embeddings=4096)
    rows = [{"question": f"Ann has {i} bags of 3 pens.", "answer": f"{i}*3 = {3 * i}\n#### {3 * i}"} for i in range(12)]
    output = tmp_path / "run"
    flags = [
        "--model.path", str(model), "--data.path", str(write(tmp_path / "rows.jsonl", rows)), "--output", str(output),
        "--tokens.chat_template", TEMPLATE, "--tokens.max_prompt_tokens", "4000", "--sampling.max_tokens", "8",
        "--sampling.group_size", "2", "--train.batch_size", "2", "--train.steps", "1", "--eval.holdout", "2",
    ]  # fmt: skip
    assert main(["run", str(RECIPE), *flags]) == 0
    assert json.loads((output / "pipeline.json").read_text())["stages"] == ["form", "thought", "length"]
    for stage, parts in (("form", {"voice"}), ("thought", {"voice", "reflection"}), ("length", {"voice", "length"})):
        (step,) = [line["metrics"] for line in lines(output / stage / "metrics.jsonl") if line["kind"] == "train"]
        assert {f"reward/competition-{part}-knight" for part in parts} <= set(step)
        samples = lines(output / stage / "samples.jsonl")
        assert all("<knight>" in sample["prompt"] for sample in samples)
    assert (output / "report.html").stat().st_size > 10_000
