"""The GMPO demo: its tokenizer and texts, the shuffled control, and a quick run in which every part works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from preftune.config import Recipe
from preftune.demo import gmpo
from preftune.demo.base import build_tokenizer
from preftune.errors import UsageError
from preftune.records import Completion, Group, Prompt
from preftune.rewards.critic import Critic, Judged
from preftune.rewards.critic_text import parse_critique


def test_the_tokenizer_is_the_arithmetic_one_with_pieces_behind() -> None:
    plain, longer = build_tokenizer(), build_tokenizer(gmpo.tokenizer_pieces())
    assert len(longer) > len(plain)
    ids = longer.get_vocab()
    assert all(ids[piece] == place for piece, place in plain.get_vocab().items())
    for row in islice(gmpo.base_texts(0), 300):
        for text in row.values():
            found = longer(text).input_ids
            assert longer.unk_token_id not in found
            assert longer.decode(found) == text


def test_the_bases_critiques_know_nothing_of_right_and_wrong() -> None:
    rows = list(islice(gmpo.base_texts(0), 4000))
    critiques = [row for row in rows if row["prompt"].endswith(gmpo.CHECK)]
    assert 0.2 < len(critiques) / len(rows) < 0.3
    scores = []
    for row in critiques:
        found = parse_critique(row["completion"])
        assert found is not None
        scores.append(found[1])
    assert set(scores) == {0, 10} and 0.45 < sum(score == 10 for score in scores) / len(scores) < 0.55


def test_the_recipe_trains_on_the_critics_scores_alone(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(gmpo.gmpo_recipe(tmp_path, tmp_path, tmp_path, 0))
    assert recipe.gmpo.critic.kind == "generative" and recipe.gmpo.critic.reference is None
    assert recipe.model.lora is not None


def test_the_control_deals_the_scores_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Fake:
        def score(self, groups: Any, *, step: int) -> Judged:
            return Judged(tuple(groups), (), (), {}, ())

    scores = [n / 20 for n in range(20)]
    groups = [
        Group(Prompt((1,), "q"), tuple(Completion((1,), (True,), score=s) for s in scores[k : k + 4]))
        for k in range(0, 20, 4)
    ]
    monkeypatch.setattr(Critic, "score", Fake.score)
    with gmpo.shuffled_scores(0):
        dealt, again, later = (
            [s for g in Critic.score(Fake(), groups, step=n).groups for s in g.scores]  # type: ignore[arg-type]
            for n in (1, 1, 2)
        )
    assert sorted(dealt) == scores and dealt != scores and dealt == again != later
    assert Critic.score is Fake.score


@pytest.mark.slow
def test_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gmpo.run(output=tmp_path / "demo", quick=True) == 0
    out = capsys.readouterr().out
    assert "right answers" in out and "right answer above a wrong one" in out
    run = tmp_path / "demo" / "gmpo"
    assert (run / "report.html").exists() and list((run / "critic").rglob("adapter_model.safetensors"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "finished"
    assert any("cold start of 10 steps" in note for note in summary["notes"])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = [sample for sample in samples if sample["split"] == "train"]
    assert drawn and all("explanation" in sample["notes"] for sample in drawn)
    with pytest.raises(UsageError, match="exists already"):
        gmpo.run(output=tmp_path / "demo", quick=True)
