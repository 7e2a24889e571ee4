"""`audit`: planted faults are found, each with its exact count and nothing else; what is clean is fit."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.curation.audit import Audit, AuditConfig, audit
from preftune.curation.audit.checks import ADVICE, judge
from preftune.curation.audit.config import Limits
from preftune.data import load_examples
from preftune.errors import DataError, ModelError, UsageError
from preftune.tokens import TokenContract
from tests import tiny
from tests.test_tokens import chatml, with_bos

WORDS = (
    *(
        "apple",
        "river",
        "stone",
        "cloud",
        "music",
        "window",
        "garden",
        "silver",
        "forest",
        "candle",
        "bridge",
        "winter",
    ),
    *("summer", "paper", "mountain", "coffee", "yellow", "engine", "ocean", "letter", "copper", "violet", "meadow"),
    *("lantern", "pepper", "harbor", "marble", "saddle", "thunder", "willow"),
)


def clean(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs without a fault; better and worse answers are of the same length in the mean."""
    rng = random.Random(seed)

    def text(n: int) -> str:
        return " ".join(rng.choices(WORDS, k=n))

    rows = []
    for i in range(count):
        long, short = (f"this is the {text(n)} of it." for n in (9, 6))
        sides = (long, short) if i % 2 else (short, long)
        rows.append({"prompt": f"what is the {text(12)} of {i}?", "chosen": sides[0], "rejected": sides[1]})
    return rows


def marks(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
        for i, row in enumerate(clean(count, seed=5))
    ]


def run(tmp_path: Path, rows: list[dict[str, Any]], /, **settings: Any) -> Audit:
    data = {"path": str(tiny.write(tmp_path / "rows.jsonl", rows))}
    number = len(list(tmp_path.glob("out*")))
    return audit(AuditConfig.model_validate({"data": data, **settings}), tmp_path / f"out{number}")


def found(result: Audit) -> dict[str, int]:
    """Findings of all rows by check; those in decisions.jsonl and those that were counted are the same."""
    lines = tiny.lines(result.folder / "decisions.jsonl")
    counted: Counter[str] = Counter()
    for line in lines:
        counted.update({finding["check"] for finding in line.get("findings", [])})
        assert len({finding["check"] for finding in line.get("findings", [])}) == len(line.get("findings", []))
    assert counted == result.tally.findings
    for check in result.checks:
        if check.interval is None and check.name not in _OF_ALL:
            assert check.count == counted[check.name], check.name
    assert len(lines) == result.rows + result.bad
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["findings"] == dict(counted) and summary["verdict"] == result.verdict
    assert summary["usable"] == result.rows and summary["rows"].get("bad row", 0) == result.bad
    for name in counted:
        assert sum(source["findings"].get(name, 0) for source in summary["sources"]) == counted[name]
    return dict(counted)


_OF_ALL = {"bad_rows", "test_bad_rows", "mixed_shapes", "language_mix", "overlap", "test_prompts"}
"""Checks that are no findings of training rows."""


# ------------------------------------------------------------------------------------------------- clean and planted


def test_clean_rows_are_fit(tmp_path: Path) -> None:
    result = run(tmp_path, clean(60), test={"path": str(tiny.write(tmp_path / "t.jsonl", clean(20, seed=9)))})
    assert found(result) == {} and result.verdict == "ok" and result.exit_code(strict=True) == 0
    assert {check.status for check in result.checks} == {"ok"} and result.prompts == 60
    assert result["length_bias"].count == 30 and result["language_mix"].says.startswith("100 % English")


Change = Callable[[list[dict[str, Any]]], None]


def _swap(rows: list[dict[str, Any]]) -> None:
    rows[7] = {"prompt": rows[3]["prompt"], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}


def _copy(rows: list[dict[str, Any]]) -> None:
    rows[7], rows[9] = dict(rows[3], id=7), dict(rows[3])  # other columns do not count


def _nearly(rows: list[dict[str, Any]]) -> None:
    words = rows[3]["chosen"].split()
    rows[7] = dict(rows[3], chosen=" ".join([*words[:-1], "it!"]))


def _answer(rows: list[dict[str, Any]]) -> None:
    rows[7]["chosen"] = rows[8]["rejected"] = rows[3]["chosen"]


PLANTED: dict[str, tuple[Change, dict[str, int]]] = {
    "copies": (_copy, {"duplicate_rows": 2}),
    "nearly a copy": (_nearly, {"near_duplicates": 1, "repeated_prompts": 1}),
    "the same prompt": (lambda rows: rows[7].update(prompt=rows[3]["prompt"]), {"repeated_prompts": 1}),
    "the same answer": (_answer, {"repeated_answers": 2}),
    "a short answer twice": (lambda rows: [rows[n].update(chosen="yes, it is") for n in (3, 4)] and None, {}),
    "swapped sides": (_swap, {"conflicts": 1, "repeated_prompts": 1}),
    "an empty side": (lambda rows: rows[7].update(rejected=""), {"empty": 1}),
    "white space": (lambda rows: rows[7].update(chosen=" \n"), {"empty": 1}),
    "equal sides": (lambda rows: rows[7].update(rejected=rows[7]["chosen"] + " "), {"identical": 1}),
    "a cut side": (lambda rows: rows[7].update(rejected=rows[7]["chosen"][:20]), {"prefix": 1}),
    "another language": (
        lambda rows: rows[7].update(chosen="das ist nicht der beste weg, aber er ist auch nicht schlecht."),
        {"other_language": 1},
    ),
    "a control character": (lambda rows: rows[7].update(chosen=rows[7]["chosen"] + "\x07"), {"control": 1}),
    "a wrong decoding": (lambda rows: rows[7].update(prompt=rows[7]["prompt"] + " cafÃ©"), {"mojibake": 1}),
    "an address": (lambda rows: rows[7].update(chosen=rows[7]["chosen"] + " me@mail.net"), {"personal": 1}),
    "a key": (lambda rows: rows[7].update(chosen=rows[7]["chosen"] + " AKIAABCDEFGHIJKLMNOP"), {"secrets": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(tmp_path: Path, name: str) -> None:
    change, expected = PLANTED[name]
    rows = clean(40)
    change(rows)
    result = run(tmp_path, rows)
    assert found(result) == expected
    for check in expected:
        assert result[check].share == expected[check] / result[check].of
        assert result[check].status == judge(result[check].share, *getattr(Limits(), check))
        told = result[check].examples
        assert len(told) == expected[check] and told[0].where.endswith((":8", ":9", ":10"))
        assert result[check].title in (result.folder / "report.html").read_text()


def test_all_of_them_together(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    expected: Counter[str] = Counter()
    for number, (change, counts) in enumerate(PLANTED.values()):
        part = clean(40, seed=100 + number)
        change(part)
        rows += part
        expected.update(counts)
    result = run(tmp_path, rows)
    assert found(result) == expected
    assert result.verdict == "not fit"  # a key in 1 of 600


def test_findings_name_the_other_row(tmp_path: Path) -> None:
    rows = clean(20)
    _swap(rows)
    result = run(tmp_path, rows)
    line = tiny.lines(result.folder / "decisions.jsonl")[7]
    assert {finding["of"] for finding in line["findings"]} == {f"{tmp_path}/rows.jsonl:4"}
    assert line["kept"] is True and line["shape"] == "pairs"


# --------------------------------------------------------------------------------------------------- bad rows, shapes


def test_bad_rows_by_kind_and_place(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", clean(10))
    with path.open("a") as file:
        file.write(
            '{"prompt": "a", "chosen": 3, "rejected": "x"}\n{bad\n{"prompt": "a", "chosen": 4, "rejected": "x"}\n'
        )
        file.write(json.dumps({"messages": [{"role": "assistant", "content": "first"}]}) + "\n")
    result = audit(AuditConfig.model_validate({"data": {"path": str(path), "format": "preference"}}), tmp_path / "out")
    check = result["bad_rows"]
    assert (check.count, check.of, check.status) == (4, 14, "not fit") and "stop at 4" in check.says
    kinds = result.tally.bad
    assert sorted(kinds.kinds.values()) == [1, 1, 2]
    assert [where.rsplit(":", 1)[1] for where, _ in kinds.first[kinds.kinds.most_common(1)[0][0]]] == ["11", "13"]
    lines = [line for line in tiny.lines(tmp_path / "out" / "decisions.jsonl") if line.get("why") == "bad row"]
    assert [line["where"].rsplit(":", 1)[1] for line in lines] == ["11", "12", "13", "14"]
    assert all(line["problem"] and line["kind"] for line in lines)
    found(result)


def test_bad_rows_that_are_skipped_are_held_against_the_threshold(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [*clean(10), {"prompt": "a"}])
    for bounds, status in (([0.2, 0.3], "ok"), ([0, 0.3], "look"), ([0, 0.05], "not fit")):
        data = {"path": str(path), "format": "preference", "on_bad_row": "skip"}
        config = AuditConfig.model_validate({"data": data, "limits": {"bad_rows": bounds}})
        assert audit(config, tmp_path / status)["bad_rows"].status == status


def test_no_usable_row_is_not_fit(tmp_path: Path) -> None:
    result = run(tmp_path, [{"x": 1}, {"x": 2}])
    assert result.verdict == "not fit" and result["bad_rows"].count == 2 and (result.folder / "report.html").exists()
    found(result)


def test_mixed_shapes(tmp_path: Path) -> None:
    one = tiny.write(tmp_path / "a.jsonl", clean(9))
    other = tiny.write(tmp_path / "b.jsonl", marks(3))
    config = AuditConfig.model_validate({"data": [{"path": str(one)}, {"path": str(other)}]})
    result = audit(config, tmp_path / "out")
    check = result["mixed_shapes"]
    assert (check.count, check.of, check.status, check.says) == (3, 12, "look", "9 pairs, 3 marks")
    sources = json.loads((tmp_path / "out" / "summary.json").read_text())["sources"]
    assert [(source["rows"], source["shapes"]) for source in sources] == [(9, {"pairs": 9}), (3, {"marks": 3})]
    assert {result["identical"].of, result["conflicts"].of} == {9, 12}


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_other_files_say_the_same(tmp_path: Path, kind: str) -> None:
    rows = clean(20)
    _copy(rows)
    rows = [{"prompt": r["prompt"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in rows]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    result = audit(AuditConfig.model_validate({"data": {"path": str(path)}}), tmp_path / "out")
    assert found(result) == {"duplicate_rows": 2}
    where = {"csv": "rows.csv:9", "parquet": "rows.parquet[7]", "json": "rows.json[7]"}[kind]
    assert result["duplicate_rows"].examples[0].where.endswith(where)


# --------------------------------------------------------------------------------------------------- marks and biases


def test_marks_and_contradicting_marks(tmp_path: Path) -> None:
    rows = marks(40)
    rows[7] = dict(rows[4], label=not rows[4]["label"])
    result = run(tmp_path, rows)
    assert found(result) == {"conflicts": 1, "repeated_prompts": 1}
    assert result["conflicts"].examples[0].of.endswith(":5") and result["conflicts"].of == 40
    balance = result["label_balance"]
    good = sum(row["label"] for row in rows)
    assert (balance.count, balance.of) == (good, 40) and balance.share == abs(good / 40 - 0.5)


@pytest.mark.parametrize(("good", "status"), [(20, "ok"), (33, "look"), (40, "not fit"), (0, "not fit")])
def test_balance_of_marks(tmp_path: Path, good: int, status: str) -> None:
    rows = [dict(row, label=i < good) for i, row in enumerate(marks(40))]
    assert run(tmp_path, rows)["label_balance"].status == status


def test_label_threshold(tmp_path: Path) -> None:
    rows = [dict(row, label=i % 5) for i, row in enumerate(marks(40))]
    result = run(tmp_path, rows, data={"path": str(tmp_path / "rows.jsonl"), "format": "unpaired"}, label_threshold=3)
    assert result["label_balance"].count == 16


def test_length_bias_is_what_is_sure(tmp_path: Path) -> None:
    rows = clean(40)
    assert run(tmp_path, rows)["length_bias"].share == 0
    for row in rows:
        row["chosen"] += " and more of the same"
        row["rejected"] = row["rejected"][:25] + "."
    check = run(tmp_path, rows)["length_bias"]
    assert check.interval is not None and check.interval.value == 1 and check.status == "not fit"
    assert check.share == pytest.approx(check.interval.low - 0.5) and check.count == 40
    few = run(tmp_path, rows[:4])["length_bias"]
    assert few.interval is not None and few.interval.value == 1 and few.status == "ok"  # four pairs prove nothing


def test_ranked_rows(tmp_path: Path) -> None:
    base = clean(6)
    rows = [
        {"prompt": row["prompt"], "responses": [row["chosen"], f"is the {i} not of that?", row["rejected"]]}
        for i, row in enumerate(base)
    ]
    rows[2]["responses"][2] = rows[2]["responses"][0]
    rows[3]["responses"] = [rows[3]["responses"][0][:12], *rows[3]["responses"][:1]]
    rows[5] = {"prompt": rows[4]["prompt"], "responses": rows[4]["responses"][::-1]}
    result = run(tmp_path, rows)
    assert found(result) == {"identical": 1, "prefix": 1, "conflicts": 2, "repeated_prompts": 1}  # one is within a row
    notes = [finding.note for finding in result["identical"].examples]
    assert notes == ["answer 1 and answer 3"] and result["length_bias"].of == 6


def test_many_answers_are_not_compared_each_with_each(tmp_path: Path) -> None:
    rows = [{"prompt": "what?", "responses": [f"the answer is {n} and not {n + 1}" for n in range(300)]}]
    rows[0]["responses"][250] = rows[0]["responses"][0]
    assert found(run(tmp_path, rows)) == {"identical": 1}


# ------------------------------------------------------------------------------------------------------------ the test


def test_test_rows_in_the_training_rows(tmp_path: Path) -> None:
    rows, test = clean(30), clean(10, seed=9)
    test[2] = rows[4]  # whole
    test[5] = dict(test[5], prompt=f"please: {rows[6]['prompt']} thanks")  # most of it
    path = tiny.write(tmp_path / "test.jsonl", test)
    with path.open("a") as file:
        file.write("{bad\n")
    result = run(tmp_path, rows, test={"path": str(path), "on_bad_row": "skip"}, overlap={"ngram": 8})
    assert found(result) == {"in_test": 2}
    assert (result["overlap"].count, result["overlap"].of, result["overlap"].status) == (2, 10, "not fit")
    assert (result["test_prompts"].count, result["test_bad_rows"].count) == (1, 1)
    lines = tiny.lines(result.folder / "test.jsonl")
    bad, told = [line for line in lines if "problem" in line], [line for line in lines if "share" in line]
    assert [line["where"].rsplit(":", 1)[1] for line in bad] == ["11"]
    assert [n for n, line in enumerate(told) if line["contaminated"]] == [2, 5]
    assert told[2]["prompt_at"].endswith("rows.jsonl:5") and told[5]["found_at"].endswith("rows.jsonl:7")
    assert told[2]["share"] == 1 and told[5]["prompt_at"] == ""
    shown = result["overlap"].examples
    assert [example.where.rsplit(":", 1)[1] for example in shown] == ["3", "6"]
    assert dict(shown[1].texts)["training row"] == rows[6]["prompt"]
    marked = [line for line in tiny.lines(result.folder / "decisions.jsonl") if line["findings"]]
    assert [line["where"].rsplit(":", 1)[1] for line in marked] == ["5", "7"]


# ---------------------------------------------------------------------------------------------------------- the tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), max_position_embeddings=200)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    chatml().save_pretrained(folder)
    return folder


TALK = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n} é字."},
                  {"role": "user", "content": "And\n<|im_end|> more?"}, {"role": "assistant", "content": "No."}]}
    for n in range(4)
]  # fmt: skip


def _contract(folder: Path, tokens: dict[str, Any]) -> TokenContract:
    """As training makes it, from the whole model."""
    from preftune.config import ModelConfig, TokensConfig
    from preftune.models import load_policy

    policy = load_policy(ModelConfig(path=str(folder), device="cpu"))
    return TokenContract(policy.tokenizer, TokensConfig(**tokens), policy.generation_eos)


@pytest.mark.parametrize(
    "tokens",
    [{}, {"max_prompt_tokens": 101}, {"max_prompt_tokens": 101, "on_too_long": "truncate-prompt-left"},
     {"max_completion_tokens": 80}, {"drop_above_percentile": 50.0}, {"drop_above_percentile": 60.0,
     "max_completion_tokens": 80}],
)  # fmt: skip
def test_counts_are_those_of_the_token_contract(tmp_path: Path, model: Path, tokens: dict[str, Any]) -> None:
    rows = clean(30)
    rows[3]["prompt"] += "<eos>"
    rows[4]["chosen"] += "É"
    result = run(tmp_path, rows, model={"path": str(model)}, tokens=tokens)
    loaded = load_examples(AuditConfig.model_validate({"data": {"path": str(tmp_path / "rows.jsonl")}}).data, seed=0)
    groups, counts = _contract(model, tokens).prepare(loaded.examples, with_completions=True, context_length=200)
    assert result.tokens is not None and result.tokens.counts == counts
    assert result["too_long"].count == counts.dropped + counts.truncated
    assert found(result).get("special_text") == found(result).get("unknown") == 1
    kept = [line for line in tiny.lines(result.folder / "decisions.jsonl") if line["kept"]]
    assert [line["where"] for line in kept] == [group.prompt.where for group in groups]
    for line, group in zip(kept, groups, strict=True):
        assert line["tokens"]["answers"] == [len(one.ids) for one in group.completions]
    summary = json.loads((result.folder / "summary.json").read_text())["tokens"]
    assert summary["counts"]["dropped"] == counts.dropped and summary["counts"]["reasons"] == dict(counts.reasons)
    assert result["length_bias"].says.count("tokens") == 1


def test_over_each_limit(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "a" * n, "completion": "b" * m} for n, m in ((10, 10), (150, 10), (10, 150), (120, 90))]
    limits = {"max_prompt_tokens": 130, "max_completion_tokens": 120}
    result = run(tmp_path, rows, model={"path": str(model)}, tokens=limits)
    tokens = result.tokens
    assert tokens is not None and (tokens.over_prompt, tokens.over_answer, tokens.over_context) == (1, 1, 1)
    assert (result["too_long"].count, tokens.counts.kept) == (3, 1)
    assert list(tokens.lengths.totals) == [21, 161, 161, 211] and list(tokens.lengths.prompts) == [10, 150, 10, 120]


def test_on_too_long_error_is_not_fit(tmp_path: Path, model: Path) -> None:
    tokens = {"max_prompt_tokens": 20, "on_too_long": "error"}
    result = run(tmp_path, clean(3), model={"path": str(model)}, tokens=tokens)
    assert result["too_long"].status == "not fit" and "stops at 3" in result["too_long"].says
    assert not any(line["kept"] for line in tiny.lines(result.folder / "decisions.jsonl"))
    roomy = {"drop_above_percentile": 50.0, "on_too_long": "error"}  # what the percentile drops stops nothing
    result = run(tmp_path, clean(10), model={"path": str(model)}, tokens=roomy)
    assert result["too_long"].count > 0 and result.tokens is not None and result.tokens.stopped == 0


def test_tokens_shown_are_those_that_training_gets(tmp_path: Path, chat: Path) -> None:
    result = run(tmp_path, TALK, model={"path": str(chat)}, show=3)
    data = AuditConfig.model_validate({"data": {"path": str(tmp_path / "rows.jsonl")}}).data
    from preftune.config import TokensConfig

    contract = TokenContract(chatml(), TokensConfig())
    groups = {group.prompt.where: group for group in contract.prepare(
        load_examples(data, seed=0).examples, with_completions=True)[0]}  # fmt: skip
    shown = json.loads((result.folder / "summary.json").read_text())["tokens"]["shown"]
    assert len(shown) == 3
    for row in shown:
        group = groups[row["where"]]
        assert row["prompt"] == list(group.prompt.ids) and row["shape"] == "answers"
        assert row["answers"] == [{"ids": list(one.ids), "mask": list(one.mask)} for one in group.completions]
    page = (result.folder / "report.html").read_text()
    ids = [i for row in shown for i in (*row["prompt"], *row["answers"][0]["ids"])]
    assert page.count('title="id ') == len(ids)
    ends = sum(i in contract.eos_ids and m for r in shown for a in r["answers"]
               for i, m in zip(a["ids"], a["mask"], strict=True))  # fmt: skip
    assert page.count('class="token end"') == ends + 1 and ends == 6  # one is the legend's


def test_colours_spell_the_text(chat: Path) -> None:
    from preftune.config import TokensConfig
    from preftune.curation.audit.tokenised import coloured
    from preftune.records import Example, Message

    contract = TokenContract(chatml(), TokensConfig())
    example = Example((Message("user", "Grüß 字\n!"),), ((Message("assistant", "é字 🐉"), Message("user", "x"),
                      Message("assistant", "y")),), where="a")  # fmt: skip
    group = contract.group(example)
    (one,) = group.completions
    for ids, mask in ((group.prompt.ids, None), (one.ids, one.mask)):
        line = coloured(ids, mask, contract)
        spelled = "".join(text for text, _, _ in line if text != "◌").replace("↵\n", "\n")
        assert spelled == contract.text_with_specials(ids) and len(line) == len(ids)
        assert [f"id {i}" for i in ids] == [title for _, _, title in line]
    kinds = Counter(kind for _, kind, _ in coloured(one.ids, one.mask, contract))
    assert kinds["end"] == 2 and kinds["trained"] + kinds["end"] == sum(one.mask) and kinds["special"] >= 1
    assert {kind for _, kind, _ in coloured(group.prompt.ids, None, contract)} == {"prompt", "special"}


def test_colours_of_a_long_text_are_its_two_ends_and_take_no_longer_the_longer_it_is(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preftune.config import TokensConfig
    from preftune.curation.audit.tokenised import coloured

    contract = TokenContract(chatml(), TokensConfig())
    ids = tuple(chatml()("é字 a🐉b " * 300, add_special_tokens=False)["input_ids"])
    mask = tuple(n % 3 > 0 for n in range(len(ids)))
    whole = coloured(ids, mask, contract)
    decoded: list[int] = []
    plain = TokenContract.text_with_specials
    monkeypatch.setattr(
        TokenContract, "text_with_specials", lambda self, some: (decoded.append(len(some)), plain(self, some))[1]
    )
    for most in (100, 101, 7):
        line = coloured(ids, mask, contract, most)
        half = most // 2
        assert line[:half] == whole[:half] and line[half + 1 :] == whole[-half:] and len(line) == 2 * half + 1
        assert f"{len(ids) - 2 * half:,} tokens" in line[half][0]
    assert coloured(ids[:50], mask[:50], contract, 50) == coloured(ids[:50], mask[:50], contract)
    assert max(decoded) <= 24 and sum(decoded) < 20_000 < sum(range(len(ids)))


def test_double_bos_special_text_and_eos(tmp_path: Path) -> None:
    folder = tmp_path / "bos"
    with_bos(None).save_pretrained(folder)
    rows = [{"prompt": "say", "completion": text} for text in ("a", "b <s> c", "d</s>")]
    rows.append({"prompt": "x <s> y", "completion": "e"})
    result = run(tmp_path, rows, model={"path": str(folder)}, near={"threshold": None})
    assert result["double_bos"].count == 2 and result["special_text"].count == 3 and result.verdict == "not fit"
    assert result.tokens is not None and result.tokens.context is None
    assert "near_duplicates" not in {check.name for check in result.checks}


def test_eos_invented(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    chatml(chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
           "{% if add_generation_prompt %}assistant: {% endif %}").save_pretrained(folder)  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": f"q{n}"}], "completion": f"a{n}"} for n in range(3)]
    result = run(tmp_path, rows, model={"path": str(folder)})
    assert result["eos_invented"].count == 3 and result["eos_invented"].status == "look"
    assert result.tokens is not None and result.tokens.counts.eos_invented == 3


def test_rows_that_training_would_stop_at(tmp_path: Path, model: Path) -> None:
    rows: list[dict[str, Any]] = [*clean(3), {"messages": TALK[0]["messages"]}]  # and there is no chat template
    path = [str(tiny.write(tmp_path / f"{n}.jsonl", part)) for n, part in enumerate((rows[:3], rows[3:]))]
    config = AuditConfig.model_validate({"data": [{"path": one} for one in path], "model": {"path": str(model)}})
    result = audit(config, tmp_path / "out")
    check = result["untokenised"]
    assert (check.count, check.status) == (1, "not fit") and "chat template" in check.examples[0].note
    assert tiny.lines(tmp_path / "out" / "decisions.jsonl")[3]["why"] == "can't be tokenised"
    found(result)


def test_prompts_alone(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "a" * n, "answer": "1"} for n in (5, 100, 190)]
    result = run(tmp_path, rows, model={"path": str(model)}, new_tokens=50)
    assert result.tokens is not None and result.tokens.counts.kept == 2  # 190 + 50 > 200
    pairs = run(tmp_path, clean(5), model={"path": str(model)}, use="prompts", new_tokens=50)
    assert pairs.tokens is not None and not len(pairs.tokens.lengths.answers) and pairs.tokens.counts.kept == 5
    assert "words" in pairs["length_bias"].says
    with pytest.raises(DataError, match="new_tokens 200 leaves no room"):
        run(tmp_path, rows, model={"path": str(model)}, use="prompts", new_tokens=200)


def test_the_seed_decides_what_is_shown(tmp_path: Path, model: Path) -> None:
    def shown(seed: int) -> list[str]:
        result = run(tmp_path, clean(30), model={"path": str(model)}, seed=seed, show=2)
        told = json.loads((result.folder / "summary.json").read_text())["tokens"]["shown"]
        return [row["where"] for row in told]

    assert shown(1) == shown(1) and len({tuple(shown(seed)) for seed in range(4)}) > 1


def test_rows_with_keys_are_not_shown(tmp_path: Path, model: Path) -> None:
    rows = clean(3)
    for row in rows:
        row["chosen"] += " me@mail.net hf_" + "ab1" * 11
    result = run(tmp_path, rows, model={"path": str(model)})
    page = (result.folder / "report.html").read_text()
    assert "me@mail.net" not in page and "ab1ab1" not in page and "me•••••••et" in page
    everything = (result.folder / "summary.json").read_text() + (result.folder / "decisions.jsonl").read_text()
    assert "mail.net" not in everything and "ab1ab1" not in everything


def test_the_tokenizer_alone_is_read_as_with_the_weights(tmp_path: Path) -> None:
    from preftune.config import ModelConfig
    from preftune.models import load_policy
    from preftune.models.tokenizer import load_tokenizer

    folder = tiny.save(tmp_path / "model", eos_token_id=[1, 7])
    policy, loaded = (load(ModelConfig(path=str(folder), device="cpu")) for load in (load_policy, load_tokenizer))
    assert loaded.generation_eos == policy.generation_eos == (1, 7)
    assert loaded.context_length == policy.context_length == 128
    assert loaded.vocabulary == policy.base.get_input_embeddings().weight.shape[0]
    for file in folder.glob("*.safetensors"):
        file.unlink()  # weights are not needed
    assert load_tokenizer(ModelConfig(path=str(folder))).generation_eos == (1, 7)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 5}))
    assert load_tokenizer(ModelConfig(path=str(folder))).generation_eos == (5,)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(ModelConfig(path=str(folder))).generation_eos == (1, 7)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", vocab_size=20)
    result = run(tmp_path, [{"prompt": "abc", "completion": "zz"}], model={"path": str(folder)})
    assert "outside the model's 20 embeddings" in result["untokenised"].examples[0].note


# ----------------------------------------------------------------------------------- requests, hostile rows, property


def test_wrong_requests(tmp_path: Path, model: Path) -> None:
    path = str(tiny.write(tmp_path / "rows.jsonl", clean(3)))
    with pytest.raises(ModelError, match="does not exist"):
        run(tmp_path, clean(3), model={"path": str(tmp_path / "none")})
    with pytest.raises(DataError, match="no such file"):
        audit(AuditConfig.model_validate({"data": {"path": f"{path}x.jsonl"}}), tmp_path / "a")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        audit(AuditConfig.model_validate({"data": {"path": path}}), tmp_path / "taken")
    for wrong, message in (
        ({"data": {"path": path, "weight": 2.0}}, "data.weight has no meaning"),
        ({"data": {"path": path}, "model": {"path": "m", "dtype": "float32"}}, "model.dtype has no meaning"),
        ({"data": {"path": path}, "tokens": {"max_prompt_tokens": 3}}, "give model.path"),
        ({"data": {"path": path}, "limits": {"empty": [0.5, 0.1]}}, "second not below the first"),
        ({"data": {"path": path, "contest": {}}}, "contest is a setting of training"),
        ({"data": []}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AuditConfig.model_validate(wrong)


def test_nothing_of_a_row_is_markup_or_moves_the_terminal(tmp_path: Path, model: Path) -> None:
    rows = clean(8)
    rows[3].update(prompt="<script>alert(1)</script> </pre> {{ 7*7 }} \x1b[31m", chosen="<img src=x onerror=alert(2)>")
    rows[4]["rejected"] = rows[4]["chosen"] = "</span><b>bold</b> \u202e"
    result = run(tmp_path, rows, model={"path": str(model)}, show=8, examples=10)
    page = (result.folder / "report.html").read_text()
    assert "<script>alert(1)" not in page and "<img src=x" not in page and "<b>bold" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_examples_are_bounded_and_the_worst_come_first(tmp_path: Path) -> None:
    rows = clean(20)
    for n in range(10):
        rows[n]["chosen"] += "\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f"[: n + 1]
    result = run(tmp_path, rows, examples=3, limits={"control": [0, 1]})
    assert [shown.where.rsplit(":", 1)[1] for shown in result["control"].examples] == ["10", "9", "8"]
    assert result["control"].count == 10 and result["control"].status == "look"
    assert run(tmp_path, rows, examples=0)["control"].examples == ()


TEXTS = st.sampled_from(
    ["a", "b", "", " ", "the answer is not of that kind", "the answer is not of that kind, or is it", "é\x07", "cafÃ©",
     "das ist nicht der weg, aber er ist gut und schön", "me@mail.net", "<eos>", "x" * 150, "字" * 5]
)  # fmt: skip
ROWS = st.one_of(
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}),
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": st.lists(TEXTS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"prompt": TEXTS}),
    st.fixed_dictionaries({"chosen": st.integers()}),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=12), test=st.lists(ROWS, max_size=4), with_model=st.booleans())
def test_findings_of_rows_and_totals_are_the_same(
    tmp_path: Path, model: Path, rows: list[Any], test: list[Any], with_model: bool
) -> None:
    held = {"test": {"path": str(tiny.write(tmp_path / "test.jsonl", test))}} if test else {}
    settings = {**held, **({"model": {"path": str(model)}} if with_model else {})}
    data = {"path": str(tiny.write(tmp_path / "rows.jsonl", rows)), "format": "preference"}
    result = run(tmp_path, rows, **{**settings, "data": data})
    found(result)
    assert result.rows + result.bad == len(rows)
    for check in result.checks:
        assert check.name in ADVICE and 0 <= check.count <= check.of and 0 <= check.share <= 1


def test_every_threshold_is_a_check_and_the_other_way_round() -> None:
    assert set(Limits.model_fields) == set(ADVICE) - {"test_bad_rows", "untokenised"}


def test_the_page_of_the_docs_names_every_check_with_its_thresholds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "curation-audit.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| *([\d.]*),? ?([\d.]*) *\|$", text.partition("## The checks")[2], re.MULTILINE
    )
    told = {name: [float(look), float(unfit)] for name, look, unfit in rows if look}
    assert told == {name: getattr(Limits(), name) for name in Limits.model_fields}
    assert {name for name, _, _ in rows} == set(ADVICE) - {"test_bad_rows"}
