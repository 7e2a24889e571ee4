"""`preftune data debias`: openings found, weighed, stripped; rows in their own form; reward models before and after."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from preftune.cli.main import main
from preftune.config import ModelConfig, SourceConfig, TokensConfig
from preftune.curation.debias import DebiasConfig, debias
from preftune.curation.debias.counterfactual import Sample, counterfactuals
from preftune.curation.debias.evidence import Counts, Mark, Thresholds, find_marks, mark_of, sign_test
from preftune.curation.debias.openings import Stripper, ends_clause, is_answer, prepend, words_of
from preftune.curation.debias.predict import predict
from preftune.curation.debias.rewrite import Rewriter
from preftune.curation.debias.table import Table
from preftune.curation.debias.training import accuracies
from preftune.data.load import stream_rows
from preftune.demo.openings import HARMLESS, PLANTED, RARE, planted_rows
from preftune.errors import DataError, ModelError, UsageError
from preftune.records import Example
from preftune.rewards.learned import RewardReader
from tests import tiny, tinyreward

DEFAULT = Thresholds(words=3, min_count=20, alpha=0.01, min_effect=0.1)


def table_of(pairs: list[tuple[str, str]], *, prompts: list[str] | None = None, **settings: Any) -> Table:
    table = Table(**{"words": 3, **settings})
    for n, (better, worse) in enumerate(pairs):
        table.add(Example(prompts[n] if prompts else f"q{n}", (better, worse), scores=(1.0, 0.0)))
    return table


def marks(pairs: list[tuple[str, str]], **settings: Any) -> list[Mark]:
    return find_marks(Counts(table_of(pairs, **settings)), DEFAULT)[0]


def words(rng: random.Random, n: int = 4) -> str:
    """Words that occur once or twice: no opening of theirs is ever tested."""
    return " ".join("".join(rng.choices("bcdfglmnprst", k=6)) for _ in range(n)) + "."


# --------------------------------------------------------------------------------------------------- planted openings


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_planted_openings_are_found_and_no_others(seed: int, even: bool) -> None:
    rows = [(row["chosen"], row["rejected"]) for row in planted_rows(seed, 3000, even=even)]
    counts = Counts(table_of(rows))
    found, tested = find_marks(counts, DEFAULT)
    assert {mark.opening for mark in found} == set(PLANTED)
    assert tested > 3 * len(PLANTED)
    sides = {mark.opening: mark.side for mark in found}
    assert sides == {name: "better" if better > worse else "worse" for name, (better, worse) in PLANTED.items()}
    for name in (*HARMLESS, "No,", "Yes,"):
        node = counts.table.tree.find(words_of(name))
        assert node is not None and counts.answers[node] >= 100, name
    rare = counts.table.tree.find(words_of(RARE))
    assert rare is not None and (int(counts.better[rare]), int(counts.worse[rare])) == (6, 0)


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_is_planted_nothing_is_found(seed: int) -> None:
    rng = random.Random(seed)
    rows = [(row["chosen"], row["rejected"]) for row in planted_rows(seed, 1500)]
    assert marks([pair if rng.random() < 0.5 else pair[::-1] for pair in rows]) == []


def test_counts_and_the_test_by_hand() -> None:
    rng = random.Random(0)
    rows = [("Sure, " + words(rng), words(rng)) for _ in range(30)]
    rows += [(words(rng), "Sure, " + words(rng)) for _ in range(6)]
    rows += [("Sure, " + words(rng), "Sure, " + words(rng)) for _ in range(4)]
    rows += [(f"Well, {words(rng)}", f"Well, {words(rng)}") for _ in range(10)]
    (mark,) = marks(rows, words=1)
    assert (mark.opening, mark.side, mark.won, mark.lost) == ("Sure,", "better", 30, 6)
    assert (mark.frequency.answers, mark.frequency.better, mark.frequency.worse) == (44, 34, 10)
    assert mark.left == (30, 6)
    assert mark.p == pytest.approx(2 * binomtest(30, 36).pvalue)  # "Sure," and "Well," were tested
    assert mark.share.value == pytest.approx(30 / 36)
    assert sign_test(30, 6) == pytest.approx(binomtest(30, 36).pvalue)
    assert (sign_test(0, 0), sign_test(5, 5)) == (1.0, 1.0)


def test_answers_to_one_prompt_count_once() -> None:
    """A prompt that was answered a hundred times is one observation."""
    rng = random.Random(1)
    rows = [("Sure, " + words(rng), words(rng)) for _ in range(300)]
    once = find_marks(Counts(table_of(rows, prompts=["the same"] * 300)), DEFAULT)[0]
    assert once == []
    assert [mark.opening for mark in marks(rows)] == ["Sure,"]


def test_an_opening_that_a_prompt_asks_for_is_harmless() -> None:
    rng = random.Random(2)
    rows = []
    for n in range(600):
        opening = ("No, ", "Yes, ", "")[n % 3]
        rows.append((opening + words(rng), opening + words(rng)))
    assert marks(rows) == []


def test_of_nested_openings_the_one_that_tells() -> None:
    rng = random.Random(3)

    def some(better: str, worse: str, n: int) -> list[tuple[str, str]]:
        return [(f"{better} {words(rng)}".strip(), f"{worse} {words(rng)}".strip()) for _ in range(n)]

    # "Sure, I" adds nothing: what follows "Sure," is always I
    assert [m.opening for m in marks(some("Sure, I", "", 80) + some("", "Sure, I", 10))] == ["Sure,"]
    # nor where it is I most of the time and marks a little more
    mixed = some("Sure, I", "", 80) + some("Sure,", "", 60) + some("", "Sure, I", 5) + some("", "Sure,", 10)
    assert [m.opening for m in marks(mixed)] == ["Sure,"]
    # "The" is harmless, "The answer" is not
    longer = some("The answer", "", 90) + some("", "The answer", 10) + some("The", "", 200) + some("", "The", 200)
    assert [m.opening for m in marks(longer)] == ["The answer"]
    # a clause is not cut inside
    assert [m.opening for m in marks(some("Of course!", "", 80) + some("", "Of course!", 10))] == ["Of course!"]
    both = some("Of course!", "", 60) + some("Of course,", "", 60) + some("", "Of course!", 8)
    assert sorted(m.opening for m in marks(both)) == ["Of course!", "Of course,"]
    # but it is where it goes on in many ways
    assert [m.opening for m in marks(some("I'm", "", 90) + some("", "I'm", 12))] == ["I'm"]


def test_a_strong_opening_does_not_make_harmless_ones_suspect() -> None:
    """With "Sure," in three of four better answers, "Well," is four times as frequent in worse ones."""
    rng = random.Random(4)

    def answer(share: float) -> str:
        draw = rng.random()
        opening = "Sure, " if draw < share else "Well, " if rng.random() < 0.5 else "Then "
        return opening + words(rng)

    rows = [(answer(0.75), answer(0.05)) for _ in range(1500)]
    counts = Counts(table_of(rows))
    node = counts.table.tree.find(("Well,",))
    assert node is not None and counts.worse[node] > 3 * counts.better[node]
    assert [mark.opening for mark in find_marks(counts, DEFAULT)[0]] == ["Sure,"]


def test_ranked_answers_count_by_their_pairs() -> None:
    table = Table(1)
    texts = ("Sure, a", "b", "Sure, c", "d")
    table.add(Example("q", texts, scores=(3.0, 2.0, 1.0, 1.0)))
    assert len(table.pairs) == 5  # the last two are as good
    assert table.pairs.weight.tolist() == pytest.approx([0.2] * 5)
    assert table.sides.tolist() == pytest.approx([3 / 5, 1 / 5, -2 / 5, -2 / 5])
    counts = Counts(table)
    node = table.tree.find(("Sure,",))
    # it wins against the 2nd and 4th, loses against the 2nd; pairs of two with it cancel
    assert node is not None and [int(x[node]) for x in counts.decided(table.pairs)] == [1, 0]
    ties = Table(1)
    ties.add(Example("q", ("a", "b"), scores=(1.0, 1.0)))
    assert (ties.rows, ties.ties) == (0, 1)


def test_evidence_on_an_opening_that_was_asked_for() -> None:
    counts = Counts(table_of([("Well, a b", "c"), ("d", "Well, e"), ("Well, f", "g")]))
    found = mark_of(counts, ("Well,",))
    assert found is not None and (found.won, found.lost, found.side) == (2, 1, "better")
    assert mark_of(counts, ("Never",)) is None


# ----------------------------------------------------------------------------------------------- alone, cross-validated


def test_what_the_opening_alone_tells() -> None:
    rng = random.Random(5)

    def answer(share: float) -> str:
        return ("Sure, " if rng.random() < share else "") + words(rng)

    rows = [(answer(0.8), answer(0.2)) for _ in range(1200)]
    found = predict(table_of(rows), folds=5, seed=0)
    # it puts the pairs in order in which one answer has it alone: 0.64 right, 0.04 wrong, the rest are ties
    assert found["opening"].accuracy.value == pytest.approx(0.64 + 0.32 / 2, abs=0.03)
    assert found["opening"].auc.value == pytest.approx(0.8, abs=0.03)
    assert not found["length"].accuracy.excludes(0.5) or found["length"].accuracy.value < 0.85
    longer = predict(table_of([(words(rng, 9), words(rng, 4)) for _ in range(200)]), folds=5, seed=0)
    assert longer["length"].accuracy.value == 1.0
    nothing = predict(table_of([(words(rng), words(rng)) for _ in range(400)]), folds=5, seed=0)
    assert not nothing["opening"].auc.excludes(0.5)
    assert predict(table_of([("a", "b")] * 3, prompts=["x", "y", "x"]), folds=5, seed=0) == {}


def test_folds_are_by_prompt() -> None:
    """An opening that is each prompt's own, on the better side alone: known to who saw the prompt's other rows."""
    rng = random.Random(6)
    rows, prompts = [], []
    for n in range(60):
        for _ in range(10):
            opening = f"p{n} " if n % 2 else f"n{n} "
            pair = (opening + words(rng), words(rng))
            rows.append(pair if n % 2 else pair[::-1])
            prompts.append(f"q{n}")
    found = predict(table_of(rows, prompts=prompts), folds=5, seed=0)["opening"]
    assert abs(found.accuracy.value - 0.5) < 0.1


# ---------------------------------------------------------------------------------------------------------- stripping


@pytest.mark.parametrize(
    ("text", "left", "taken"),
    [
        ("Sure, I can.", "I can.", ["Sure,"]),
        ("  Sure, absolutely fine", "  Absolutely fine", ["Sure,"]),
        ("Sure, Absolutely! yes", "Yes", ["Sure,", "Absolutely!"]),
        ("Sure,\n\n- one\n- two", "- one\n- two", ["Sure,"]),
        ("Sure,\n\n    code()", "    code()", ["Sure,"]),
        ("Sure, - but", "But", ["Sure,"]),
        ("The iPhone is", "iPhone is", ["The"]),
        ("The answer is 4", "Is 4", ["The answer"]),
        ("Of  course!\nhere", "Here", ["Of course!"]),
        ("当然，我可以", "我可以", ["当然，"]),
        ("Sure, user_name is", "user_name is", ["Sure,"]),
        ("Sure, http://x.y", "http://x.y", ["Sure,"]),
        ("sure, I can", "sure, I can", []),
        ("Surely not", "Surely not", []),
        ("", "", []),
    ],
)
def test_stripping(text: str, left: str, taken: list[str]) -> None:
    found = Stripper(["Sure,", "Absolutely!", "The", "The answer", "Of course!", "当然，"])(text)
    assert (found.text, list(found.openings)) == (left, taken)


@pytest.mark.parametrize("text", ["Sure,", "Sure, …", " Sure,\n", "Sure, Absolutely!"])
def test_nothing_is_left_empty(text: str) -> None:
    found = Stripper(["Sure,", "Absolutely!"])(text)
    assert any(character.isalnum() for character in found.text)
    assert "is all that there is" in found.problem


def test_case_may_be_ignored() -> None:
    found = Stripper(["sure,"], fold=True)
    assert found("SURE, I can").text == "I can" and found("sure, i can").text == "i can"
    rng = random.Random(7)
    rows = [(("Sure, ", "SURE, ")[n % 2] + words(rng), words(rng)) for n in range(60)]
    assert [mark.opening for mark in marks(rows, fold=True)] == ["sure,"]


def test_openings_are_put_in_front() -> None:
    assert prepend("Sure,", "The cat sat.") == "Sure, the cat sat."
    assert prepend("Sure,", "I am.") == "Sure, I am." and prepend("Sure,", "NASA is") == "Sure, NASA is"
    assert prepend("Yes!", " The cat") == " Yes! The cat" and prepend("当然，", "我可以") == "当然，我可以"


def test_words_and_what_they_may_mean() -> None:
    assert words_of("Of course!") == ("Of", " course!") and words_of("当然，我") == ("当", "然，", "我")
    assert words_of("x" * 61) == ()
    assert ends_clause(("Sure,",)) and not ends_clause(("The",))
    for answer in ("Yes,", "No.", "I cannot", "42", "B)", "(a)", "Нет,", "**Yes**"):
        assert is_answer(words_of(answer)), answer
    for plain in ("Sure,", "A dog", "The answer", "Absolutely!", "Notably,"):
        assert not is_answer(words_of(plain)), plain


# ----------------------------------------------------------------------------------------------- rows in their own form

CHAT = [{"role": "user", "content": "hi"}]
WITH, WITHOUT = "Sure, it is.", "It is."


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "source", "want"),
    [
        ({"prompt": "p", "chosen": WITH, "rejected": "no", "id": 7}, {}, {"chosen": WITHOUT}),
        ({"prompt": "p", "chosen": "a", "rejected": ["b", WITH]}, {}, {"rejected": ["b", WITHOUT]}),
        ({"q": "p", "good": WITH, "bad": "b"},
         {"columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}, {"good": WITHOUT}),
        ({"prompt": CHAT, "chosen": _said(WITH), "rejected": _said("b")}, {}, {"chosen": _said(WITHOUT)}),
        ({"chosen": CHAT + _said(WITH), "rejected": CHAT + _said("b")}, {}, {"chosen": CHAT + _said(WITHOUT)}),
        ({"prompt": "hi", "chosen": CHAT + _said(WITH), "rejected": CHAT + _said("b")}, {},
         {"chosen": CHAT + _said(WITHOUT)}),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: Sure, it is.", "rejected": "\n\nHuman: hi\n\nAssistant: b"}, {},
         {"chosen": "\n\nHuman: hi\n\nAssistant: It is."}),
        ({"chosen": "Once upon Sure, it is.", "rejected": "Once upon a b"}, {}, {"chosen": "Once upon It is."}),
        ({"prompt": "p", "responses": [WITH, "b", "Sure, c d"]}, {}, {"responses": [WITHOUT, "b", "C d"]}),
        ({"prompt": "p", "responses": [{"text": WITH, "score": 2, "by": "x"}, {"text": "b", "score": 1}]}, {},
         {"responses": [{"text": WITHOUT, "score": 2, "by": "x"}, {"text": "b", "score": 1}]}),
        ({"prompt": "p", "answers": [{"says": "a", "g": 1}], "human": WITH},
         {"responses": {"from": "answers", "text": "says", "score": "g", "also": [{"column": "human", "score": 2}]}},
         {"human": WITHOUT}),
        ({"prompt": CHAT, "chosen": [{"role": "assistant", "content": [{"type": "text", "text": WITH}]}],
          "rejected": _said("b")}, {},
         {"chosen": [{"role": "assistant", "content": [{"type": "text", "text": WITHOUT}]}]}),
        ({"prompt": CHAT, "chosen": [*_said(WITH), *CHAT, *_said("Sure, more")], "rejected": _said("b")}, {},
         {"chosen": [*_said(WITHOUT), *CHAT, *_said("Sure, more")]}),
        ({"prompt": "Sure, it is.", "chosen": WITH, "rejected": "b"}, {}, {"chosen": WITHOUT}),
    ],
)  # fmt: skip
def test_rows_keep_their_form(
    tmp_path: Path, row: dict[str, Any], source: dict[str, Any], want: dict[str, Any]
) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [row])
    config = SourceConfig.model_validate({"path": str(path), **source})
    (one,) = stream_rows(config)
    assert one.example is not None
    found = debias(
        DebiasConfig(data=[config], strip=["Sure,"], words=1), tmp_path / "out"
    )  # fmt: skip
    assert found.changed == 1
    assert tiny.lines(tmp_path / "out" / "rows.jsonl") == [{**row, **want}]
    assert tiny.lines(path) == [row]
    again = [r.example for r in stream_rows(config.model_copy(update={"path": str(tmp_path / "out" / "rows.jsonl")}))]
    assert again[0] is not None and again[0].scores == one.example.scores and again[0].prompt == one.example.prompt


def test_a_column_made_by_a_rule_can_not_be_written_back(tmp_path: Path) -> None:
    row = {"prompt": "p", "text": "[Sure, it is]", "rejected": "b"}
    rule = {"chosen": {"from": "text", "replace": [[r"[\[\]]", ""]]}}
    path = tiny.write(tmp_path / "rows.jsonl", [row])
    config = SourceConfig.model_validate({"path": str(path), "columns": rule})
    (one,) = stream_rows(config)
    assert one.example is not None
    assert Rewriter(config)(row, one.example, {0: "It is"})["text"] == "[It is]"  # it stands in there
    made = {"chosen": {"template": "{text} and more"}}
    config = SourceConfig.model_validate({"path": str(path), "columns": made})
    with pytest.raises(DataError, match=r"rows.jsonl:1: the answer does not stand in chosen.*data.columns rules"):
        debias(DebiasConfig(data=[config], strip=["[Sure,"]), tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


# --------------------------------------------------------------------------------------------------------- the command


def _pairs(n: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def answer(share: float) -> str:
        return ("sure, " if rng.random() < share else "") + words(rng, 2)

    return [{"prompt": f"q{i}:", "chosen": answer(0.7), "rejected": answer(0.1)} for i in range(n)]


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [*_pairs(), {"prompt": "x", "chosen": "sure, one two.", "rejected": "one two."},
            {"prompt": "y", "chosen": "sure,", "rejected": "sure, b <script>alert(1)</script>\x1b[2J"}]  # fmt: skip
    tiny.write(tmp_path / "pairs.jsonl", rows)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("{broken\n")
    before = (tmp_path / "pairs.jsonl").read_bytes()
    flags = ["--data.path", "pairs.jsonl", "--data.on_bad_row", "skip"]
    assert main(["data", "debias", *flags, "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 proposed for stripping" in said and "sure,  " in said and "report: out/report.html" in said
    assert (tmp_path / "pairs.jsonl").read_bytes() == before

    out = tmp_path / "out"
    decisions, written = tiny.lines(out / "decisions.jsonl"), tiny.lines(out / "rows.jsonl")
    assert len(decisions) == len(rows) + 1 and [d["where"] for d in decisions][-1] == "pairs.jsonl:123"
    assert decisions[-1]["why"] == "bad row" and "invalid JSON" in decisions[-1]["problem"]
    assert decisions[-3] == {
        "where": "pairs.jsonl:121", "kept": False, "why": "only its opening differed",
        "stripped": [{"answer": 0, "side": "better", "openings": ["sure,"]}],
    }  # fmt: skip
    kept = [d for d in decisions if d["kept"]]
    assert len(kept) == len(written) == 121
    assert written[-1]["chosen"] == "sure," and written[-1]["rejected"].startswith("b <script>")
    for decision, row, old in zip(kept[:120], written, rows, strict=False):
        changed = {one["side"] for one in decision.get("stripped", [])}
        for side, name in (("better", "chosen"), ("worse", "rejected")):
            assert old[name] == ("sure, " if side in changed else "") + row[name]
        assert row["prompt"] == old["prompt"]
        assert decision.get("why") == ("stripped" if changed else None)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["proposed"] == summary["stripped"] == ["sure,"]
    (opening,) = summary["openings"]
    assert (
        opening["answers"] == sum(old[n].startswith("sure, ") for old in rows[:120] for n in ("chosen", "rejected")) + 1
    )
    assert opening["mark"]["side"] == "better" and opening["mark"]["p"] < 0.01
    assert summary["rows"] == {"kept": 121, "only its opening differed": 1, "bad row": 1}
    assert summary["answers_of_nothing_else"] == 1
    accuracy = summary["predicted"]["before"]["opening"]["accuracy"]["value"]
    assert accuracy > summary["predicted"]["after"]["opening"]["accuracy"]["value"] + 0.1 > 0.5
    page = (out / "report.html").read_text()
    assert "One opening gives the label away" in page and "<script>alert(1)" not in page
    assert main(["data", "debias", *flags, "--output", "out"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["data", "debias", *flags, "--output", "again"]) == 0
    for name in ("rows.jsonl", "decisions.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_stripped_is_the_users_choice(tmp_path: Path) -> None:
    path = str(tiny.write(tmp_path / "pairs.jsonl", [*_pairs(), {"prompt": "z", "chosen": "then a", "rejected": "b"}]))
    run = {name: debias(DebiasConfig(data=[SourceConfig(path=path)], **settings), tmp_path / name)
           for name, settings in {"auto": {}, "none": {"strip": "none"}, "keep": {"keep": ["sure,"]},
                                  "list": {"strip": ["then", "never seen"]}}.items()}  # fmt: skip
    assert (run["auto"].proposed, run["auto"].stripped) == (("sure,",), ("sure,",))
    assert (run["none"].proposed, run["none"].stripped, run["none"].changed) == (("sure,",), (), 0)
    assert (tmp_path / "none" / "rows.jsonl").read_bytes() == Path(path).read_bytes()
    assert (run["keep"].proposed, run["keep"].stripped) == ((), ())
    assert "kept, as asked for" in run["keep"].findings[0].why
    assert (run["list"].proposed, run["list"].stripped, run["list"].changed) == (("sure,",), ("then",), 1)
    assert {one.mark.opening: one.why.split(";")[0] for one in run["list"].findings} == {
        "sure,": "not asked for", "then": "asked for",
    }  # fmt: skip


def test_answers_that_look_like_openings_are_warned_of(tmp_path: Path) -> None:
    rng = random.Random(8)
    rows = [{"prompt": f"q{n}", "chosen": f"Yes, {words(rng)}", "rejected": f"No, {words(rng)}"} for n in range(60)]
    rows += [{"prompt": f"r{n}", "chosen": words(rng), "rejected": words(rng)} for n in range(60)]
    path = str(tiny.write(tmp_path / "pairs.jsonl", rows))
    found = debias(DebiasConfig(data=[SourceConfig(path=path)]), tmp_path / "out")
    warnings = [warning for one in found.findings for warning in one.warnings]
    assert found.proposed and len(warnings) == len(found.proposed)
    assert "may be an answer by itself" in warnings[0] and "in 100 % of its pairs the other answer" in warnings[0]
    assert "--keep" in warnings[0] and warnings[0] in str(found)


@pytest.mark.parametrize("leftovers", ["report", "strip"])
def test_what_stripping_would_leave_as_a_mark(tmp_path: Path, leftovers: str) -> None:
    """ "well," stands in half of the answers without "sure," on either side: six times as many of them are worse."""
    rng = random.Random(10)

    def answer(share: float) -> str:
        opening = "sure, " if rng.random() < share else "well, " if rng.random() < 0.5 else ""
        return opening + words(rng, 2)

    rows = [{"prompt": f"q{n}", "chosen": answer(0.85), "rejected": answer(0.1)} for n in range(600)]
    path = str(tiny.write(tmp_path / "pairs.jsonl", rows))
    config = DebiasConfig.model_validate({"data": [{"path": path}], "leftovers": leftovers})
    found = debias(config, tmp_path / "out")
    assert found.proposed == ("sure,",)
    (left,) = found.leftovers
    assert (left.mark.opening, left.mark.side, left.proposed) == ("well,", "worse", False)
    won, lost = left.mark.left  # before, it was as good a sign as any
    assert sign_test(won, lost) > 0.05 and left.mark.lost > 4 * left.mark.won
    written = tiny.lines(tmp_path / "out" / "rows.jsonl")
    still = sum(row[side].startswith("well, ") for row in written for side in ("chosen", "rejected"))
    before = sum(row[side].startswith("well, ") for row in rows for side in ("chosen", "rejected"))
    accuracy = found.after["opening"].accuracy
    if leftovers == "strip":
        assert still == 0 and left.answers == before and found.stripped == ("sure,", "well,")
        assert abs(accuracy.value - 0.5) < 0.06
        assert "were stripped as well: well, (worse)" in str(found)
    else:
        assert still == before and left.answers == 0 and found.stripped == ("sure,",)
        assert accuracy.low > 0.6
        assert "--leftovers strip takes them off as well" in str(found)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["opening"] for one in summary["leftovers"]] == ["well,"]
    assert "Before, without the others" in (tmp_path / "out" / "report.html").read_text()
    kept = debias(config.model_copy(update={"keep": ["well,"]}), tmp_path / "kept")
    assert kept.leftovers == () and kept.stripped == ("sure,",)


def test_what_stood_behind_a_stripped_opening_comes_to_light(tmp_path: Path) -> None:
    rng = random.Random(11)
    rows = [{"prompt": f"q{n}", "chosen": f"sure, gladly, {words(rng, 2)}" if n % 2 else f"sure, {words(rng, 2)}",
             "rejected": f"sure, {words(rng, 2)}" if n % 9 == 0 else words(rng, 2)} for n in range(300)]  # fmt: skip
    path = str(tiny.write(tmp_path / "pairs.jsonl", rows))
    found = debias(DebiasConfig(data=[SourceConfig(path=path)]), tmp_path / "out")
    assert found.proposed == ("sure,",)
    assert [(one.mark.opening, one.mark.side, one.mark.left) for one in found.leftovers] == [
        ("gladly,", "better", (0, 0))
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], r"pairs.jsonl:1: the row has no two answers"),
        (
            [{"prompt": "a", "responses": [{"text": "x", "score": 1}, {"text": "y", "score": 1}]}],
            "no side can be given",
        ),
        ([{"prompt": "a", "chosen": "b"}], r"pairs.jsonl:1: .*rejected"),
    ],
)
def test_rows_without_a_better_answer(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = str(tiny.write(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(DataError, match=message):
        debias(DebiasConfig(data=[SourceConfig(path=path)]), tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_effect", "0.6"], "--min_effect: got 0.6"),
        (["--strip", "Sure,"], "--strip"),
        (["--strip", "['']"], "must have a word in it"),
        (["--train.steps", "3"], "train is for training reward models"),
        (["--model.path", "m"], "how long to train is missing"),
        (["--policy_outputs", "x.jsonl"], "policy_outputs are scored by reward models"),
        (["--loss.beta", "1"], "does not read"),
        (["--min_cont", "1"], "did you mean --min_count?"),
        (["--model.path", "m", "--train.steps", "1", "--loss.g_max", "1"], "belongs to p_max"),
    ],
)
def test_wrong_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "pairs.jsonl", _pairs(5))
    assert main(["data", "debias", "--data.path", "pairs.jsonl", "--output", "out", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ------------------------------------------------------------------------------------------------------- reward models


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinyreward.save(tmp_path_factory.mktemp("reward") / "model")


def test_a_wrong_reward_model_is_told_before_the_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(*_: Any) -> None:
        raise AssertionError("the rows were counted first")

    monkeypatch.setattr("preftune.curation.debias.run._read", counting)
    path = str(tiny.write(tmp_path / "pairs.jsonl", _pairs(5)))
    config = DebiasConfig(data=[SourceConfig(path=path)], reward_model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere does not exist"):
        debias(config, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        debias(config, tmp_path / "out")


def test_counterfactuals_are_what_the_model_says_of_both_texts(reward_model: Path) -> None:
    rows = [("sure, one", "two"), ("three", "sure, four five"), ("sure, six", "sure, seven"), ("eight", "nine")]
    table = table_of(rows, words=1)
    mark = mark_of(Counts(table), ("sure,",))
    assert mark is not None
    sample = Sample(["sure,"], most=10, seed=0, fold=False)
    for n, pair in enumerate(rows):
        sample.add(Example(f"q{n}", pair, scores=(1.0, 0.0)))
    assert [(case.has, case.example.prompt) for case in sample.cases["sure,"]] == [("better", "q0"), ("worse", "q1")]
    reader = RewardReader(ModelConfig(path=str(reward_model)), TokensConfig())
    found = counterfactuals(reader, sample, [mark], min_shift=0.0, fold=False)["sure,"]

    def score(text: str) -> float:
        return tinyreward.plain_score(reward_model, text + "<eos>")

    own = [score("q0sure, one"), score("q1sure, four five")]
    other = [score("q0two"), score("q1three")]
    off, on = [score("q0one"), score("q1four five")], [score("q0sure, two"), score("q1sure, three")]
    assert found.pairs == 2
    assert found.off.shift.value == pytest.approx(sum(b - a for a, b in zip(own, off, strict=True)) / 2, abs=1e-4)
    assert found.on.shift.value == pytest.approx(sum(b - a for a, b in zip(other, on, strict=True)) / 2, abs=1e-4)
    right = [own[0] > other[0], own[1] < other[1]]
    moved = [off[0] > other[0], off[1] < other[1]]
    put = [own[0] > on[0], own[1] < on[1]]
    assert found.off.before == found.on.before == sum(right) / 2
    assert (found.off.after, found.on.after) == (sum(moved) / 2, sum(put) / 2)
    assert found.off.flips.value == sum(a != b for a, b in zip(right, moved, strict=True)) / 2
    assert found.on.flips.value == sum(a != b for a, b in zip(right, put, strict=True)) / 2
    mean = sum(own + other) / 4
    assert found.spread == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in own + other) / 4), abs=1e-4)


def test_a_sample_is_even_and_bounded() -> None:
    sample = Sample(["sure,"], most=20, seed=1, fold=False)
    for n in range(400):
        sample.add(Example(f"{n}", ("sure, a", "b"), scores=(1.0, 0.0)))
    drawn = [int(str(case.example.prompt)) for case in sample.cases["sure,"]]
    assert len(set(drawn)) == 20 and 120 < sum(drawn) / 20 < 280


def test_a_reward_model_that_does_not_use_an_opening_speaks_for_it(tmp_path: Path, reward_model: Path) -> None:
    path = str(tiny.write(tmp_path / "pairs.jsonl", _pairs()))
    settings = {"data": [SourceConfig(path=path)], "reward_model": str(reward_model), "pairs_each": 30}
    found = debias(DebiasConfig(**settings, policy_outputs=path), tmp_path / "out")
    (one,) = found.findings
    assert one.effect is not None and one.effect.pairs == 30
    # random weights: whatever they make of it is not what the data says, or too little
    strict = debias(DebiasConfig(**settings, min_shift=1e6), tmp_path / "strict")
    assert strict.proposed == () and "do not depend on it" in strict.findings[0].why
    assert one.proposed == one.effect.uses
    reader = RewardReader(ModelConfig(path=str(reward_model)), TokensConfig())
    rows = [r.example for r in stream_rows(SourceConfig(path=path)) if r.example is not None]
    values, skipped = accuracies(reader, rows)
    assert found.given is not None and found.given["own outputs"].value == pytest.approx(sum(values) / len(values))
    assert skipped == 0 and len(values) == len(rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the reward model makes of them" in page and "Taken off: flips" in page


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "model")


def test_reward_models_before_and_after(
    tmp_path: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted opening is all that tells the sides apart: what was learnt from it is gone without it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    rng = random.Random(9)
    rows = [{"prompt": f"q{n}:", "chosen": f"sure, {words(rng, 1)}", "rejected": words(rng, 1)} for n in range(160)]
    tiny.write(tmp_path / "pairs.jsonl", rows)
    # in the policy's own outputs the opening stands in front of the worse answer
    own = [{"prompt": f"o{n}:", "responses": [words(rng, 1), f"sure, {words(rng, 1)}"]} for n in range(20)]
    tiny.write(tmp_path / "own.jsonl", own)
    flags = ["--data.path", "pairs.jsonl", "--output", "out", "--model.path", str(language_model), "--train.steps",
             "12", "--train.learning_rate", "5e-3", "--train.batch_size", "8", "--held_out", "0.25", "--policy_outputs",
             "own.jsonl", "--loss.p_max", "0.5", "--loss.g_max", "0"]  # fmt: skip
    assert main(["data", "debias", *flags]) == 0
    assert "reward model, stripped + p_max:" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    arms = {arm["name"]: {what: found["value"] for what, found in arm["accuracy"].items()}
            for arm in summary["training"]}  # fmt: skip
    assert list(arms) == ["raw", "stripped", "raw + p_max", "stripped + p_max"]
    assert arms["raw"]["held-out"] > 0.95 and arms["raw"]["own outputs"] < 0.1
    assert arms["stripped"]["own outputs"] > arms["raw"]["own outputs"] + 0.2
    assert arms["stripped"]["held-out"] < arms["raw"]["held-out"]
    change = summary["changes"]["stripped less raw"]["own outputs"]
    assert change["value"] == pytest.approx(arms["stripped"]["own outputs"] - arms["raw"]["own outputs"])
    assert change["low"] > 0
    data = tmp_path / "out" / "training" / "data"
    counts = {name: len(tiny.lines(data / f"{name}.jsonl"))
              for name in ("train-raw", "train-stripped", "held-out-raw", "held-out-stripped")}  # fmt: skip
    assert counts["train-raw"] + counts["held-out-raw"] == 160 and counts["held-out-raw"] > 20
    assert counts["held-out-raw"] == counts["held-out-stripped"] and counts["train-raw"] == counts["train-stripped"]
    prompts = [{row["prompt"] for row in tiny.lines(data / f"{name}.jsonl")} for name in ("train-raw", "held-out-raw")]
    assert not prompts[0] & prompts[1]
    recipe = (tmp_path / "out" / "training" / "raw-p_max" / "recipe.yaml").read_text()
    assert "p_max: 0.5" in recipe
    assert "p_max: 0.5" not in (tmp_path / "out" / "training" / "raw" / "recipe.yaml").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Reward models trained before and after" in page and "points" in page


def test_too_few_rows_to_train_on(tmp_path: Path, language_model: Path) -> None:
    path = str(tiny.write(tmp_path / "pairs.jsonl", _pairs(3)))
    config = DebiasConfig.model_validate(
        {"data": [{"path": path}], "model": {"path": str(language_model)}, "train": {"steps": 1}, "held_out": 0.001}
    )
    with pytest.raises(DataError, match="0 held out are too few"):
        debias(config, tmp_path / "out")


def test_settings_of_training_are_checked_first(tmp_path: Path) -> None:
    path = str(tiny.write(tmp_path / "pairs.jsonl", _pairs(3)))
    config = DebiasConfig.model_validate(
        {"data": [{"path": path}], "model": {"path": "m", "on_adapter": "stack"}, "train": {"steps": 1}}
    )
    with pytest.raises(UsageError, match=r"model\.on_adapter"):
        debias(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
