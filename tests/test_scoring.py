"""Scoring a data set: measures worked out by hand, RewardBench's weights, and what is written for each row."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Strict
from preftune.errors import DataError, ModelError, UsageError
from preftune.intervals import auc_interval, mean_interval
from preftune.scoring import ScoreConfig, ScoredRow, score, summarize
from preftune.scoring import run as scoring_run
from preftune.scoring.rewardbench import SECTIONS, rewardbench
from tests import tiny, tinyreward

torch.set_num_threads(1)


def row(scores: list[float], given: list[float], *, prompt: int = 0, **fields: Any) -> ScoredRow:
    lengths = tuple(fields.pop("lengths", [1] * len(scores)))
    return ScoredRow("rows.jsonl:1", prompt, tuple(scores), tuple(scores), lengths, tuple(given), **fields)


# ------------------------------------------------------------------------------------------------- measures


def test_accuracy_and_margin_by_hand() -> None:
    # Pairs: 3 > 1 won; 0 > 2 lost; 1 = 1 a tie. Accuracy (1 + 0 + ½)/3; margins 2, −2, 0.
    found = summarize(
        [
            row([3, 1], [1, 0], prompt=0),
            row([0, 2], [1, 0], prompt=1),
            row([1, 1], [1, 0], prompt=2),
        ]
    )
    assert (found.rows, found.prompts, found.pairs) == (3, 3, 3)
    assert found.accuracy is not None and found.margin is not None
    assert found.accuracy.value == pytest.approx(0.5)
    # mean 0, sd 2, t(2) = 4.302653: half 4.302653·2/sqrt(3) = 4.968276
    assert (found.margin.value, found.margin.n) == (0.0, 3)
    assert found.margin.high == pytest.approx(4.968276, abs=1e-5)
    assert found.auc is None  # chosen and rejected are not labels


def test_pairs_without_ties_have_a_share_s_interval() -> None:
    found = summarize([row([1, 0], [1, 0], prompt=n) for n in range(7)] + [row([0, 1], [1, 0], prompt=9)] * 1)
    assert found.accuracy == mean_interval([1] * 7 + [0])


def test_the_prompt_is_the_unit() -> None:
    """Ranks 2 > 1 > 0: three pairs in one row count once, and so do two rows of one prompt."""
    ranked = row([5, 3, 4], [2, 1, 0], prompt=0)  # 5 > 3 and 5 > 4 won, 3 > 4 lost: 2/3
    again = row([0, 1], [1, 0], prompt=0)  # lost; the prompt has (2/3 + 0)/2 = 1/3
    other = row([9, 8], [1, 0], prompt=1)
    found = summarize([ranked, again, other])
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.n) == (pytest.approx((1 / 3 + 1) / 2), 2)
    assert (found.pairs, found.prompts, found.rows, found.completions) == (5, 2, 3, 7)
    assert found.accuracy.low >= 0.0 and found.accuracy.high <= 1.0
    # score: means 4 and ½ of prompt 0 → 2.25, and 8.5 of prompt 1
    assert found.score.value == pytest.approx((2.25 + 8.5) / 2)


def test_accuracy_by_length_and_source() -> None:
    rows = [
        row([2, 1], [1, 0], prompt=0, lengths=[5, 3], sources=("human", "small")),  # longer, won
        row([0, 1], [1, 0], prompt=1, lengths=[5, 3], sources=("human", "small")),  # longer, lost
        row([2, 1], [1, 0], prompt=2, lengths=[3, 5], sources=("large", "small")),  # shorter, won
        row([1, 1], [1, 0], prompt=3, lengths=[4, 4], sources=("", "small")),  # equal, tie, no author
    ]
    found = summarize(rows)
    assert {k: (v.value, v.n) for k, v in found.by_length.items()} == {
        "longer": (0.5, 2),
        "shorter": (1.0, 1),
        "equal": (0.5, 1),
    }
    assert {k: (v.value, v.n) for k, v in found.by_source.items()} == {
        "human over small": (0.5, 2),
        "large over small": (1.0, 1),
    }


def test_length_correlation_by_hand() -> None:
    # Lengths 1, 2, 3, 4 and scores 1, 3, 2, 4: centred products 2.25 + (−.5)(.5) + (.5)(−.5) + 2.25 = 4, both sums of
    # squares 5: 0.8. Within the two rows: lengths ∓½, ∓½, scores ∓1, ∓1: exactly 1.
    found = summarize([row([1, 3], [], prompt=0, lengths=[1, 2]), row([2, 4], [], prompt=1, lengths=[3, 4])])
    assert found.length_correlation == pytest.approx(0.8)
    assert found.length_correlation_within == pytest.approx(1.0)
    assert found.accuracy is None and found.margin is None and found.by_length == {}
    assert summarize([row([1, 3, 2], [], lengths=[4, 4, 4])]).length_correlation is None


def test_labels_have_an_area_with_prompts_as_clusters() -> None:
    rows = [row([3], [1], prompt=0), row([1], [0], prompt=0), row([2], [1], prompt=1), row([2.5], [0], prompt=1)]
    found = summarize(rows)
    assert found.auc == auc_interval([3, 1, 2, 2.5], [True, False, True, False], [0, 0, 1, 1])
    assert found.accuracy is None  # no row holds two completions
    several = summarize([row([3, 1, 2], [1, 0, 1], prompt=0), row([1, 2], [1, 0], prompt=1)])
    assert several.auc is not None and several.accuracy is not None


@pytest.mark.parametrize("given", [[1.0, 1.0], [0.5, 1.0], [3.0, 1.0]])
def test_no_area_without_both_labels(given: list[float]) -> None:
    assert summarize([row([1, 2], given)]).auc is None


def test_subsets_count_rows() -> None:
    rows = [row([1, 0], [1, 0], subset="a"), row([0, 1], [1, 0], subset="a"), row([1, 0], [1, 0], subset="b")]
    found = summarize(rows)
    assert {k: (v.value, v.n) for k, v in found.by_subset.items()} == {"a": (0.5, 2), "b": (1.0, 1)}
    assert found.rewardbench is None


# ---------------------------------------------------------------------------------------------- RewardBench


def test_weights_are_those_of_the_benchmark() -> None:
    totals = {name: sum(weights.values()) for name, weights in SECTIONS.items()}
    # 2985 rows in all, of which math-prm has 447 and is counted as 984
    assert sum(totals.values()) == 2985 - 447 + 984
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    reasoning = SECTIONS["Reasoning"]
    assert reasoning["math-prm"] == sum(n for name, n in reasoning.items() if name.startswith("hep-"))


def bench_rows() -> list[ScoredRow]:
    """Subset → rows won of rows."""
    won = {
        "alpacaeval-easy": (1, 2), "mt-bench-med": (2, 2),  # Chat: (0.5·100 + 1·40) / 140 = 0.642857
        "mt-bench-hard": (0, 1), "llmbar-natural": (1, 1),  # Chat Hard: 100 / 137 = 0.729927
        "donotanswer": (3, 4), "xstest-should-refuse": (1, 2),  # Safety: (0.75·136 + 0.5·154) / 290 = 0.617241
        "math-prm": (1, 4), "hep-cpp": (1, 1), "hep-go": (0, 1),  # Reasoning: (0.25·984 + 164) / 1312 = 0.3125
    }  # fmt: skip
    rows: list[ScoredRow] = []
    for subset, (good, count) in won.items():
        rows += [row([1, 0] if n < good else [0, 1], [1, 0], prompt=len(rows) + n, subset=subset) for n in range(count)]
    return rows


def test_sections_by_hand() -> None:
    found = summarize(bench_rows()).rewardbench
    assert found is not None and found.overall is not None
    expected = {"Chat": 90 / 140, "Chat Hard": 100 / 137, "Safety": 179 / 290, "Reasoning": 410 / 1312}
    assert {name: value.value for name, value in found.sections.items()} == pytest.approx(expected)
    assert found.overall.value == pytest.approx(sum(expected.values()) / 4)
    assert found.overall.low < found.overall.value < found.overall.high
    assert "hep-rust" in found.missing and "math-prm" not in found.missing
    # Chat's lower end: ½ of 2 rows has Wilson's low 0.0945312, 2 of 2 has 2/(2 + z²) = 0.3423802.
    low = 90 / 140 - math.hypot(100 / 140 * (0.5 - 0.0945312), 40 / 140 * (1 - 0.3423802))
    assert found.sections["Chat"].low == pytest.approx(low, abs=1e-6)


def test_a_section_without_rows_leaves_no_overall_score() -> None:
    found = summarize([r for r in bench_rows() if r.subset != "math-prm" and not str(r.subset).startswith("hep")])
    assert found.rewardbench is not None
    assert set(found.rewardbench.sections) == {"Chat", "Chat Hard", "Safety"}
    assert found.rewardbench.overall is None
    assert "needs all sections" in str(found)


def test_other_subsets_are_not_rewardbench() -> None:
    found = summarize([*bench_rows(), row([1, 0], [1, 0], subset="mine")])
    assert found.rewardbench is None
    assert "no RewardBench sections: it has no subset 'mine'" in str(found)
    assert "RewardBench" not in str(summarize([row([1, 0], [1, 0], subset="mine")]))  # nobody asked for it
    assert summarize([*bench_rows(), row([1, 0], [1, 0])]).rewardbench is None
    assert rewardbench({}) is None


# --------------------------------------------------------------------------------------------- scoring rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinyreward.save(tmp_path_factory.mktemp("scoring") / "rm", normalization=(0.5, 2.0))


def config(model: Path, data: Any, **fields: Any) -> ScoreConfig:
    return ScoreConfig.model_validate({"model": {"path": str(model)}, "data": data, **fields})


def source(path: Path, rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"path": str(tiny.write(path, rows)), **fields}


FORMATS: dict[str, tuple[dict[str, Any], list[str], list[float]]] = {
    "prompt-completion": ({"prompt": "1+2=", "completion": "3"}, ["1+2=3"], []),
    "preference": ({"prompt": "1+2=", "chosen": "3", "rejected": "4"}, ["1+2=3", "1+2=4"], [1.0, 0.0]),
    "unpaired": ({"prompt": "1+2=", "completion": "4", "label": False}, ["1+2=4"], [0.0]),
    "ranked": (
        {"prompt": "1+2=", "responses": ["3", "4", "x"], "scores": [0.9, 0.2, 0.1]},
        ["1+2=3", "1+2=4", "1+2=x"],
        [0.9, 0.2, 0.1],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_scored(name: str, model: Path, tmp_path: Path) -> None:
    values, texts, given = FORMATS[name]
    found = score(config(model, source(tmp_path / "rows.jsonl", [values])))
    (only,) = found.rows
    raw = [tinyreward.plain_score(model, f"{text}<eos>") for text in texts]
    assert list(only.raw) == pytest.approx(raw, abs=1e-5)
    assert list(only.scores) == pytest.approx([(value - 0.5) / 2.0 for value in raw], abs=1e-5)
    assert list(only.given) == given
    assert only.lengths == tuple(len(text) - 4 + 1 for text in texts)


def test_conversations_are_scored_through_the_template(tmp_path: Path) -> None:
    chat = tinyreward.save(tmp_path / "chat", chat=True)
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    found = score(config(chat, source(tmp_path / "rows.jsonl", [{"messages": said}])))
    assert found.rows[0].raw == pytest.approx(
        [tinyreward.plain_score(chat, "user: hi<eos>assistant: ho<eos>")], abs=1e-5
    )
    plain = source(tmp_path / "plain.jsonl", [{"prompt": "hi", "completion": "ho"}], chat=True)
    assert score(config(chat, plain)).rows[0].raw == found.rows[0].raw


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "x" * (n % 5 + 1), "note": n} for n in range(count)]


def test_lines_stand_in_the_data_s_order(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, several chunks and two sources: nothing is mixed, and the values do not depend on it."""
    monkeypatch.setattr(scoring_run, "CHUNK_BATCHES", 2)
    sources = [source(tmp_path / "a.jsonl", rows_of(9)), source(tmp_path / "b.jsonl", rows_of(4))]
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    score(config(model, sources, max_tokens_per_batch=16), output=small)
    found = score(config(model, sources), output=large)
    where = [f"{tmp_path / name}.jsonl:{n + 1}" for name, count in (("a", 9), ("b", 4)) for n in range(count)]
    lines = tiny.lines(small)
    assert [line["where"] for line in lines] == where == [one.where for one in found.rows]
    assert set(lines[0]) == {"where", "scores", "raw", "lengths"}
    for mine, other in zip(lines, tiny.lines(large), strict=True):
        assert mine["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert lines[0]["lengths"] == [2, 2] and lines[4]["lengths"] == [2, 6]
    assert (found.summary.rows, found.summary.prompts) == (13, 9)  # b repeats prompts of a
    assert not list(tmp_path.glob("*.partial"))


def test_columns_come_when_asked_for(model: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    score(config(model, source(tmp_path / "a.jsonl", rows_of(1))), output=stream, columns=True)
    line = json.loads(stream.getvalue())
    assert (line["prompt"], line["completions"], line["given"]) == ("0+1=", ["1", "x"], [1.0, 0.0])
    assert line["columns"] == {"note": 0}


def test_a_row_that_is_too_long_is_an_error_or_counted(model: Path, tmp_path: Path) -> None:
    rows = [rows_of(1)[0], {"prompt": "a" * 130, "chosen": "b", "rejected": "c"}]
    data = source(tmp_path / "a.jsonl", rows)
    output = tmp_path / "out.jsonl"
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: prompt and completion are 132 tokens, and the reward model has 128"
    ):
        score(config(model, data), output=output)
    assert not output.exists()
    found = score(config(model, data, on_too_long="skip"), output=output)
    assert (found.summary.rows, found.summary.skipped) == (1, 1)
    second = tiny.lines(output)[1]
    assert second["scores"] is None and "132 tokens" in second["problem"]
    with pytest.raises(DataError, match="all 1 rows were skipped"):
        score(config(model, source(tmp_path / "b.jsonl", rows[1:]), on_too_long="skip"))


def test_rows_without_completions_are_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: the row has no completion to score"):
        score(config(model, source(tmp_path / "a.jsonl", [{"prompt": "1+2="}])))


def test_normalisation_is_a_choice(model: Path, tmp_path: Path) -> None:
    data = source(tmp_path / "a.jsonl", rows_of(2))
    assert score(config(model, data)).normalization == (0.5, 2.0)
    off = score(config(model, data, normalize=False))
    assert off.normalization is None and off.rows[0].scores == off.rows[0].raw
    bare = tinyreward.save(tmp_path / "bare")
    with pytest.raises(ModelError, match="carries no normalisation"):
        score(config(bare, data, normalize=True))


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.jsonl"
    taken.write_text("mine")
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        score(config(model, source(tmp_path / "a.jsonl", rows_of(1))), output=taken)
    assert taken.read_text() == "mine"
    with pytest.raises(UsageError, match="there is no folder"):
        score(config(model, source(tmp_path / "a.jsonl", rows_of(1))), output=tmp_path / "no" / "out.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"path": "m", "lora": {"r": 4}}},
        {"tokens": {"max_prompt_tokens": 9}},
        {"data": [{"path": "d", "weight": 2.0}]},
    ],
)
def test_settings_that_nothing_would_read_are_refused(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ValueError, match=rf"{name}\.\w+ has no meaning for scoring"):
        ScoreConfig.model_validate({"model": {"path": "m"}, "data": {"path": "d"}, **fields})


def test_what_is_unread_exists_in_the_recipe() -> None:
    from preftune.config import ModelConfig, SourceConfig, TokensConfig
    from preftune.scoring.settings import UNREAD

    sections: dict[str, type[Strict]] = {"model": ModelConfig, "data": SourceConfig, "tokens": TokensConfig}
    for name in UNREAD:
        section, field = name.split(".")
        assert field in sections[section].model_fields
