"""The demo of the whole way: its rows, its table and verdict by hand, and a quick run in which every stage works."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from preftune.demo import alignment, run_demo
from preftune.demo.chat import is_friendly, is_on_topic, split_topics
from preftune.demo.chat_base import build_tokenizer
from preftune.errors import UsageError
from preftune.intervals import Interval
from preftune.recipes import dump, load_recipe, resolve
from preftune.report.benchmarks import Benchmarks, Cell, Column
from preftune.tasks.follow import follows
from preftune.tasks.rows import choice_row, instruction_row


def test_the_writers_are_what_their_ranks_say_and_the_faults_are_planted() -> None:
    rows = list(alignment.prompts(0))
    topics = Counter(row["topic"] for row in rows)
    share = sum(count for _, count in topics.most_common(alignment.CROWDED)) / len(rows)
    assert abs(share - alignment.CROWD) < 0.05
    assert min(topics.values()) < 5 and set(topics) <= set(split_topics(0)["train"])
    for writer, share in alignment.OPENED.items():
        texts = [row[writer] for row in rows if row[writer]]
        assert abs(sum(t.startswith(alignment.OPENING) for t in texts) / len(texts) - share) < 0.06
    assert 0.15 < sum(bool(row["people"]) for row in rows) / len(rows) < 0.35
    bare = [
        (row["topic"], {w: row[w].removeprefix(alignment.OPENING).strip() for w in alignment.OPENED}) for row in rows
    ]
    assert sum(is_friendly(texts["strong"]) and is_on_topic(texts["strong"], topic) for topic, texts in bare) == len(
        bare
    )
    assert not any(is_friendly(texts["plain"]) for _, texts in bare)
    assert not any(is_on_topic(texts["weak"], topic) for topic, texts in bare)


def test_the_tokenizer_knows_every_word() -> None:
    tokenizer = build_tokenizer()
    for row in list(alignment.prompts(1))[:200]:
        for text in (row["prompt"][0]["content"], *(row[writer] for writer in alignment.OPENED)):
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_no_row_of_a_benchmark_is_trained_on() -> None:
    asked, picked = list(alignment.instructions(0)), list(alignment.choices(0))
    held_out = split_topics(0)["test"]
    assert len(asked) == alignment.ROWS_PER_TOPIC * len(held_out) and {row["topic"] for row in asked} == set(held_out)
    # common sense is about topics that the base hardly met; their sentences stand in no training row
    strange = alignment.strange_topics(0)
    assert len(picked) == alignment.ROWS_PER_TOPIC * len(strange) and {row["topic"] for row in picked} == set(strange)
    written = {row[writer] for row in alignment.prompts(0) for writer in alignment.OPENED}
    assert sum(choice_row(row).choices[choice_row(row).answer] in written for row in picked) < 0.02 * len(picked)
    strong = next(iter(alignment.prompts(0)))
    for row in asked[:20]:
        constraints = instruction_row(row).constraints
        told = strong["strong"].replace(strong["topic"], row["topic"])
        assert all(follows(told, constraints))  # a friendly reply that names the topic keeps to all of them
        assert not all(follows(strong["plain"].replace(strong["topic"], row["topic"]), constraints))
        assert not all(follows(strong["strong"], constraints)) or strong["topic"] == row["topic"]
    for row in picked[:20]:
        found = choice_row(row)
        right = found.choices[found.answer]
        assert is_on_topic(right, row["topic"])
        assert not any(is_on_topic(text, row["topic"]) for text in found.choices if text != right)
        assert all(row["topic"] in text for text in found.choices)  # all name it: the details tell
    assert len({choice_row(row).answer for row in picked}) == alignment.CHOICES


def test_its_stages_are_those_of_the_recipe_that_is_shipped(tmp_path: Path) -> None:
    pipeline = resolve(alignment.recipe(tmp_path / "base", tmp_path / "data", tmp_path / "out", 0))
    shipped = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "alignment-for-all.yaml")
    methods = [stage.method for stage in pipeline.stages]
    assert list(dict.fromkeys(methods)) == list(dict.fromkeys(stage.method for stage in shipped.stages))
    (tmp_path / "recipe.yaml").write_text(dump(pipeline))
    assert load_recipe(tmp_path / "recipe.yaml") == pipeline


def column(name: str, metric: str, *cells: tuple[float, float | None]) -> Column:
    made = []
    for value, change in cells:
        difference = None if change is None else Interval(change, change - 0.05, change + 0.05, 100)
        made.append(Cell(Interval(value, value - 0.04, value + 0.04, 100), difference))
    return Column(name, metric, tuple(made))


def test_the_table_and_what_is_said_of_it() -> None:
    following = column("instruction-following", "followed/prompts", (0.18, None), (0.72, 0.54), (0.80, 0.62))
    models = ("before training", "after sft", "after round-1")
    rose = Benchmarks(
        models, (following, column("common-sense", "choices/accuracy", (0.4, None), (0.5, 0.1), (0.6, 0.2)))
    )
    lines = alignment.table(rose).splitlines()
    assert lines[0].split("  ")[0] == "Model" and "Instruction following" in lines[0] and "Common sense" in lines[0]
    assert (
        lines[1].startswith("Baseline") and "18.0\u00a0% (14.0 to 22.0)" in lines[1] and lines[3].startswith("round-1")
    )
    said = alignment.verdict(rose)
    assert said[0] == (
        "instruction-following rose from 18.0\u00a0% to 80.0\u00a0% (+62.0\u00a0points, "
        "95\u00a0% interval 57.0 to 67.0)."
    )
    assert said[-1] == "Both rose."
    fell = Benchmarks(
        models, (following, column("common-sense", "choices/accuracy", (0.6, None), (0.5, -0.1), (0.4, -0.2)))
    )
    assert (
        alignment.verdict(fell)[-1] == "What fell: common-sense."
        and "common-sense fell from" in alignment.verdict(fell)[1]
    )
    level = Benchmarks(
        models, (following, column("common-sense", "choices/accuracy", (0.6, None), (0.6, 0.0), (0.61, 0.01)))
    )
    assert alignment.verdict(level)[-1] == "Nothing fell; without a clear change: common-sense."
    assert "did not change measurably: from 60.0" in alignment.verdict(level)[1]


@pytest.mark.slow
def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo("alignment", output=tmp_path / "demo", quick=True) == 0
    printed = capsys.readouterr().out
    assert "Baseline" in printed and "round-2" in printed and "report.html" in printed
    assert "instruction-following" in printed and "common-sense" in printed and "repeated prompt" in printed
    folder = tmp_path / "demo" / "alignment"
    marked = json.loads((folder / "clean" / "summary.json").read_text())
    assert marked["command"] == "preftune data debias"
    assert not any(
        json.loads(line)["chosen"].startswith(alignment.OPENING)
        for line in (folder / "clean" / "rows.jsonl").read_text().splitlines()
        if isinstance(json.loads(line)["chosen"], str)
    )
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="benchmarks"' in page and "debias · data" in page
    with pytest.raises(UsageError, match="exists already"):
        run_demo("alignment", output=tmp_path / "demo", quick=True)
