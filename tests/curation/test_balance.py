"""`preftune data balance` as a whole: what is kept, repeated and told, and that nothing else changes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import adjusted_rand_score

from preftune.curation.balance import BalanceConfig, Balanced, balance
from preftune.curation.balance import run as running
from preftune.errors import DataError, PreftuneError, UsageError
from tests.curation.topics import planted


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def config(path: Path, **changes: Any) -> BalanceConfig:
    data = {"path": str(path), **changes.pop("data", {})}
    return BalanceConfig.model_validate({"data": data, "threshold": 0.75, "sample": 200, **changes})


def prompts(sizes: Sequence[tuple[tuple[str, str], int]], seed: int = 0) -> tuple[list[dict[str, Any]], list[int]]:
    texts, labels = planted(sizes, seed)
    return [{"prompt": text, "n": n, "grade": n % 7} for n, text in enumerate(texts)], labels


SMALL = [(("cats", "en"), 40), (("law", "ru"), 12), (("tea", "zh"), 3)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", prompts(SMALL)[0])


def outcome(found: Balanced) -> tuple[bytes, ...]:
    return tuple((found.folder / name).read_bytes() for name in ("rows.jsonl", "decisions.jsonl", "clusters.jsonl"))


def clusters_of(found: Balanced) -> list[int]:
    return [one["cluster"] for one in lines(found.folder / "decisions.jsonl")]


# ------------------------------------------------------------------------------------------------ what it finds


def test_planted_topics_of_two_languages_are_recovered(tmp_path: Path) -> None:
    sizes = {("cats", "en"): 300, ("stars", "en"): 90, ("law", "ru"): 160, ("garden", "ru"): 50, ("baking", "en"): 25}
    rows, labels = prompts(list(sizes.items()))
    found = balance(config(write(tmp_path / "x.jsonl", rows), threshold=None, sample=5000, cap=60), tmp_path / "out")
    assert adjusted_rand_score(labels, clusters_of(found)) > 0.9
    assert found.sweep.steps
    kept = Counter(labels[row["n"]] for row in lines(tmp_path / "out" / "rows.jsonl"))
    assert max(kept.values()) < 90
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["effective_clusters"]["after"] > summary["effective_clusters"]["before"]
    assert summary["threshold"] == found.threshold


def test_the_talk_with_a_sample_that_hardly_knows_of_the_rare_ones(tmp_path: Path) -> None:
    """One topic has 60 times the rows of the next, and one text stands alone; a fair sample has some 13 of 50."""
    rows, labels = prompts([(("cats", "en"), 3000), (("logic", "en"), 50), (("tea", "ru"), 1)])
    path = write(tmp_path / "x.jsonl", rows)
    found = balance(config(path, threshold=None, sample=800, cap=50, raise_to=10), tmp_path / "out")
    clusters = clusters_of(found)
    assert adjusted_rand_score(labels, clusters) > 0.97
    written = Counter(labels[row["n"]] for row in lines(tmp_path / "out" / "rows.jsonl"))
    assert written[1] == 50
    assert 4 <= written[2] <= 10  # the one about tea; an odd one or two of the others may be with it
    assert clusters.count(clusters[labels.index(2)]) <= 3
    assert found.silhouette is not None
    assert found.silhouette > 0.1


def test_equal_texts_share_a_cluster_and_each_is_a_row(tmp_path: Path) -> None:
    rows = [{"prompt": "What do cats eat?", "n": n} for n in range(30)] + [{"prompt": "Как заварить чай?", "n": 30}]
    found = balance(config(write(tmp_path / "x.jsonl", rows), cap=5, raise_to=2, sample=10), tmp_path / "out")
    assert found.before == (30, 1)
    assert found.after == (5.0, 2.0)
    assert found.distinct == 2
    assert clusters_of(found) == [1] * 30 + [2]
    assert len({row["n"] for row in lines(tmp_path / "out" / "rows.jsonl")}) == 6


@pytest.mark.parametrize(("rows", "before"), [(1, (1,)), (50, (50,))])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_one_row_and_rows_that_are_all_equal(
    tmp_path: Path, rows: int, before: tuple[int, ...], threshold: float | None
) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "the same", "n": n} for n in range(rows)])
    found = balance(config(path, threshold=threshold, cap=20, raise_to=4), tmp_path / "out")
    assert found.before == before
    assert found.written == (4 if rows == 1 else 20)
    assert "<svg" not in (tmp_path / "out" / "report.html").read_text()[:200]


# --------------------------------------------------------------------------------------------- what is written


def test_every_row_gets_one_decision_and_goes_out_as_it_came(source: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    found = balance(config(source, cap=10, raise_to=5), tmp_path / "out")
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "clusters.jsonl", "decisions.jsonl", "report.html", "rows.jsonl", "summary.json",
    ]  # fmt: skip
    rows, decisions = lines(source), lines(found.folder / "decisions.jsonl")
    assert [one["where"] for one in decisions] == [f"{source}:{n + 1}" for n in range(len(rows))]
    assert found.kept + found.dropped == found.read == len(rows)
    expected = [row for row, one in zip(rows, decisions, strict=True) for _ in range(one.get("copies", 0))]
    assert lines(found.folder / "rows.jsonl") == expected
    assert found.written == len(expected)
    assert all(one["kept"] == ("copies" in one) for one in decisions)
    assert all(one["why"] == "over the cap" for one in decisions if not one["kept"])
    sizes = Counter(one["cluster"] for one in decisions)
    after: Counter[int] = Counter()
    for one in decisions:
        after[one["cluster"]] += one.get("copies", 0)
    told = lines(found.folder / "clusters.jsonl")
    assert [one["before"] for one in told] == list(found.before) == [sizes[one["cluster"]] for one in told]
    assert [one["after"] for one in told] == [after[one["cluster"]] for one in told]
    assert list(found.before) == sorted(found.before, reverse=True)
    summary = json.loads((found.folder / "summary.json").read_text())
    assert summary["rows"] == {"kept": found.kept, "over the cap": found.dropped}
    assert summary["settings"]["cap"] == 10
    assert summary["command"] == "preftune data balance"


def test_the_result_is_the_same_whatever_the_chunks(source: Path, tmp_path: Path) -> None:
    first = outcome(balance(config(source, cap=10, keep="diverse", sample=20), tmp_path / "a"))
    for number, chunk in enumerate((1, 7, 100)):
        again = balance(config(source, cap=10, keep="diverse", sample=20, chunk=chunk), tmp_path / str(number))
        assert outcome(again) == first
    other = balance(config(source, cap=10, seed=1), tmp_path / "b")
    assert outcome(other)[0] != first[0]


def test_several_sources_are_balanced_together(source: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", lines(source)[:5])
    settings = config(source, cap=1000, raise_to=None)
    both = settings.model_copy(
        update={"data": [settings.data[0], settings.data[0].model_copy(update={"path": str(more)})]}
    )
    found = balance(both, tmp_path / "out")
    assert found.read == 60
    decisions = lines(found.folder / "decisions.jsonl")
    assert decisions[-1]["where"] == f"{more}:5"
    assert [one["cluster"] for one in decisions[-5:]] == [one["cluster"] for one in decisions[:5]]
    assert lines(found.folder / "rows.jsonl") == lines(source) + lines(more)


def test_weights_instead_of_copies(source: Path, tmp_path: Path) -> None:
    found = balance(config(source, cap=10, raise_to=9, raise_by="weight"), tmp_path / "out")
    rows, decisions = lines(found.folder / "rows.jsonl"), lines(found.folder / "decisions.jsonl")
    assert len(rows) == found.written == found.kept
    assert [row["weight"] for row in rows] == [one["weight"] for one in decisions if one["kept"]]
    total: Counter[int] = Counter()
    for one in decisions:
        total[one["cluster"]] += one.get("weight", 0)
    assert [total[n + 1] for n in range(len(found.after))] == pytest.approx(list(found.after))
    assert min(found.after) == pytest.approx(9)
    taken = write(tmp_path / "w.jsonl", [{"prompt": "a", "weight": 2}])
    with pytest.raises(DataError, match=r"w\.jsonl:1: has a column 'weight' already.*raise_by: copy"):
        balance(config(taken, raise_by="weight"), tmp_path / "none")


def test_rows_with_a_higher_number_are_kept_first(source: Path, tmp_path: Path) -> None:
    found = balance(config(source, cap=6, raise_to=None, prefer="grade"), tmp_path / "out")
    rows, decisions = lines(source), lines(found.folder / "decisions.jsonl")
    largest = [(row["grade"], one["kept"]) for row, one in zip(rows, decisions, strict=True) if one["cluster"] == 1]
    assert min(grade for grade, kept in largest if kept) >= max(grade for grade, kept in largest if not kept)
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "grade": 1}, {"prompt": "b", "grade": "good"}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: column 'grade' \(prefer\) must be"):
        balance(config(path, prefer="grade"), tmp_path / "none")
    with pytest.raises(DataError, match=r"x\.jsonl:1: there is no column 'rank' \(prefer\)"):
        balance(config(path, prefer="rank"), tmp_path / "none")


# ------------------------------------------------------------------------------------------------ what is read


def test_what_is_compared(tmp_path: Path) -> None:
    turns = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": first},
         {"role": "assistant", "content": "…"}, {"role": "user", "content": second}]
        for first, second in (("cats", "tea"), ("law", "tea"), ("stars", "tea"))
    ]  # fmt: skip
    path = write(tmp_path / "x.jsonl", [{"prompt": turn, "topic": "t", "none": None} for turn in turns])

    def distinct(name: str, **changes: Any) -> int:
        return balance(config(path, **changes), tmp_path / name).distinct

    assert distinct("a") == 3
    assert distinct("b", text="last-user") == 1
    assert distinct("c", text="topic") == 1
    assert distinct("d", text="none") == 1
    assert distinct("e", characters=9) == 1  # "Be brief." is all that is read
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["cut"] == 3
    assert json.loads((tmp_path / "d" / "summary.json").read_text())["empty"] == 3
    with pytest.raises(
        DataError, match=r"x\.jsonl:1: there is no column 'topics' \(text\); columns: prompt, topic, none"
    ):
        distinct("f", text="topics")
    lone = write(tmp_path / "y.jsonl", [{"prompt": [{"role": "system", "content": "x"}]}])
    with pytest.raises(DataError, match=r"y\.jsonl:1: no turn of the prompt is the user's; set text: prompt"):
        balance(config(lone, text="last-user"), tmp_path / "g")
    listed = write(tmp_path / "z.jsonl", [{"prompt": "a", "tags": ["x"]}])
    with pytest.raises(DataError, match=r"z\.jsonl:1: column 'tags' \(text\) must hold text, it holds list"):
        balance(config(listed, text="tags"), tmp_path / "h")


def test_rows_of_text_alone_and_pairs_and_tables(tmp_path: Path) -> None:
    texts = write(tmp_path / "t.jsonl", [{"text": "cats sleep"}, {"text": "тёплый чай"}])
    assert balance(config(texts), tmp_path / "a").distinct == 2
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": side} for side in "bc"])
    assert balance(config(pairs), tmp_path / "b").distinct == 1
    table = tmp_path / "c.csv"
    table.write_text('prompt,extra\n"a, b",1\n', encoding="utf-8")
    balance(config(table, raise_to=2), tmp_path / "c")
    assert lines(tmp_path / "c" / "rows.jsonl") == [{"prompt": "a, b", "extra": "1"}] * 2
    question = write(tmp_path / "q.jsonl", [{"question": "x", "n": 1.5}])
    balance(config(question, data={"columns": {"prompt": "question"}}, raise_to=None), tmp_path / "d")
    assert lines(tmp_path / "d" / "rows.jsonl") == [{"question": "x", "n": 1.5}]


def test_empty_texts_are_one_cluster_of_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "t": text} for text in ["", "  ", "\n", *planted(SMALL)[0][:20]]]
    found = balance(config(write(tmp_path / "x.jsonl", rows), text="t", raise_to=None), tmp_path / "out")
    clusters = clusters_of(found)
    assert len(set(clusters[:3])) == 1
    assert clusters[0] not in clusters[3:]


def test_bad_rows_are_left_out_and_told(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{broken\n{"prompt": 5}\n{"prompt": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl:2: .*invalid JSON"):
        balance(config(path), tmp_path / "none")
    found = balance(config(path, data={"on_bad_row": "skip"}, raise_to=None), tmp_path / "out")
    decisions = lines(found.folder / "decisions.jsonl")
    assert [one["kept"] for one in decisions] == [True, False, False, True]
    assert decisions[1]["why"] == decisions[2]["why"] == "bad row"
    assert "invalid JSON" in decisions[1]["problem"]
    assert (found.read, found.bad) == (2, 2)
    assert "2 rows could not be read" in (found.folder / "report.html").read_text(encoding="utf-8")
    path.write_text("{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match="no usable row"):
        balance(config(path, data={"on_bad_row": "skip"}), tmp_path / "other")


def test_hostile_text_is_shown_and_harms_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": "<script>alert(1)</script> \u0000\u001b[31m red"},
        {"prompt": "\U0001f469\u200d\U0001f467 \u202eback"},
        {"prompt": "ﬁ ＡＢＣ"},
    ]
    found = balance(config(write(tmp_path / "x.jsonl", rows), raise_to=1), tmp_path / "out")
    assert lines(found.folder / "rows.jsonl") == rows
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page


def test_the_report_has_what_a_person_looks_for(source: Path, tmp_path: Path) -> None:
    found = balance(config(source, cap=10, raise_to=5, threshold=None), tmp_path / "out")
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "Before and after",
        "Sizes by rank",
        "Quality by threshold",
        "chosen",
        "written 2 times",
        "over the cap",
    ):
        assert text in page
    assert str(found).count("\n") == 2
    assert "55 rows (55 different texts)" in str(found)


# ------------------------------------------------------------------------------------------ what can go wrong


def test_a_folder_with_something_in_it_is_not_written_into(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        balance(config(source), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_broken_run_leaves_no_result_and_can_be_run_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise PreftuneError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(running, "balance_page", broken)
        with pytest.raises(PreftuneError, match="broken"):
            balance(config(source), tmp_path / "out")
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert left
    assert all(name.endswith(".partial") for name in left)
    assert "vectors.partial" not in left
    balance(config(source), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize(("change", "said"), [("longer", "rows.jsonl:56: changed"), ("other", "rows.jsonl:3: changed"),
                                              ("shorter", "lost rows")])  # fmt: skip
def test_a_file_that_changes_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(source.read_bytes())
    sweep = running.sweep

    def meddled(*arguments: Any, **named: Any) -> Any:
        rows = lines(path)
        if change == "longer":
            rows.append(rows[0])
        elif change == "shorter":
            rows.pop()
        else:
            rows[2] = {"prompt": "something else"}
        write(path, rows)
        return sweep(*arguments, **named)

    monkeypatch.setattr(running, "sweep", meddled)
    with pytest.raises(DataError, match=f"{said}.* while it was read; run the command again"):
        balance(config(path), tmp_path / "out")


def test_too_many_clusters(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"threshold 0\.05 makes more than 5 clusters of 55 different texts; set a larger"
    ):
        balance(config(source, threshold=0.05, max_clusters=5), tmp_path / "a")
    found = balance(config(source, threshold=None, max_clusters=5), tmp_path / "b")
    assert len(found.before) <= 5


def test_a_coarser_threshold_where_all_texts_make_too_many_clusters(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, tried = running.cluster, []

    def once_too_many(vectors: Any, threshold: float, **named: Any) -> Any:
        tried.append(threshold)
        if len(tried) == 1:
            raise running.TooMany
        return cluster(vectors, threshold, **named)

    monkeypatch.setattr(running, "cluster", once_too_many)
    found = balance(config(source, threshold=None), tmp_path / "out")
    assert tried[0] < tried[1] == found.threshold
    assert f"the next after {tried[0]:g}" in found.sweep.why


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 3}, {"threshold": 0.5}, {"branching": 2, "threshold": 0.5}, {"cap": 5}, {"cap": None},
        {"keep": "central"}, {"keep": "diverse"}, {"raise_to": 9}, {"raise_to": None}, {"raise_from": 4},
        {"raise_by": "weight"}, {"prefer": "n"}, {"text": "n"}, {"characters": 3}, {"sample": 10}, {"seed": 4},
        {"data": {"limit": 20}},
    ],
)  # fmt: skip
def test_every_setting_matters(source: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    plain = {"cap": 10, "raise_to": 5} | ({"threshold": 0.5} if "branching" in change else {})
    one = balance(config(source, **plain), tmp_path / "a")
    other = balance(config(source, **{**plain, **change}), tmp_path / "b")
    assert outcome(one) != outcome(other)
