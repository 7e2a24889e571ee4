"""`preftune data pairs`: pairs worked out by hand, and on the real tiers of GSM8K."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.cli.main import main
from preftune.config import SourceConfig
from preftune.curation.near import FEW
from preftune.curation.pairs import Pairs, PairsConfig, pairs
from preftune.curation.pairs.page import MEANING
from preftune.data import load_examples
from preftune.errors import DataError, UsageError
from tests import tiny

SOLUTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "solutions.jsonl"
GSM8K: dict[str, Any] = {
    "path": str(SOLUTIONS),
    "columns": {"prompt": {"template": "{question}\n", "strip": False}},
    "responses": {
        "from": "responses", "text": "text", "score": "correct", "source": "model",
        "also": [{"column": "reference", "score": 1, "source": "human"}],
    },
}  # fmt: skip
needs_gsm8k = pytest.mark.skipif(not SOLUTIONS.exists(), reason="the data of GSM8K are not here")

HUMAN, BEST, WEAK = "an apple fell from a tree", "gravity pulls every mass", "things are just like that"
"""Texts without a word in common."""


def answers(**ranks: tuple[int, str]) -> list[dict[str, Any]]:
    return [{"text": text, "rank": rank, "source": name} for name, (rank, text) in ranks.items()]


ROW = {"prompt": "Why?", "responses": answers(human=(1, HUMAN), best=(2, BEST), weak=(4, WEAK)), "topic": "physics"}


def make(tmp_path: Path, rows: Iterable[Mapping[str, Any]], name: str = "out", **config: Any) -> Pairs:
    source = {"path": str(tiny.write(tmp_path / f"{name}.jsonl", rows)), **config.pop("source", {})}
    return pairs(PairsConfig.model_validate({"data": [source], **config}), tmp_path / name)


def written(found: Pairs) -> list[dict[str, Any]]:
    return tiny.lines(found.folder / "rows.jsonl")


def decided(found: Pairs) -> list[dict[str, Any]]:
    return tiny.lines(found.folder / "decisions.jsonl")


def sides(found: Pairs) -> set[tuple[str, str]]:
    """(chosen tier, rejected tier) of the kept pairs."""
    return {(one["chosen"], one["rejected"]) for one in decided(found) if one["kept"]}


def whys(found: Pairs) -> Counter[str]:
    return Counter(one.get("why", "kept") for one in decided(found))


# ------------------------------------------------------------------------------------------------- which is better


def test_every_better_answer_over_every_worse_one_by_hand(tmp_path: Path) -> None:
    found = make(tmp_path, [ROW], shuffle=False)
    assert written(found) == [
        {"topic": "physics", "prompt": "Why?", "chosen": HUMAN, "rejected": BEST, "margin": 1.0},
        {"topic": "physics", "prompt": "Why?", "chosen": HUMAN, "rejected": WEAK, "margin": 3.0},
        {"topic": "physics", "prompt": "Why?", "chosen": BEST, "rejected": WEAK, "margin": 2.0},
    ]
    where = f"{tmp_path}/out.jsonl:1"
    assert decided(found)[1] == {
        "where": where, "kept": True, "chosen": "human", "rejected": "weak", "answers": [0, 2],
        "lengths": [len(HUMAN), len(WEAK)], "margin": 3.0, "similarity": 0.0, "line": 2,
    }  # fmt: skip
    assert (found.kept, found.prompts, found.ordered, found.ordered_prompts) == (3, 1, 3, 1)


def test_several_answers_of_a_tier_are_ties_with_each_other(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": [
        {"text": "one two three", "score": 0.5, "source": "a"}, {"text": "four five six", "score": 0.5, "source": "b"},
        {"text": "seven eight nine", "score": 0.9, "source": "a"},
    ]}  # fmt: skip
    found = make(tmp_path, [row])
    assert whys(found) == {"kept": 2, "tie": 1}
    assert {(r["chosen"], r["rejected"]) for r in written(found)} == {
        ("seven eight nine", "one two three"), ("seven eight nine", "four five six"),
    }  # fmt: skip
    with pytest.raises(DataError, match=r"again.jsonl:1: answers 0 and 1 \(a and b\) are a tie"):
        make(tmp_path, [row], "again", ties="error")


def test_scores_that_are_close_are_ties_and_margins_can_be_places(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a a a", "b b b", "c c c", "d d d"], "scores": [9.0, 8.5, 2.0, 9.0]}
    found = make(tmp_path, [row], tie_distance=0.5, margin="places", margin_scale=0.5)
    assert whys(found) == {"kept": 3, "tie": 3}
    assert {(r["chosen"][0], r["rejected"][0], r["margin"]) for r in written(found)} == {
        ("a", "c", 1.0), ("d", "c", 1.0), ("b", "c", 0.5),
    }  # fmt: skip
    plain = make(tmp_path, [row], "plain", margin_scale=2)
    assert {(r["chosen"][0], r["rejected"][0], r["margin"]) for r in written(plain)} == {
        ("a", "b", 1.0), ("a", "c", 14.0), ("b", "c", 13.0), ("d", "b", 1.0), ("d", "c", 14.0),
    }  # fmt: skip
    bare = make(tmp_path, [row], "bare", margin="none")
    assert all(set(r) == {"prompt", "chosen", "rejected"} for r in written(bare))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (["human"], ["weak"], {("human", "weak")}),
        (["human", "best"], ["weak"], {("human", "weak"), ("best", "weak")}),
        ([1], [2, 4], {("human", "best"), ("human", "weak")}),
        ([2], ["human", 4], {("best", "human"), ("best", "weak")}),  # as given, whatever the ranks say
    ],
)
def test_given_tiers_are_multiplied(
    tmp_path: Path, chosen: list[Any], rejected: list[Any], expected: set[tuple[str, str]]
) -> None:
    found = make(tmp_path, [ROW], chosen_tiers=chosen, rejected_tiers=rejected)
    assert sides(found) == expected and found.ordered == len(expected) == len(decided(found))
    against = {(one["chosen"], one["rejected"]) for one in decided(found) if one.get("against_the_data")}
    assert against == expected & {("best", "human")}
    assert all(row["margin"] == (0.0 if row["rejected"] == HUMAN else row["margin"]) for row in written(found))
    assert any("against the data's own" in warning for warning in found.warnings) == bool(against)


def test_tiers_can_be_ranked_by_name_and_can_be_made_to_agree_with_scores(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": [
        {"text": "right and short", "score": 1, "source": "weak"},
        {"text": "a wrong proof", "score": 0, "source": "best"},
        {"text": "some other truth", "score": 1, "source": "human"},
        {"text": "no one knows", "score": 0, "source": "x"},
    ]}  # fmt: skip
    ranks = {"human": 1, "best": 2, "weak": 5}
    found = make(tmp_path, [row], tiers=ranks)
    assert sides(found) == {("human", "best"), ("human", "weak"), ("best", "weak")}
    assert sorted(r["margin"] for r in written(found)) == [1.0, 3.0, 4.0]
    assert whys(found) == {"kept": 3, "tier not named": 3}
    assert any("x take no part" in warning for warning in found.warnings)
    agreed = make(tmp_path, [row], "agreed", tiers=ranks, agree=True)
    assert sides(agreed) == {("human", "best")}
    assert whys(agreed) == {"kept": 1, "the data disagree": 2, "tier not named": 3}


@needs_gsm8k
def test_right_beats_wrong_on_gsm8k(tmp_path: Path) -> None:
    found = pairs(PairsConfig.model_validate({"data": [GSM8K]}), tmp_path / "out")
    assert (found.ordered, found.ordered_prompts) == (2804, 572)
    counts = whys(found)
    assert counts["kept"] == found.kept == 2804 - sum(n for why, n in counts.items() if why not in ("kept", "tie"))
    assert sum(counts.values()) == 660 * 10
    rows = written(found)
    assert {*rows[0]} == {"question", "prompt", "chosen", "rejected", "margin"}  # the reference would tell the human
    correct = {
        (row["question"], answer["text"]): answer["correct"]
        for row in tiny.lines(SOLUTIONS)
        for answer in row["responses"]
    } | {(row["question"], row["reference"]): True for row in tiny.lines(SOLUTIONS)}
    assert all(correct[r["question"], r["chosen"]] > correct[r["question"], r["rejected"]] for r in rows)
    human = sum(kind.ordered for (chosen, _), kind in found.tally.kinds.items() if chosen == "human")
    assert human == sum(not answer["correct"] for row in tiny.lines(SOLUTIONS) for answer in row["responses"])


@needs_gsm8k
@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (["human"], ["6b_finetuning"], 100),
        (["human", "175b_verification"], ["6b_finetuning", "6b_verification"], 4 * 100),
        (["175b_finetuning"], ["6b_finetuning", "6b_verification", "175b_verification"], 3 * 100),
    ],
)
def test_given_tiers_on_gsm8k(tmp_path: Path, chosen: list[str], rejected: list[str], expected: int) -> None:
    config = {"data": [{**GSM8K, "limit": 100}], "chosen_tiers": chosen, "rejected_tiers": rejected}
    assert pairs(PairsConfig.model_validate(config), tmp_path / "out").ordered == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 9))
def test_counts_are_those_of_the_product(tmp_path_factory: Any, ranks: list[list[int]], seed: int) -> None:
    rows = [
        {"prompt": f"q{n}", "responses": [{"text": f"text {n} {k} of rank {r}", "rank": r} for k, r in enumerate(row)]}
        for n, row in enumerate(ranks)
    ]
    better = [sum(a < b for a in row for b in row) for row in ranks]
    folder = tmp_path_factory.mktemp("product")
    if not sum(better):
        with pytest.raises(DataError, match="no pair is left"):
            make(folder, rows)
        return
    found = make(folder, rows, seed=seed, group="rows")
    assert (found.kept, found.prompts) == (sum(better), sum(count > 0 for count in better))
    for row in written(found):
        chosen, rejected = int(row["chosen"][-1]), int(row["rejected"][-1])
        assert rejected - chosen == row["margin"] > 0
    singles = sum(len(row) == 1 for row in ranks)
    assert len(decided(found)) == sum(len(row) * (len(row) - 1) // 2 for row in ranks) + singles


# ------------------------------------------------------------------------------------------------- what is left out

LONG = " ".join(f"w{n}" for n in range(60))


def test_sides_that_are_equal_or_nearly_equal_are_dropped(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": answers(
        human=(1, LONG), best=(2, f"  {LONG}\n"), strong=(3, LONG.replace("w59", "w0")), weak=(4, WEAK),
    )}  # fmt: skip
    found = make(tmp_path, [row])
    # the first three are one text; so three of six pairs have the same sides, and of the others one is enough
    assert whys(found) == {"kept": 1, "equal": 1, "nearly equal": 2, "like another pair": 2}
    assert sides(found) == {("human", "weak")}
    assert [one["like"] for one in decided(found) if one.get("why") == "like another pair"] == [[0, 3], [0, 3]]
    near = [one["similarity"] for one in decided(found) if one.get("why") == "nearly equal"]
    assert near == pytest.approx([57 / 59] * 2, abs=1e-4)  # 58 shingles each, one of them not shared
    loose = make(tmp_path, [row], "loose", near={"threshold": 0.99})
    assert whys(loose) == {"kept": 3, "equal": 1, "like another pair": 2}
    off = make(tmp_path, [row], "off", near={"threshold": None})
    assert whys(off) == {"kept": 3, "equal": 1, "like another pair": 2}


def test_a_wrong_number_can_be_what_is_to_be_learnt(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": answers(human=(1, f"{LONG} is 18"), weak=(2, f"{LONG} is 19"))}
    with pytest.raises(DataError, match=r"no pair is left \(1 nearly equal\)"):
        make(tmp_path, [row])
    assert make(tmp_path, [row], "kept", near={"numbers": True}).kept == 1


def test_a_pair_that_came_before_is_dropped_either_way_round(tmp_path: Path) -> None:
    first = {"prompt": "q", "responses": answers(human=(1, HUMAN), weak=(2, WEAK))}
    again = {"prompt": " q", "responses": answers(best=(1, HUMAN), weak=(5, f"{WEAK} "))}
    turned = {"prompt": "q", "responses": answers(weak=(1, WEAK), human=(2, HUMAN))}
    other = {"prompt": "another q", "responses": answers(weak=(1, WEAK), human=(2, HUMAN))}
    found = make(tmp_path, [first, again, turned, other])
    assert whys(found) == {"kept": 2, "came before": 1, "came before the other way round": 1}
    assert any("contradict themselves" in warning for warning in found.warnings)


def test_lengths_can_be_kept_close(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": answers(human=(1, "x" * 30), best=(2, "y" * 15), weak=(3, "z" * 14))}
    found = make(tmp_path, [row], max_length_ratio=2)
    assert sides(found) == {("human", "best"), ("best", "weak")} and whys(found)["length ratio"] == 1


def many(count: int) -> list[dict[str, Any]]:
    """Prompts with one human answer, one strong and three weak ones."""
    return [
        {"prompt": f"q{n}", "responses": [
            {"text": f"human {n} alpha", "rank": 1, "source": "human"},
            {"text": f"strong {n} beta", "rank": 2, "source": "strong"},
            *({"text": f"weak {n} gamma {k}", "rank": 4, "source": "weak"} for k in range(3)),
        ]} for n in range(count)
    ]  # fmt: skip


def test_a_cap_per_prompt_takes_from_each_two_tiers_by_turns(tmp_path: Path) -> None:
    found = make(tmp_path, many(20), max_per_prompt=3)
    assert found.kept == 60 and whys(found) == {"kept": 60, "cap per prompt": 80, "tie": 60}
    per_prompt = Counter((one["where"], one["chosen"], one["rejected"]) for one in decided(found) if one["kept"])
    assert set(per_prompt.values()) == {1}  # one of human over strong, human over weak, strong over weak
    weak = {one["answers"][1] for one in decided(found) if one["kept"] and one["rejected"] == "weak"}
    assert weak == {2, 3, 4}  # which of the weak ones is drawn
    widest = make(tmp_path, many(20), "widest", max_per_prompt=3, prefer="widest")
    assert sides(widest) == {("human", "weak")} and widest.kept == 60
    assert {row["margin"] for row in written(widest)} == {3.0}


def test_a_cap_per_prompt_counts_rows_with_the_same_prompt_together(tmp_path: Path) -> None:
    rows = [{**row, "prompt": "the same"} for row in many(2)]
    assert make(tmp_path, rows, max_per_prompt=4).kept == 4


def test_a_cap_over_all_prompts(tmp_path: Path) -> None:
    found = make(tmp_path, many(20), max_per_tier_pair=12)
    kept = Counter((one["chosen"], one["rejected"]) for one in decided(found) if one["kept"])
    assert kept == {("human", "strong"): 12, ("human", "weak"): 12, ("strong", "weak"): 12}
    assert whys(found)["cap per tier pair"] == 20 * 7 - 36
    where = {one["where"] for one in decided(found) if one["kept"] and one["rejected"] == "strong"}
    assert len(where) == 12  # drawn, not the first twelve
    assert where != {f"{tmp_path}/out.jsonl:{n}" for n in range(1, 13)}


# ------------------------------------------------------------------------------------------------- what is written


def test_order_is_drawn_and_decisions_say_which_line(tmp_path: Path) -> None:
    found, same, other, straight = (
        make(tmp_path, many(10), name, **config)
        for name, config in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"shuffle": False}))
    )
    assert written(found) == written(same) != written(other)
    assert sorted(map(str, written(found))) == sorted(map(str, written(straight))) == sorted(map(str, written(other)))
    prompts = [row["prompt"] for row in written(found)]
    assert prompts != sorted(prompts, key=lambda prompt: int(prompt[1:]))
    rows = written(found)
    kept = [one for one in decided(found) if one["kept"]]
    for one in kept:
        row = rows[one["line"] - 1]
        assert row["chosen"].startswith(one["chosen"]) and row["rejected"].startswith(one["rejected"])
        assert row["prompt"] == f"q{int(one['where'].rpartition(':')[2]) - 1}"
    assert sorted(one["line"] for one in kept) == list(range(1, 71))


def test_rows_tell_nothing_of_who_wrote_what_unless_asked_to(tmp_path: Path) -> None:
    row = {**ROW, "gold": HUMAN, "completion": "left over", "source": "a book"}
    found = make(tmp_path, [row], source={"format": "ranked"})
    assert {*written(found)[0]} == {"topic", "source", "completion_", "prompt", "chosen", "rejected", "margin"}
    assert json.loads((found.folder / "summary.json").read_text())["columns_left_out"] == ["gold"]
    assert "`gold`" not in (page := (found.folder / "report.html").read_text()) and "<code>gold</code>" in page
    told = make(tmp_path, [row], "told", source={"format": "ranked"}, keep_source=True, shuffle=False)
    assert written(told)[0]["gold"] == HUMAN
    assert (written(told)[0]["chosen_model"], written(told)[0]["rejected_model"]) == ("human", "best")
    bare = make(tmp_path, [row], "bare", source={"format": "ranked"}, columns="none")
    assert {*written(bare)[0]} == {"prompt", "chosen", "rejected", "margin"}


def test_the_rows_are_what_training_reads(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}]
    rows = [ROW, {**ROW, "prompt": talk}]
    found = make(tmp_path, rows, shuffle=False, keep_source=True)
    assert found.kept == 6
    loaded = load_examples([SourceConfig(path=str(found.folder / "rows.jsonl"))], seed=0).examples
    assert [example.scores for example in loaded] == [(1.0, 0.0)] * 6
    assert [example.columns["margin"] for example in loaded] == [1.0, 3.0, 2.0] * 2
    assert loaded[0].completions == (HUMAN, BEST) and loaded[0].sources == ("human", "best")
    assert loaded[3].prompt[0].content == "Why?" and loaded[3].completions[0][0].role == "assistant"  # type: ignore[union-attr]


def test_preference_rows_and_labels_become_pairs_too(tmp_path: Path) -> None:
    found = make(tmp_path, [{"prompt": "q", "chosen": HUMAN, "rejected": [BEST, WEAK]}])
    assert {(r["chosen"], r["rejected"]) for r in written(found)} == {(HUMAN, BEST), (HUMAN, WEAK)}
    labels = [{"prompt": "q", "completion": text, "label": good} for text, good in ((BEST, False), (HUMAN, True))]
    joined = make(tmp_path, labels, "labels")
    assert written(joined) == [{"prompt": "q", "chosen": HUMAN, "rejected": BEST, "margin": 1.0}]


# ------------------------------------------------------------------------------------------------- joining


def test_one_file_for_each_tier(tmp_path: Path) -> None:
    files = {
        "human": [("p", HUMAN), ("r", "x")], "strong": [("r", "y"), ("p", BEST)], "weak": [("p", WEAK), ("alone", "z")],
    }  # fmt: skip
    human, strong, weak = (
        tiny.write(tmp_path / f"{name}.jsonl", [{"prompt": p, "completion": c, "id": f"{name} {p}"} for p, c in rows])
        for name, rows in files.items()
    )
    config = {"data": [{"path": str(path)} for path in (human, strong, weak)], "shuffle": False}
    found = pairs(
        PairsConfig.model_validate({**config, "tiers": {"people": 1, "big": 2, "small": 3}}), tmp_path / "out"
    )
    assert [(r["prompt"], r["chosen"], r["rejected"], r["margin"]) for r in written(found)] == [
        ("p", HUMAN, BEST, 1.0), ("p", HUMAN, WEAK, 2.0), ("p", BEST, WEAK, 1.0), ("r", "x", "y", 1.0),
    ]  # fmt: skip
    assert written(found)[0]["id"] == "human p"
    assert sides(found) == {("people", "big"), ("people", "small"), ("big", "small")}
    assert decided(found)[0]["rows"] == [f"{human}:1", f"{strong}:2"]
    assert decided(found)[-1] == {"where": f"{weak}:2", "kept": False, "why": "one answer", "answers": 1}
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "decisions.jsonl", "report.html", "rows.jsonl", "summary.json"
    ]  # fmt: skip
    # without ranks the files' names are the tiers
    named = {**config, "chosen_tiers": ["human"], "rejected_tiers": ["weak", "strong"], "margin": "none"}
    assert pairs(PairsConfig.model_validate(named), tmp_path / "named").ordered == 3
    with pytest.raises(DataError, match=r"human.jsonl:1: .* how good its answers are.*--tiers"):
        pairs(PairsConfig.model_validate(config), tmp_path / "unranked")
    with pytest.raises(DataError, match="neither a rank nor a score, so its pairs have no margin"):
        pairs(PairsConfig.model_validate({**named, "margin": "distance"}), tmp_path / "unmeasured")


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_what_is_there_is_never_touched(tmp_path: Path) -> None:
    found = make(tmp_path, [ROW])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="exists and is not empty"):
        make(tmp_path, [ROW])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert found.folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"chosen_tiers": ["humans"], "rejected_tiers": ["weak"]}, "no answer is of 'humans'; did you mean 'human'"),
        ({"chosen_tiers": ["human"], "rejected_tiers": [7]}, "no answer is of '7'; tiers: best, human, weak"),
        ({"near": {"threshold": 0.01}, "tiers": {"x": 1}}, "no pair is left .3 tier not named"),
    ],
)
def test_tiers_that_are_not_there(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(tmp_path, [ROW], **config)
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    assert make(tmp_path, [ROW]).kept == 3  # what a broken command leaves is no hindrance


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"chosen_tiers": ["a"]}, "give chosen_tiers and rejected_tiers, or neither"),
        ({"chosen_tiers": ["a"], "rejected_tiers": ["b", "a"]}, "'a' is among chosen_tiers and rejected_tiers"),
        ({"agree": True}, "agree compares tiers"),
        ({"tie_distance": 0.5, "tiers": {"a": 1}}, "tie_distance is one of scores, and tiers decide"),
        ({"prefer": "widest", "margin": "none"}, "prefer: widest needs margins"),
    ],
)
def test_settings_that_contradict_each_other(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PairsConfig.model_validate({"data": [{"path": "x.jsonl"}], **config})


def test_bad_rows_are_an_error_or_are_told(tmp_path: Path) -> None:
    rows = [ROW, {"prompt": "q", "responses": [{"text": "no grade"}, {"text": "at all"}]}]
    with pytest.raises(DataError, match=r"out.jsonl:2: responses"):
        make(tmp_path, rows)
    found = make(tmp_path, rows, "skipped", source={"on_bad_row": "skip"})
    assert found.kept == 3 and whys(found)["bad row"] == 1
    assert "1 rows are bad" in " ".join(found.warnings)


def test_the_report_shows_and_warns_and_is_safe(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    rows = [
        {"prompt": f"q{n} {hostile}", "responses": answers(
            human=(1, f"{n} a long and careful answer to it {hostile}"), weak=(2, f"{n} short"), copy=(3, f"{n} SHORT"),
        )}
        for n in range(40)
    ]  # fmt: skip
    found = make(tmp_path, rows)
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert hostile not in page and "&lt;script&gt;alert(1)" in page
    assert any("human over weak: the chosen answer is the longer one in 100 %" in one for one in found.warnings)
    summary = json.loads((found.folder / "summary.json").read_text())
    assert summary["pairs"] == found.kept == 40
    assert summary["left_out"] == {"like another pair": 40, "nearly equal": 40}
    assert summary["rows"] == {"kept": 40, "like another pair": 40, "nearly equal": 40}
    assert {kind["chosen"]: kind["chosen_is_longer"] for kind in summary["kinds"] if kind["kept"]} == {"human": 1.0}
    assert "Nearly equal answers" in page and "1.00" in page


def test_a_column_that_holds_an_answer_within_or_under_a_name_of_another_format_tells_nothing(tmp_path: Path) -> None:
    right = "right, of course"
    row = {
        "prompt": "p", "responses": answers(human=(1, right), weak=(2, "wrong")), "text": right, "refs": [f"{right} "],
        "meta": {"gold": [{"by": "human", "said": right}]}, "id": 7, "tags": ["a", {"b": None}],
    }  # fmt: skip
    found = make(tmp_path, [row], source={"columns": {"prompt": "prompt"}})
    assert tiny.lines(found.folder / "rows.jsonl") == [
        {"id": 7, "tags": ["a", {"b": None}], "prompt": "p", "chosen": right, "rejected": "wrong", "margin": 1.0}
    ]
    assert found.tally.told == ["meta", "refs", "text_"]


@pytest.mark.parametrize("group", ["rows", "prompts"])
def test_a_files_name_that_is_no_utf8(tmp_path: Path, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write(tmp_path / "b\udcff.jsonl", [ROW])
    other = tiny.write(tmp_path / "c\udcff.jsonl", [ROW])
    out = tmp_path / "out\x1b[31m\udcff"
    flags = [f"--data.path={path}", f"--data.1.path={other}", f"--group={group}", f"--output={out}"]
    assert main(["data", "pairs", *flags]) == 0
    assert tiny.lines(out / "decisions.jsonl")[0]["where"] == f"{path}:1"
    told = capsys.readouterr().out
    assert "out\ufffd[31m\ufffd/rows.jsonl" in told and "\x1b" not in told


def test_a_tiers_name_turns_no_sentence_round(tmp_path: Path) -> None:
    name = "back\u202ewards\x1b"
    rows = [{"prompt": f"q{n}", "responses": answers(**{name: (1, f"{n} a long answer")}, weak=(2, f"{n}"))}
            for n in range(40)]  # fmt: skip
    (warning,) = make(tmp_path, rows).warnings
    assert warning.startswith("back\ufffdwards\ufffd over weak: ")


def test_scores_without_end_do_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that only a score tells apart have a tier for each score."""
    monkeypatch.setattr("preftune.curation.pairs.tally.KINDS", 5)
    rows = [
        {"prompt": f"q{n}", "responses": [{"text": f"yes {n}", "score": n + 0.5}, {"text": f"no {n}", "score": n}]}
        for n in range(20)
    ]
    found = make(tmp_path, rows)
    assert len(found.tally.kinds) == 6 and found.tally.kinds["others", "others"].kept == 15
    assert len(found.tally.tiers) == 6 and sum(found.tally.tiers.values()) == 40
    assert found.kept == found.ordered == sum(kind.kept for kind in found.tally.kinds.values()) == 20
    assert "others" in (found.folder / "report.html").read_text()


def test_a_second_file_under_the_same_flag_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [ROW])
    assert main(["data", "pairs", "--data.path", str(path), f"--data.path={path}", f"--output={tmp_path}/out"]) == 2
    assert "--data.path is given twice; a second source is --data.1.path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "rows.jsonl", [ROW])
    file = tmp_path / "pairs.yaml"
    file.write_text("margin_scale: 2\nnear: {threshold: 0.8}\nchosen_tiers: [human]\nrejected_tiers: [weak]\n")
    flags = [
        f"--data.path={tmp_path}/rows.jsonl",
        f"--output={tmp_path}/out",
        "--margin_scale",
        "0.5",
        "--shuffle",
        "false",
    ]
    assert main(["data", "pairs", str(file), *flags]) == 0
    assert tiny.lines(tmp_path / "out" / "rows.jsonl")[0]["margin"] == 1.5
    settings_ = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert (settings_["near"]["threshold"], settings_["shuffle"], settings_["margin_scale"]) == (0.8, False, 0.5)
    assert "1 pairs of 1 prompts" in capsys.readouterr().out
    assert main(["data", "pairs", str(file), *flags]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_the_page_of_the_docs_is_true() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "curation-pairs.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    source = yaml.safe_load(block)["data"]
    assert PairsConfig.model_validate({"data": [source]}).data[0] == SourceConfig.model_validate(
        {**GSM8K, "path": "solutions.jsonl"}
    )
    for name in set(PairsConfig.model_fields) - {"data", "seed", "shuffle"}:
        assert re.search(rf"`{name}[`:]", page), name
    for why in MEANING:
        assert why.removeprefix("came before ") in page, why
    config = PairsConfig.model_validate({"data": [source]})
    assert (config.near.threshold, config.near.size, config.tie_distance, FEW) == (0.9, 3, 0, 48)
