"""The built-in `judge`: win rates, scores and ranks by hand; a verdict that fails is never a zero."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import RewardConfig
from preftune.errors import ModelError, RewardError, UsageError
from preftune.judges import JudgeConfig
from preftune.recipes import resolve
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.base import Scored
from preftune.rewards.builtins import make_builtin
from preftune.rewards.judge import JudgeReward
from preftune.train.loop import run
from tests import tiny
from tests.judges.fakes import Server, blocks, first_place, honest, rubbish

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def group(prompt: str | tuple[Message, ...], *texts: str, where: str = "rows.jsonl:1", **columns: Any) -> Group:
    return Group(Prompt((5,), "", prompt, columns, where), tuple(Completion((9,), (True,), text=t) for t in texts))


def score(server: Server, *groups: Group, on_error: Any = "stop", **args: Any) -> Scored:
    args = {"model": "big", "base_url": server.url, "backoff": 0.01, **args}
    with build_rewards([RewardConfig(name="judge", args=args, on_error=on_error)]) as rewards:
        return rewards.score(groups, 0, 1)


def values(scored: Scored) -> list[float | None]:
    return [c.score for g in scored.groups for c in g.completions]


# --- values -------------------------------------------------------------------------------------------------


def test_pairwise_is_the_win_rate_within_the_group(server: Server) -> None:
    done = score(server, group("t", "q3", "q7", "my q3", "q1"), group("u", "q1", "q2", where="rows.jsonl:2"))
    # q7 beats three; the two q3 tie and beat q1: (½ + 1)/3
    assert values(done) == pytest.approx([0.5, 1, 0.5, 0, 0, 1])
    assert len(server.requests) == 2 * (6 + 1)
    assert all("answer A" in blocks(prompt) for prompt in server.prompts)


def test_pointwise_is_scaled_to_one(server: Server) -> None:
    assert values(score(server, group("t", "q3", "q10", "q0"), mode="pointwise")) == pytest.approx([0.3, 1, 0])
    assert values(score(server, group("t", "q7", "q1"), mode="pointwise", rubric="olympiad")) == pytest.approx(
        [1, 1 / 7]
    )
    own = {"mode": "pointwise", "rubric": "Only rhymes count.", "scale": [1, 5]}
    assert values(score(server, group("t", "q1", "q4"), **own)) == pytest.approx([0, 0.75])


def test_listwise_is_the_rank(server: Server) -> None:
    assert values(score(server, group("t", "q3", "q7", "my q3", "q1"), mode="listwise")) == pytest.approx(
        [0.5, 1, 0.5, 0]
    )


def test_a_judge_that_loves_a_place_gives_no_spread(server: Server) -> None:
    server.rule = first_place
    assert values(score(server, group("t", "q3", "q7", "q1"))) == [0.5] * 3
    assert values(score(server, group("t", "q3", "q7", "q1"), mode="listwise")) == [0.5] * 3


def test_conversations_reach_the_judge(server: Server) -> None:
    talk = (Message("system", "Be brief."), Message("user", "2+2?"))
    assert values(score(server, group(talk, "q1", "q2"))) == [0, 1]
    assert "Be brief." in blocks(server.prompts[0])["task"] and "2+2?" in blocks(server.prompts[0])["task"]


def test_a_completion_alone_is_graded_or_not_at_all(server: Server) -> None:
    assert values(score(server, group("t", "q4"), mode="pointwise")) == [0.4]
    for mode in ("pairwise", "listwise"):
        with pytest.raises(RewardError, match=r"no reward applies to rows\.jsonl:1"):
            score(server, group("t", "q4"), mode=mode)


def test_a_reference_is_shown_and_rows_without_one_get_no_value(server: Server) -> None:
    rows = [group("t", "q4", "q5", truth="forty"), group("u", "q4", "q5", truth=None, where="rows.jsonl:2")]
    done = score(server, *rows, reference="truth", on_error="skip")
    assert values(done) == [0, 1, None, None]
    assert {blocks(prompt)["reference answer"] for prompt in server.prompts} == {"forty"}
    assert done.skipped == 0  # it does not apply there: nothing failed
    with pytest.raises(RewardError, match="needs the column 'truht', but the data has only truth"):
        score(server, *rows, reference="truht")


def test_a_list_of_references_means_any(server: Server) -> None:
    score(server, group("t", "q4", "q5", truth=["4", "four"]), reference="truth")
    assert blocks(server.prompts[0])["reference answer"] == "4 or four"


# --- what is told -------------------------------------------------------------------------------------------


def test_explanations_and_counts_are_logged(server: Server) -> None:
    done = score(server, group("t", "q1", "q2"), price_input=1.0, price_output=10.0)
    assert [extra["judge"] for extra in done.extras] == [
        {"score": 0, "votes": 2, "failed": 0, "seen_as": "answer A", "says": "Fine.\n<verdict>B</verdict>"},
        {"score": 1, "votes": 2, "failed": 0, "seen_as": "answer B", "says": "Fine.\n<verdict>B</verdict>"},
    ]
    logged = {k.removeprefix("logged/"): v for k, v in done.metrics.items() if k.startswith("logged/")}
    assert logged == {
        "judge_requests": 2, "judge_cached": 0, "judge_failed": 0, "judge_input_tokens": 200,
        "judge_output_tokens": 20, "judge_cost": pytest.approx((200 * 1 + 20 * 10) / 1e6),
    }  # fmt: skip
    again = score(server, group("t", "q1", "q2"))
    assert again.metrics["logged/judge_cached"] == 2 and again.metrics["logged/judge_requests"] == 0
    assert "logged/judge_cost" not in again.metrics and len(server.requests) == 2


def test_counts_are_those_of_the_batch(server: Server) -> None:
    args = {"model": "big", "base_url": server.url}
    with build_rewards([RewardConfig(name="judge", args=args)]) as rewards:
        for number in range(2):
            done = rewards.score([group(f"t{number}", "q1", "q2")], number, 2)
            assert done.metrics["logged/judge_requests"] == 2


# --- failures -----------------------------------------------------------------------------------------------


def sulking(prompt: str) -> str:
    return rubbish(prompt) if "secret" in prompt else honest(prompt)


def test_a_failed_verdict_stops_the_run_and_names_the_row(server: Server) -> None:
    server.rule = sulking
    with pytest.raises(RewardError) as caught:
        score(server, group("t", "q1", "q2"), group("u", "q1", "secret q9", where="rows.jsonl:2"))
    assert str(caught.value).startswith(
        "reward 'judge' failed on rows.jsonl:2, completion 1 of 2: it got no verdict from its judge: the reply holds no"
    )


def test_a_failed_verdict_is_left_out_and_never_a_zero(server: Server) -> None:
    server.rule = sulking
    done = score(server, group("t", "q1", "secret q9", "q2"), on_error="skip")
    assert values(done) == [0, None, 1] and done.skipped == 1
    assert "reward_row_by_row/judge" not in done.metrics
    graded = score(server, group("t", "q1", "secret q9"), mode="pointwise", on_error="skip")
    assert values(graded) == [0.1, None] and graded.extras[1]["judge"]["failed"] == 1


def test_a_judge_without_any_verdict_stops_even_a_run_that_skips(server: Server) -> None:
    server.rule = rubbish
    groups = [group(f"t{n}", "q1", "q2", where=f"rows.jsonl:{n}") for n in range(10)]
    with pytest.raises(
        RewardError, match=r"can't ask its judge: 20 of 20 replies of the judge big \(100%\) hold no verdict"
    ):
        score(server, *groups, on_error="skip")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_dead_endpoint_is_one_error_and_not_asked_row_by_row(server: Server, on_error: str) -> None:
    server.respond = lambda body, number: (404, {"error": {"message": "no such model"}})
    groups = [group(f"t{n}", "q1", "q2", where=f"rows.jsonl:{n}") for n in range(5)]
    with pytest.raises(
        RewardError, match=r"^reward 'judge' can't ask its judge: .*404, no such model; check the model's name"
    ):
        score(server, *groups, on_error=on_error, concurrency=1)
    assert len(server.requests) == 1


def test_a_judge_that_can_not_be_used_is_known_before_completions_are_drawn(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "mute")
    for args, message in (
        ({"path": str(model)}, "has no chat template"),
        ({"path": str(tmp_path / "none")}, "does not exist"),
        ({"model": "big"}, "set the environment variable OPENAI_API_KEY"),
        ({"model": "big", "rubric": "none.md"}, "rubric: can't read the file none.md"),
    ):
        with pytest.raises(ModelError, match=f"^reward 'judge' can't use its judge: .*{message}"):
            build_rewards([RewardConfig(name="judge", args=args)])


# --- settings -----------------------------------------------------------------------------------------------


def test_its_arguments_are_the_settings_of_a_judge() -> None:
    """All but `on_failure`, which the reward's own `on_error` takes the place of; with the same defaults."""
    args = {f.name: f.default for f in dataclasses.fields(JudgeReward)}
    assert set(args) == {*JudgeConfig.model_fields, "reference"} - {"on_failure"}
    for name, info in JudgeConfig.model_fields.items():
        if name != "on_failure":
            assert args[name] == info.get_default(call_default_factory=True) or (args[name] is None), name
            assert args[name] is not None or info.get_default(call_default_factory=True) in (None, {}), name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "give path .* or model"),
        ({"model": "m", "votes": 0}, "votes: Input should be greater than or equal to 1"),
        ({"model": "m", "mode": "pointwise", "swap": False}, "swap has no meaning in mode pointwise"),
        ({"model": "m", "rubrik": "quality"}, "unknown argument 'rubrik' under args; did you mean 'rubric'"),
        ({"model": "m", "mode": "pair"}, "args.mode"),
        ({"path": "p", "timeout": 5.0}, "timeout goes with model"),
    ],
)
def test_arguments_are_checked_without_the_model(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_builtin("judge", args)


def test_it_can_be_sent_to_a_process() -> None:
    reward = JudgeReward(model="m", base_url="http://127.0.0.1:9/v1", extra_body={"top_k": 1})
    assert pickle.loads(pickle.dumps(reward)) == reward


def test_recipes_with_a_judge_are_checked_without_torch() -> None:
    code = (
        "import sys\n"
        "from preftune.recipes import resolve\n"
        "resolve({'method': 'grpo', 'model': {'path': 'm'}, 'data': {'path': 'd'}, 'train': {'steps': 1},\n"
        "         'rewards': [{'name': 'judge', 'args': {'model': 'big', 'mode': 'listwise'}}]})\n"
        "print('heavy', [name for name in ('torch', 'transformers', 'openai') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "heavy []" in done.stdout


# --- a run --------------------------------------------------------------------------------------------------


def by_digits(prompt: str) -> str:
    """Prefers the answer with more digits."""
    count = {n: sum(c.isdigit() for c in text) for n, text in blocks(prompt).items() if n.startswith("answer ")}
    a, b = count["answer A"], count["answer B"]
    return f"<verdict>{'tie' if a == b else 'A' if a > b else 'B'}</verdict>"


def test_a_run_learns_from_it(server: Server, tmp_path: Path) -> None:
    server.rule = by_digits
    tiny.save(tmp_path / "policy")
    tiny.write(tmp_path / "rows.jsonl", tiny.sums(8))
    recipe: Any = resolve(
        {
            "method": "grpo", "model": {"path": str(tmp_path / "policy")},
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "log": {"sinks": [], "samples_every": 1}, "sampling": {"group_size": 4, "max_tokens": 6},
            "rewards": [{"name": "judge", "args": {"model": "big", "base_url": server.url}}],
            "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3},
        }
    ).stages[0]  # fmt: skip
    result = run(recipe, tmp_path / "run")
    samples = [s for s in tiny.lines(result.folder / "samples.jsonl") if s["split"] == "train"]
    by_group: dict[tuple[int, str], list[Any]] = {}
    for sample in samples:
        by_group.setdefault((sample["step"], sample["where"]), []).append(sample)
    assert by_group
    for some in by_group.values():
        digits = [sum(c.isdigit() for c in s["completion"]) for s in some]
        for n, sample in enumerate(some):
            others = digits[:n] + digits[n + 1 :]
            rate = sum(1.0 if digits[n] > d else 0.5 if digits[n] == d else 0.0 for d in others) / len(others)
            assert sample["breakdown"]["judge"] == pytest.approx(rate)
