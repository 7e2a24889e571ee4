"""Agreement with known truth: pairs from every format, and measures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError
from preftune.intervals import mean_interval
from preftune.judges import Evaluation, EvaluationConfig, JudgeError, Usage, evaluate
from preftune.judges.agreement import Asked, JudgedPair, kappa, measure
from preftune.judges.base import Vote
from tests import tiny
from tests.judges.fakes import Fake, Rule, blocks, first_place, honest, rubbish


def run(path: Path, rule: Rule = honest, *, judge: dict[str, Any] | None = None, **fields: Any) -> Evaluation:
    data = {"path": str(path), **fields.pop("data", {})}
    request = {"judge": {"model": "m", "cache": "off", **(judge or {})}, "data": data, **fields}
    return evaluate(EvaluationConfig.model_validate(request), backend=Fake(rule))


def pair(right: float | None, prompt: int = 0, **fields: Any) -> JudgedPair:
    scores = None if right is None else (right, 1 - right)
    fields = {"lengths": (1, 1), **fields}
    return JudgedPair("rows.jsonl:1", prompt, 0, 1, scores, "" if scores else "nothing", **fields)


# --- measures -----------------------------------------------------------------------------------------------


def test_accuracy_ties_and_abstentions_by_hand() -> None:
    found = measure([pair(r, n) for n, r in enumerate([1.0, 1.0, 1.0, 0.0, 0.5, None])], [])
    assert (found.pairs, found.prompts, found.judged, found.ties, found.abstained) == (6, 6, 5, 1, 1)
    assert found.accuracy is not None and found.accuracy.value == pytest.approx(3.5 / 5)
    assert found.decided == mean_interval([1, 1, 1, 0]) and found.decided.value == 0.75
    # p = 3/5, t = 1/5, e = 2/5: (0.6 − 0.4)/(1 − 0.4)
    assert found.kappa == pytest.approx(1 / 3)


def test_kappa_by_hand() -> None:
    assert kappa([]) is None
    assert kappa([1.0] * 5) == 1.0
    assert kappa([0.0] * 5) == -1.0
    assert kappa([1.0, 0.0]) == 0.0
    assert kappa([0.5, 0.5]) == 0.0  # ties alone agree with nothing


def test_kappa_is_that_of_the_table_with_both_orientations() -> None:
    rights = [1.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.5]
    other = {"first": "second", "second": "first", "tie": "tie"}
    said = [{1.0: "first", 0.5: "tie", 0.0: "second"}[right] for right in rights]
    table = [("first", one) for one in said] + [("second", other[one]) for one in said]
    agreed = sum(truth == one for truth, one in table) / len(table)
    by_chance = sum(
        sum(truth == name for truth, _ in table) / len(table) * sum(one == name for _, one in table) / len(table)
        for name in other
    )
    assert kappa(rights) == pytest.approx((agreed - by_chance) / (1 - by_chance))


def test_the_prompt_is_the_unit() -> None:
    """Three pairs of one prompt, all right, and one of another, wrong: (1 + 0)/2."""
    found = measure([pair(1.0), pair(1.0), pair(1.0), pair(0.0, 1)], [])
    assert found.accuracy == mean_interval([1, 0]) and found.accuracy.n == 2
    assert found.kappa == pytest.approx(0.5)  # over pairs


def test_by_source_and_by_length() -> None:
    found = measure(
        [
            pair(1.0, 0, sources=("human", "small"), lengths=(5, 3)),
            pair(0.0, 1, sources=("human", "small"), lengths=(3, 5)),
            pair(1.0, 2, sources=("large", "small"), lengths=(4, 4)),
            pair(None, 3, sources=("large", "small"), lengths=(4, 4)),
            pair(1.0, 4, lengths=(5, 3)),
        ],
        [],
    )
    assert {name: (value.value, value.n) for name, value in found.by_source.items()} == {
        "human over small": (0.5, 2), "large over small": (1.0, 1)
    }  # fmt: skip
    assert {name: (value.value, value.n) for name, value in found.by_length.items()} == {
        "longer": (1.0, 2), "shorter": (0.0, 1), "equal": (1.0, 1)
    }  # fmt: skip


def vote(shown: tuple[int, ...], *said: float, number: int = 0) -> Vote:
    return Vote(shown, number, said or None, "", "", False)


def test_place_and_consistency_by_hand() -> None:
    there, back = (0, 1), (1, 0)
    asked = [
        Asked(0, (vote(there, 1, 0), vote(back, 1, 0))),  # the first place twice
        Asked(1, (vote(there, 1, 0), vote(back, 0, 1))),  # the first answer twice
        Asked(2, (vote(there, 0.5, 0.5), vote(back, 0.5, 0.5))),  # no preference
        Asked(3, (vote(there, 1, 0), vote(back))),  # one order silent: says nothing of the place
        Asked(4, (vote(there, 1, 0), vote(there, 0, 1, number=1), vote(there, 1, 0, number=2), vote(back, 0, 1))),
    ]
    found = measure([pair(1.0)], asked)
    assert found.follows_place == mean_interval([1, 0, 0, 0])
    # mean of the first place's score per prompt: 1, ½, ½, 1, ½
    assert found.first_place is not None and found.first_place.value == pytest.approx(0.7)
    # of the three pairs of votes in one order one agrees
    assert found.consistency is not None and found.consistency.value == pytest.approx(1 / 3)
    single = measure([pair(1.0)], [Asked(0, (vote((0,), 7),))])
    assert (single.follows_place, single.first_place, single.consistency) == (None, None, None)


def test_nothing_judged() -> None:
    found = measure([pair(None)], [])
    assert (found.accuracy, found.kappa, found.judged) == (None, None, 0)
    assert "1 without a verdict" in str(found)
    with pytest.raises(ValueError, match="no judged pairs"):
        measure([], [])


def test_words_and_json() -> None:
    usage = Usage(10, 4, 6, 1, 1200, 60, uncounted=1)
    found = measure(
        [pair(1.0, n, sources=("a", "b")) for n in range(40)], [Asked(0, (vote((0, 1), 1, 0), vote((1, 0), 0, 1)))],
        without_pairs=3, usage=usage, cost=0.5, complaint="1 of 10 replies …",
    )  # fmt: skip
    said = str(found)
    assert "40 pairs of 40 prompts: 0 ties, 0 without a verdict\n3 prompts left out" in said
    assert "agreement with the truth (a tie counts ½): 1.000 [0.912, 1.000] (n = 40)" in said
    assert "Cohen's kappa: +1.000" in said and "a over b: 1.000" in said and said.endswith("1 of 10 replies …")
    assert "10 replies: 6 asked (1,200 tokens in, 60 out), 4 from the cache; 1 came without token counts" in said
    assert "cost at least 0.5000" in said
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["accuracy"]["n"] == 40 and content["usage"]["input_tokens"] == 1200 and content["cost"] == 0.5


# --- formats ------------------------------------------------------------------------------------------------


def test_preference_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"t{n}", "chosen": "q5", "rejected": "q3" if n else "my q7"} for n in range(4)]
    found = run(tiny.write(tmp_path / "d.jsonl", rows))
    assert found.agreement.accuracy == mean_interval([0, 1, 1, 1])
    assert found.agreement.usage.requests == 8 and found.agreement.follows_place == mean_interval([0, 0, 0, 0])
    assert (found.pairs[0].where, found.pairs[0].lengths) == (f"{tmp_path / 'd.jsonl'}:1", (2, 5))


def test_conversations(tmp_path: Path) -> None:
    rows = [{"chosen": turns("t", "q5"), "rejected": turns("t", "q3")}]
    found = run(tiny.write(tmp_path / "d.jsonl", rows))
    assert found.agreement.accuracy is not None and found.agreement.accuracy.value == 1
    assert found.questions[0].answers[0][0].content == "q5"  # type: ignore[union-attr]


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


RESPONSES = [
    {"model": "large", "text": "q9", "correct": True},
    {"model": "small", "text": "q2", "correct": False},
    {"model": "tiny", "text": "q1", "correct": False},
]


def gsm8k(path: Path) -> dict[str, Any]:
    """Rows shaped like GSM8K's right and wrong solutions, and the mapping of recipes/gsm8k-dpo.yaml."""
    rows = [
        {"question": "one?", "reference": "q8", "responses": RESPONSES},
        {"question": "two?", "reference": "q8", "responses": [r | {"correct": False} for r in RESPONSES[1:]]},
        {"question": "three?", "reference": "q8", "responses": [r | {"correct": True} for r in RESPONSES[:2]]},
    ]
    tiny.write(path, rows)
    return {
        "columns": {"prompt": {"template": "{question}\n", "strip": False}},
        "responses": {"from": "responses", "text": "text", "score": "correct", "source": "model"},
    }


def test_right_and_wrong_solutions(tmp_path: Path) -> None:
    mapping = gsm8k(tmp_path / "d.jsonl")
    found = run(tmp_path / "d.jsonl", data=mapping)
    assert [(p.better, p.worse, p.right) for p in found.pairs] == [(0, 1, 1.0), (0, 2, 1.0)]
    assert found.agreement.without_pairs == 2  # all wrong, all right
    mapping["responses"]["also"] = [{"column": "reference", "score": 1, "source": "human"}]
    found = run(tmp_path / "d.jsonl", data=mapping)
    assert (found.agreement.pairs, found.agreement.prompts, found.agreement.without_pairs) == (6, 2, 1)
    assert set(found.agreement.by_source) == {
        "large over small", "large over tiny", "human over small", "human over tiny"
    }  # fmt: skip


def test_a_reference_is_shown(tmp_path: Path) -> None:
    mapping = gsm8k(tmp_path / "d.jsonl")

    def by_reference(prompt: str) -> str:
        assert blocks(prompt)["reference answer"] == "q8"
        return honest(prompt)

    found = run(tmp_path / "d.jsonl", by_reference, data=mapping, reference="reference")
    assert found.agreement.judged == 2
    with pytest.raises(DataError, match="the column 'truth' for the reference is missing or empty; further columns"):
        run(tmp_path / "d.jsonl", data=mapping, reference="truth")


def test_ranked_rows_give_every_pair_of_different_rank(tmp_path: Path) -> None:
    rows = [{"prompt": "t", "responses": ["q9", "q5", "q7"]}]
    found = run(tiny.write(tmp_path / "d.jsonl", rows))
    assert [(p.better, p.worse, p.right) for p in found.pairs] == [(0, 1, 1), (0, 2, 1), (1, 2, 0)]
    assert found.agreement.accuracy is not None and found.agreement.accuracy.value == pytest.approx(2 / 3)


def test_labelled_answers_to_one_prompt_are_compared(tmp_path: Path) -> None:
    rows = [
        {"prompt": "t", "completion": "q9", "label": True},
        {"prompt": "u", "completion": "q1", "label": False},
        {"prompt": "t", "completion": "q3", "label": False},
        {"prompt": "t", "completion": "q4", "label": False},
    ]
    found = run(tiny.write(tmp_path / "d.jsonl", rows))
    assert [(p.prompt, p.better, p.worse, p.right) for p in found.pairs] == [(0, 0, 1, 1), (0, 0, 2, 1)]
    assert found.agreement.without_pairs == 1


def test_rows_of_two_pairs_are_not_mixed(tmp_path: Path) -> None:
    """chosen of one row and rejected of another were never compared, though the prompt is one."""
    rows = [{"prompt": "t", "chosen": f"q{n + 5}", "rejected": f"q{n}"} for n in range(2)]
    found = run(tiny.write(tmp_path / "d.jsonl", rows))
    assert (found.agreement.pairs, found.agreement.prompts) == (2, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "t", "completion": "c"}, "d.jsonl:1: the row does not say which answer is better"),
        ({"prompt": "t"}, "d.jsonl:1: the row does not say which answer is better"),
        ({"prompt": "t", "completion": "c", "label": True}, "none of the 1 prompts has a better and a worse answer"),
    ],
)
def test_data_without_truth(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(tiny.write(tmp_path / "d.jsonl", [row]))


# --- modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "requests"), [("pairwise", 6), ("pointwise", 3), ("listwise", 2)])
def test_every_mode_gives_the_pairs(tmp_path: Path, mode: str, requests: int) -> None:
    rows = [{"prompt": "t", "responses": ["q9", "q7", "q5"]}]
    found = run(tiny.write(tmp_path / "d.jsonl", rows), judge={"mode": mode})
    assert [p.right for p in found.pairs] == [1, 1, 1] and found.agreement.usage.requests == requests


def test_equal_scores_are_a_tie_of_the_pair(tmp_path: Path) -> None:
    rows = [{"prompt": "t", "chosen": "my q5", "rejected": "q5"}]
    found = run(tiny.write(tmp_path / "d.jsonl", rows), judge={"mode": "pointwise"})
    assert found.agreement.ties == 1 and found.pairs[0].scores == (5, 5)


def test_position_bias_is_measured_and_cancelled(tmp_path: Path) -> None:
    rows = [{"prompt": f"t{n}", "chosen": "q5", "rejected": "q3"} for n in range(10)]
    found = run(tiny.write(tmp_path / "d.jsonl", rows), first_place).agreement
    assert found.ties == 10 and found.kappa == 0
    assert found.follows_place == mean_interval([1.0] * 10) and found.first_place == mean_interval([1.0] * 10)
    assert found.decided is None


def test_abstentions_are_counted_and_an_example_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"t{n}", "chosen": "q5", "rejected": "q3"} for n in range(4)]
    path = tiny.write(tmp_path / "d.jsonl", rows)
    found = run(path, lambda prompt: rubbish(prompt) if blocks(prompt)["task"] == "t2" else honest(prompt))
    assert (found.agreement.judged, found.agreement.abstained) == (3, 1)
    assert "2 of 8 replies of the judge m (25%) hold no verdict; the first, on " in found.agreement.complaint
    assert found.line(2)["verdict"] is None and "holds no <verdict>" in found.line(2)["problem"]
    with pytest.raises(JudgeError, match=r"8 of 8 replies of the judge m \(100%\) hold no verdict"):
        run(path, rubbish)


def test_consistency_of_votes(tmp_path: Path) -> None:
    """Two votes of three agree in each order, so one pair of votes of three does."""
    said = iter("AAB" + "BBA")
    rows = [{"prompt": "t", "chosen": "q5", "rejected": "q3"}]
    path = tiny.write(tmp_path / "d.jsonl", rows)
    found = run(path, lambda prompt: f"<verdict>{next(said)}</verdict>", judge={"votes": 3})
    assert found.agreement.consistency is not None and found.agreement.consistency.value == pytest.approx(1 / 3)
    assert found.pairs[0].right == 1


def test_cost_by_hand(tmp_path: Path) -> None:
    rows = [{"prompt": "t", "chosen": "q5", "rejected": "q3"}]
    path = tiny.write(tmp_path / "d.jsonl", rows)
    found = run(path, judge={"price_input": 3.0, "price_output": 15.0})
    assert found.agreement.cost == pytest.approx((200 * 3 + 20 * 15) / 1e6)


def test_a_limit_takes_one_pair_of_each_prompt_first(tmp_path: Path) -> None:
    rows = [{"prompt": f"t{n}", "responses": ["q9", "q7", "q5"]} for n in range(4)]
    path = tiny.write(tmp_path / "d.jsonl", rows)
    by_limit = {}
    for limit in (2, 4, 6, 12, 99):
        found = run(path, limit=limit)
        by_limit[limit] = [(p.prompt, p.better, p.worse) for p in found.pairs]
    assert {limit: len(pairs) for limit, pairs in by_limit.items()} == {2: 2, 4: 4, 6: 6, 12: 12, 99: 12}
    assert [prompt for prompt, _, _ in by_limit[4]] == [0, 1, 2, 3]
    assert set(by_limit[2]) < set(by_limit[4]) < set(by_limit[6]) < set(by_limit[12])
    assert len({pair[1:] for pair in by_limit[4]}) > 1  # not always the same places of the row


def test_lines_hold_what_was_said(tmp_path: Path) -> None:
    found = run(tiny.write(tmp_path / "d.jsonl", [{"prompt": "t", "chosen": "q5", "rejected": "q3"}]))
    line = json.loads(json.dumps(found.line(0)))
    assert (line["verdict"], line["scores"], line["better"], line["worse"]) == ("better", [1, 0], 0, 1)
    assert [vote["shown"] for vote in line["votes"]] == [[0, 1], [1, 0]]
    assert line["votes"][0]["text"] == "Fine.\n<verdict>A</verdict>" and line["votes"][1]["scores"] == [0, 1]


def test_lines_name_the_places_in_the_row(tmp_path: Path) -> None:
    mapping = gsm8k(tmp_path / "d.jsonl")
    found = run(tmp_path / "d.jsonl", data=mapping)
    assert [vote["shown"] for vote in found.line(1)["votes"]] == [[0, 2], [2, 0]]
    ranked = run(tmp_path / "d.jsonl", data=mapping, judge={"mode": "listwise"})
    first, second = (vote["shown"] for vote in ranked.line(1)["votes"])
    assert sorted(first) == [0, 1, 2] and second == first[::-1]


def test_several_sources_keep_their_order_and_skip_bad_rows(tmp_path: Path) -> None:
    one = tiny.write(tmp_path / "a.jsonl", [{"prompt": "t", "chosen": "q5", "rejected": "q3"}, {"prompt": "u"}])
    two = tiny.write(tmp_path / "b.jsonl", [{"prompt": "v", "chosen": "q5", "rejected": "q3"}])
    request = {
        "judge": {"model": "m", "cache": "off"},
        "data": [{"path": str(one), "on_bad_row": "skip"}, {"path": str(two)}],
    }
    found = evaluate(EvaluationConfig.model_validate(request), backend=Fake())
    assert [p.where for p in found.pairs] == [f"{one}:1", f"{two}:1"] and found.bad_rows == 1
