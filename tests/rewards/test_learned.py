"""The built-in `reward-model`: its scores are those of plain transformers on the texts it should have read."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe, RewardConfig
from preftune.errors import ModelError, RewardError, UsageError
from preftune.models.reward import load_reward
from preftune.recipes import resolve
from preftune.records import Completion, Finish, Group, Message, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.builtins import make_builtin
from preftune.rewards.learned import LearnedReward, RewardReader
from preftune.train.loop import run
from tests import tiny, tinyreward

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain: without a template or normalisation; chat: with both."""
    folder = tmp_path_factory.mktemp("reward-models")
    tinyreward.save(folder / "plain")
    tinyreward.save(folder / "chat", seed=1, chat=True, normalization=(0.5, 2.0))
    return folder


def completion(text: str, finish: Finish = "eos") -> Completion:
    """As another model's tokenizer would give it: its ids mean nothing to the reward model."""
    return Completion((9, 9), (True, True), text=text, finish=finish)


def group(prompt: str | tuple[Message, ...], *completions: Completion, where: str = "rows.jsonl:1") -> Group:
    return Group(Prompt((5,), "", prompt, {}, where), completions)


def scores(path: Path, *groups: Group, **args: Any) -> list[float | None]:
    on_error = args.pop("on_error", "stop")
    config = RewardConfig(name="reward-model", args={"path": str(path), **args}, on_error=on_error)
    with build_rewards([config]) as rewards:
        done = rewards.score(groups, 0, 1)
    return [c.score for g in done.groups for c in g.completions]


def plain(path: Path, *texts: str) -> Any:
    return pytest.approx([tinyreward.plain_score(path, text) for text in texts], abs=1e-5)


def test_scores_are_those_of_plain_transformers(models: Path) -> None:
    found = scores(
        models / "plain",
        group("1+2=", completion("3"), completion("four?"), completion("")),
        group("say hi.", completion("hi!")),
        group("1+2=", completion("no")),
    )
    texts = ["1+2=3<eos>", "1+2=four?<eos>", "1+2=<eos>", "say hi.hi!<eos>", "1+2=no<eos>"]
    assert found == plain(models / "plain", *texts)
    assert max(found) - min(found) > 0.1  # type: ignore[type-var, operator]


def test_a_conversation_goes_through_the_reward_models_own_template(models: Path) -> None:
    talk = (Message("user", "1+2?"), Message("assistant", "3"), Message("user", "sure?"))
    found = scores(models / "chat", group(talk, completion("yes"), completion("no")), normalize=False)
    said = "user: 1+2?<eos>assistant: 3<eos>user: sure?<eos>assistant: "
    assert found == plain(models / "chat", f"{said}yes<eos>", f"{said}no<eos>")


def test_chat_makes_a_plain_prompt_a_user_message(models: Path) -> None:
    row = group("1+2?", completion("3"))
    as_chat = scores(models / "chat", row, chat=True, normalize=False)
    assert as_chat == plain(models / "chat", "user: 1+2?<eos>assistant: 3<eos>")
    assert scores(models / "chat", row, normalize=False) == plain(models / "chat", "1+2?3<eos>")


@pytest.mark.parametrize("chat", [False, True])
def test_a_cut_completion_gets_no_end(models: Path, chat: bool) -> None:
    ways: tuple[Finish, ...] = ("eos", "stop", "data", "length")
    found = scores(models / "chat", group("1+2?", *(completion("3", w) for w in ways)), chat=chat, normalize=False)
    text = "user: 1+2?<eos>assistant: 3" if chat else "1+2?3"
    assert found == plain(models / "chat", *[f"{text}<eos>"] * 3, text)
    assert abs(found[0] - found[3]) > 0.01  # type: ignore[operator]


def test_a_cut_completion_without_text_is_an_error_of_its_row(models: Path) -> None:
    row = group("1+2=", completion("3"), completion("", "length"))
    with pytest.raises(RewardError, match=r"rows\.jsonl:1, completion 2 of 2: it can't read it: the completion is emp"):
        scores(models / "plain", row)


def test_normalisation_is_what_the_model_carries(models: Path) -> None:
    row = group("1+2=", completion("3"))
    (raw,) = scores(models / "chat", row, normalize=False)
    assert raw is not None
    for choice in ("auto", True):
        assert scores(models / "chat", row, normalize=choice) == pytest.approx([(raw - 0.5) / 2.0])
    assert scores(models / "plain", row) == scores(models / "plain", row, normalize=False)
    with pytest.raises(ModelError, match=r"carries no normalisation.*set normalize to auto or false"):
        scores(models / "plain", row, normalize=True)


LONG = "a" * 130


def test_a_row_that_is_too_long_is_named_and_never_cut(models: Path) -> None:
    rows = group("1+2=", completion("3")), group("x", completion(LONG), where="rows.jsonl:2")
    with pytest.raises(RewardError) as caught:
        scores(models / "plain", *rows)
    assert "rows.jsonl:2, completion 1 of 1: it can't read it: prompt and completion are 132 tokens" in str(
        caught.value
    )
    assert "128 positions" in str(caught.value)
    with pytest.raises(RewardError, match="6 tokens, more than max_tokens_per_batch 5"):
        scores(models / "plain", rows[0], max_tokens_per_batch=5)


def test_a_row_that_is_too_long_can_be_left_out(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []
    rate = RewardReader.rate

    def counted(self: RewardReader, groups: Any) -> list[list[float]]:
        calls.append([len(one.completions) for one in groups])
        return rate(self, groups)

    monkeypatch.setattr(RewardReader, "rate", counted)
    row = group("1+2=", completion("3"), completion(LONG), completion("4"))
    found = scores(models / "plain", row, group("x", completion("y")), on_error="skip")
    assert found[1] is None
    assert [found[0], found[2], found[3]] == plain(models / "plain", "1+2=3<eos>", "1+2=4<eos>", "xy<eos>")
    assert calls == [[2, 1]]  # one pass, the prompt shared, no search for the row at fault


def test_prompts_are_shared_and_turns_are_not(models: Path) -> None:
    """Rows of one prompt make one group; a completion of several turns is read by itself."""
    reward = LearnedReward(str(models / "chat"), normalize=False)
    asked = [{"role": "user", "content": "1+2?"}]
    answer = [{"role": "assistant", "content": "3"}]
    longer = [*answer, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    sizes = [len(rows) for rows in reward._shared([asked] * 4, [answer, answer, longer, answer])]
    assert sizes == [2, 1, 1]
    found = reward([asked] * 3, [answer, longer, answer], ["data"] * 3)
    said = "user: 1+2?<eos>assistant: 3<eos>"
    assert found == plain(models / "chat", said, f"{said}user: sure?<eos>assistant: yes<eos>", said)


def test_the_model_loads_once_and_before_any_completion(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    init = RewardReader.__init__

    def counted(self: RewardReader, config: Any, *args: Any, **kwargs: Any) -> None:
        loads.append(config.path)
        init(self, config, *args, **kwargs)

    monkeypatch.setattr(RewardReader, "__init__", counted)
    with build_rewards([RewardConfig(name="reward-model", args={"path": str(models / "plain")})]) as rewards:
        assert loads == [str(models / "plain")]
        for _ in range(2):
            rewards.score([group("1+2=", completion("3"))], 0, 1)
    assert len(loads) == 1


def test_loading_takes_no_random_numbers_from_the_run(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when the model's own code draws some while it is being made."""

    def drawing(*args: Any, **kwargs: Any) -> Any:
        torch.rand(7)
        return load_reward(*args, **kwargs)

    monkeypatch.setattr("preftune.models.reward.load_reward", drawing)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    LearnedReward(str(models / "plain")).prepare()
    assert torch.equal(torch.rand(1), expected)


def test_what_is_no_reward_model_is_refused_at_once(models: Path, tmp_path: Path) -> None:
    policy = tiny.save(tmp_path / "policy")
    two = tinyreward.save(tmp_path / "two", labels=2)
    row = group("1+2=", completion("3"))
    for path, message in (
        (policy, "has no reward head"),
        (two, "2 labels"),
        (tmp_path / "nothing", "does not exist"),
        (Path("stage:rm"), "stands for a stage of a recipe"),
    ):
        with pytest.raises(ModelError, match=rf"^reward 'reward-model' can't use args.path .*{path.name}: .*{message}"):
            scores(path, row)


def test_a_conversation_for_a_model_without_a_template_is_an_error(models: Path) -> None:
    with pytest.raises(RewardError, match="has no chat template, and the prompts are conversations"):
        scores(models / "plain", group((Message("user", "hi"),), completion("ho")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args.path: Missing|args.path: Field required|missing"),
        ({"path": ""}, "path is empty"),
        ({"path": "m", "pathh": "m"}, "unknown argument 'pathh' under args; did you mean 'path'"),
        ({"path": "m", "normalize": "perhaps"}, "args.normalize"),
        ({"path": "m", "max_tokens_per_batch": 0}, "must be at least 1, got 0"),
        ({"path": "m", "dtype": "int8"}, "args.dtype"),
    ],
)
def test_arguments_are_checked_without_the_model(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_builtin("reward-model", args)


def test_recipes_are_checked_and_rewards_listed_without_torch() -> None:
    code = (
        "import sys\n"
        "from preftune.cli.main import main\n"
        "from preftune.recipes import resolve\n"
        "resolve({'method': 'grpo', 'model': {'path': 'm'}, 'data': {'path': 'd'}, 'train': {'steps': 1},\n"
        "         'rewards': [{'name': 'reward-model', 'args': {'path': 'no/such-model'}}]})\n"
        "main(['rewards'])\n"
        "print('heavy', [name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"^reward-model: ", done.stdout, re.M)
    assert "heavy []" in done.stdout


def test_it_can_be_sent_to_a_process(models: Path) -> None:
    reward = LearnedReward(str(models / "plain"))
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert "_reader" not in vars(pickle.loads(pickle.dumps(reward)))


def test_a_run_learns_from_it_and_logs_its_score(models: Path, tmp_path: Path) -> None:
    tiny.save(tmp_path / "policy")
    tiny.write(tmp_path / "rows.jsonl", tiny.sums(8))
    recipe: Recipe = resolve(
        {
            "method": "grpo", "model": {"path": str(tmp_path / "policy")},
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "log": {"sinks": [], "samples_every": 1}, "sampling": {"group_size": 3, "max_tokens": 4},
            "rewards": [{"name": "reward-model", "args": {"path": str(models / "plain")}}],
            "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3},
        }
    ).stages[0]  # fmt: skip
    run(recipe, tmp_path / "run")
    samples = tiny.lines(tmp_path / "run" / "samples.jsonl")
    assert samples
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"reward/reward-model"' in text
