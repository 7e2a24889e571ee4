"""`collect.trace: winner`: the winner's working and the answer out of one contest, token by token; what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.competition import Construct
from preftune.config import CompetitionConfig, Recipe, TokensConfig
from preftune.data.collected import write_collected
from preftune.errors import DataError, UsageError
from preftune.recipes import resolve
from preftune.records import Completion, Example, Group, Message
from preftune.tokens import TokenContract
from preftune.train import loop
from preftune.train.loop import run
from preftune.train.trace import cut_traces, winners_trace, without_system
from tests import tiny
from tests.train.acting import columns

PERSONAS = [{"name": "fox", "prompt": "slyly"}, {"name": "owl", "prompt": "wisely"}]
CONFIG = {"personas": PERSONAS, "system": "be a fox, then an owl."}
DUEL = Construct.of(CompetitionConfig.model_validate(CONFIG))
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def contest(winner: str = "owl", *, fox: str = "3?", owl: str = "2+2 is 4.", answer: str = "it is 4.") -> str:
    return DUEL.render({"fox": fox, "owl": owl}, "hm.", winner, answer)


@pytest.fixture(scope="module")
def contract() -> TokenContract:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return TokenContract(tokenizer, TokensConfig())


def written(contract: TokenContract, text: str, finish: Any = "eos", **more: Any) -> Completion:
    ids = contract.encode(text) + ((contract.eos_id,) if finish == "eos" else ())
    return Completion(ids, (True,) * len(ids), text, finish, (-0.5,) * len(ids), source="policy", **more)


def group(contract: TokenContract, *completions: Completion, question: str = "2+2?", chat: bool = True) -> Group:
    turns = (Message("system", CONFIG["system"]), Message("user", question))
    prompt = contract.prompt(Example(turns if chat else question, columns={"answer": "4"}, where="rows.jsonl:1"))
    return Group(prompt, completions)


# --- cutting ----------------------------------------------------------------------------------------------------


def test_what_a_trace_is() -> None:
    assert winners_trace(contest(), DUEL) == ("owl", "2+2 is 4.\n\nit is 4.")
    assert winners_trace(contest("the fox!", fox=" 1+3\n=4 "), DUEL) == ("fox", "1+3\n=4\n\nit is 4.")
    late = "let us see. " + contest()
    assert winners_trace(late, DUEL) == ("owl", "2+2 is 4.\n\nit is 4.")


@pytest.mark.parametrize(
    "text",
    [
        "it is 4.", "", contest("bear"), contest("fox or owl"), contest("owl", owl=" "), contest(answer=""),
        contest(answer="4 <winner>fox</winner>"), contest().replace("</competition>", ""),
        contest().replace("</owl>", ""), contest().replace("<owl>", ""), contest(owl="2 <fox>and</fox> 2"),
    ],
)  # fmt: skip
def test_what_is_no_contest_with_a_winner(text: str) -> None:
    assert winners_trace(text, DUEL) is None


def test_the_contests_system_prompt_goes_and_the_sources_own_stays() -> None:
    user, own, told = Message("user", "q"), Message("system", "be brief"), Message("system", DUEL.system_prompt)
    assert without_system((told, user), DUEL) == (user,)
    assert without_system((own, user), DUEL) == (own, user)
    assert without_system("q", DUEL) == "q" and without_system((told, user), None) == (told, user)


def test_a_trace_is_tokenised_as_data_is(contract: TokenContract) -> None:
    whole = written(contract, contest(), score=2.0, breakdown={"a": 2.0}, notes={"judge": "fine"}, policy_version=0)
    (made,), won, left = cut_traces([group(contract, whole)], DUEL, contract)
    assert (won, left) == ({"fox": 0, "owl": 1}, 0)
    assert made.prompt.text == "user: 2+2?<eos>assistant: " and made.prompt.columns == {"answer": "4"}
    assert made.prompt.content == (Message("user", "2+2?"),)
    (one,) = made.completions
    assert one.ids == (*contract.encode("2+2 is 4.\n\nit is 4."), contract.eos_id) and all(one.mask)
    assert one.text == "2+2 is 4.\n\nit is 4." and one.logprobs is None and one.finish == "eos"
    assert (one.score, one.breakdown, one.source) == (2.0, {"a": 2.0}, "policy")
    assert one.notes == {"judge": "fine", "trace": "winner", "winner": "owl"}


def test_the_end_is_the_completions_own(contract: TokenContract) -> None:
    """One that was cut, or ended at a stop string, teaches no end."""
    for finish, ends in (("eos", True), ("length", False), ("stop", False)):
        ((made,), _, _) = cut_traces([group(contract, written(contract, contest(), finish))], DUEL, contract)
        (one,) = made.completions
        assert (one.ids[-1] == contract.eos_id) == ends and contract.decode(one.ids) == "2+2 is 4.\n\nit is 4."
        assert len(one.ids) == len(one.mask) and one.finish == finish


def test_what_is_left_out_is_counted_and_equal_traces_are_one(contract: TokenContract) -> None:
    some = [written(contract, text) for text in (contest(), "no contest", contest(fox="5?"), contest("fox"))]
    lone = written(contract, contest("bear"))
    made, won, left = cut_traces(
        [group(contract, *some), group(contract, lone, question="1+1?")], DUEL, contract
    )  # fmt: skip
    assert [len(g.completions) for g in made] == [2] and (won, left) == ({"fox": 1, "owl": 1}, 2)


def test_plain_prompts_stay_plain(contract: TokenContract) -> None:
    silent = Construct.of(CompetitionConfig.model_validate({**CONFIG, "system": ""}))
    ((made,), _, _) = cut_traces([group(contract, written(contract, contest()), chat=False)], silent, contract)
    assert made.prompt.text == "2+2?" and made.completions[0].text == "2+2 is 4.\n\nit is 4."


# --- a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, contract: TokenContract) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    tiny.model(0, max_position_embeddings=512).save_pretrained(folder / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    tiny.write(folder / "rows.jsonl", tiny.sums(6))
    return folder


def recipe(home: Path, path: Path | None, **changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "method": "rft", "model": {"path": str(home / "model")},
        "data": {"path": str(home / "rows.jsonl"), "chat": True}, "competition": CONFIG,
        "log": {"sinks": []}, "sampling": {"group_size": 2, "max_tokens": 8},
        "rewards": [{"name": "length", "args": {"at_most": 3, "ramp": 6}}, {"name": "exact", "weight": 0}],
        "collect": {"trace": "winner", "path": None if path is None else str(path)},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}, "eval": {"holdout": 2, "max_tokens": 4},
    }  # fmt: skip
    for section, value in changes.items():
        raw[section] = {**raw[section], **value} if isinstance(raw.get(section), dict) and value else value
    return resolve(raw).stages[0]


@pytest.fixture(scope="module")
def answers(home: Path, contract: TokenContract) -> Path:
    """Three prompts: an owl's win and a fox's of a lower score, a fox's, and no contest."""
    groups = [
        group(contract, written(contract, contest(), score=2.0), written(contract, contest("fox"), score=1.0)),
        group(contract, written(contract, contest("fox"), "length", score=1.0), question="1+1?"),
        group(contract, written(contract, "4", score=3.0), question="0+0?"),
    ]
    write_collected(home / "answers.jsonl", groups, {})
    return home / "answers.jsonl"


def test_a_run_trains_on_traces(home: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Group] = []
    honest = loop.backward

    def backward(engine: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(part.groups)
        return honest(engine, part, *args, **kwargs)

    monkeypatch.setattr(loop, "backward", backward)
    run(recipe(home, answers), tmp_path / "run")
    texts = {(g.prompt.text, c.text, c.ids[-1] == 1) for g in seen for c in g.completions}
    assert texts == {
        ("user: 2+2?<eos>assistant: ", "2+2 is 4.\n\nit is 4.", True),
        ("user: 1+1?<eos>assistant: ", "3?\n\nit is 4.", False),
    }
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    (said,) = [note for note in notes if note.startswith("collected: 4 answers to 3 prompts")]
    assert said.endswith("2 prompts and 2 answers are trained on")
    (told,) = [note for note in notes if note.startswith("traces of winners")]
    assert told == (
        "traces of winners: fox 1, owl 1; held-out prompts are measured without the contest's system prompt, too; 1 "
        "completions left out, as they are no contests with one winner, its working and an answer"
    )
    assert columns(tmp_path / "run")[0]["collected/prompts_kept"] == pytest.approx(2 / 3)
    measured = [s for s in tiny.lines(tmp_path / "run" / "samples.jsonl") if s["split"] == "validation"]
    assert measured and all(s["prompt"].startswith("user: ") for s in measured)


def test_whole_contests_are_the_default(home: Path, answers: Path, tmp_path: Path) -> None:
    run(recipe(home, answers, collect={"trace": "whole"}), tmp_path / "run")
    samples = tiny.lines(tmp_path / "run" / "samples.jsonl")
    assert all(s["prompt"].startswith("system: be a fox") for s in samples)
    assert columns(tmp_path / "run")[0]["collected/prompts_kept"] == 1.0


def test_no_trace_at_all_is_an_error_that_says_so(home: Path, tmp_path: Path) -> None:
    """A model that was never taught the contest writes none. Its answers are kept."""
    said = (
        r"none is left to train on: traces of winners: fox 0, owl 0; .*4 completions left out, as they are no contests"
        r".*The answers are kept"
    )
    with pytest.raises(DataError, match=said):
        run(recipe(home, None, collect={"path": None}, eval={"holdout": 2, "max_tokens": 4}), tmp_path / "run")
    first = tiny.lines(tmp_path / "run" / "collected.jsonl")[1]
    assert first["prompt"]["text"].startswith("system: be a fox")  # drawn with the contest's system prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"competition": None}, "collect.trace: winner cuts out of a competition, and the recipe describes none"),
        ({"method": "iterative-dpo"}, "collect.trace: method iterative-dpo does not read it"),
        ({"method": "grpo"}, "collect.trace: method grpo collects no answers before training"),
    ],
)
def test_where_it_has_no_meaning(home: Path, answers: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(home, answers, **change)
