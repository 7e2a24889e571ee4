"""A judge in this process: a tiny model made on the spot, which writes rubbish until it is taught a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import ModelError
from preftune.judges import Judge, JudgeConfig, JudgeError, Question
from preftune.judges.backends import LocalBackend
from preftune.judges.prompts import pointwise_prompt
from preftune.judges.rubrics import RUBRICS
from tests import tiny

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = Question("2+2?", ("4", "5"), where="rows.jsonl:1")


def save(folder: Path, *, template: str | None = TEMPLATE, positions: int = 4096, seed: int = 0) -> Path:
    tiny.model(seed, max_position_embeddings=positions).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("judge") / "model")


@pytest.fixture
def taught(tmp_path: Path) -> Iterator[Path]:
    """A model that gives answer 4 the score 9, after some steps on that one text."""
    folder = save(tmp_path / "taught")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    (message,) = pointwise_prompt(QUESTION, 0, RUBRICS["quality"])
    talk = [{"role": "user", "content": message.content}]
    asked = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(asked, return_tensors="pt").input_ids
    answer = tokenizer("so. <score>9</score><eos>", return_tensors="pt").input_ids
    ids = torch.cat([prompt, answer], 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(400):
        logits = network(input_ids=ids).logits[0, prompt.shape[1] - 1 : -1]
        loss = F.cross_entropy(logits, answer[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    network.save_pretrained(folder)
    yield folder


def judge(path: Path, **settings: Any) -> Judge:
    return Judge(JudgeConfig(path=str(path), **{"max_tokens": 30, "mode": "pointwise", **settings}))


def test_a_taught_model_gives_its_verdict(taught: Path) -> None:
    one = judge(taught)
    (verdict,) = one.judge([Question(QUESTION.prompt, ("4",))])
    assert verdict.scores == (9,) and verdict.votes[0].text == "so. <score>9</score>"
    assert one.usage.requests == 1 and one.usage.output_tokens == len("so. <score>9</score>") + 1  # characters, EOS
    (again,) = judge(taught).judge([Question(QUESTION.prompt, ("4",))])
    assert again.scores == (9,) and again.votes[0].cached


def test_rubbish_is_counted_as_failures(model: Path) -> None:
    one = judge(model, mode="pairwise")
    (verdict,) = one.judge([QUESTION])
    assert verdict.scores == (None, None) and one.usage.failed == 2 == one.usage.requests
    assert one.usage.output_tokens > 0 and one.usage.input_tokens > 1000
    with pytest.raises(
        JudgeError, match=r"20 of 20 replies of the judge .*model \(100%\) hold no verdict.*rows.jsonl:1"
    ):
        one.judge([Question(f"{n}+2?", ("4", "5")) for n in range(9)])


def test_votes_of_a_local_judge_differ_and_repeat(model: Path) -> None:
    first, second = (judge(model, votes=3, cache="off", temperature=1.5) for _ in range(2))
    (one,), (other,) = first.judge([Question("2+2?", ("4",))]), second.judge([Question("2+2?", ("4",))])
    texts = [vote.text for vote in one.votes]
    assert len(set(texts)) == 3 and texts == [vote.text for vote in other.votes]


def test_a_vote_that_is_asked_later_is_another_draw(model: Path) -> None:
    """Else more votes would only repeat the ones before, and agree with them."""
    question = Question("2+2?", ("4",))
    (early,) = judge(model, votes=1, temperature=1.5).judge([question])
    (late,) = judge(model, votes=2, temperature=1.5).judge([question])
    assert [vote.cached for vote in late.votes] == [True, False]
    assert late.votes[0].text == early.votes[0].text != late.votes[1].text


def test_what_does_not_fit_is_a_failure_of_its_own(tmp_path: Path) -> None:
    short = save(tmp_path / "short", positions=2048)
    one = judge(short)
    verdicts = one.judge([Question("2+2?", ("4",)), Question("2+2?", ("4" * 1000,))])
    assert "the reply was cut" in verdicts[0].problems[0] or "holds no <score>" in verdicts[0].problems[0]
    assert "2048 positions, and the request is" in verdicts[1].problems[0] and verdicts[1].scores == (None,)
    assert one.usage.requests == 2 and one.usage.uncounted == 0


def test_a_marked_special_token_in_an_answer_is_text(model: Path) -> None:
    backend = LocalBackend(JudgeConfig(path=str(model)))
    (message,) = pointwise_prompt(Question("2+2?", ("4<eos>",)), 0, RUBRICS["quality"])
    from preftune.records import Example

    ids = backend._contract.prompt(Example((message,))).ids
    assert ids.count(backend._contract.eos_id) == 1  # the template's own


def test_replies_belong_to_the_weights(model: Path, tmp_path: Path) -> None:
    copy, other = save(tmp_path / "copy"), save(tmp_path / "other", seed=1)
    identities = [LocalBackend(JudgeConfig(path=str(path))).identity for path in (model, copy, other)]
    assert identities[0] == identities[1] != identities[2]
    assert "model" not in str(identities[0]["weights"])
    template = save(tmp_path / "template", template=TEMPLATE + " ")
    assert LocalBackend(JudgeConfig(path=str(template))).identity != identities[0]


def test_an_adapter_is_merged(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    plain, merged = (LocalBackend(JudgeConfig(path=str(path))) for path in (model, tmp_path / "adapter"))
    assert not merged._policy.is_adapter and plain.identity != merged.identity


def test_nothing_of_a_judge_is_trained(model: Path) -> None:
    assert not LocalBackend(JudgeConfig(path=str(model)))._policy.trainable()


def test_loading_takes_no_random_numbers_from_the_run(model: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    LocalBackend(JudgeConfig(path=str(model)))
    assert torch.equal(torch.rand(1), expected)


def test_models_that_cannot_judge(tmp_path: Path, model: Path) -> None:
    mute = save(tmp_path / "mute", template=None)
    for path, message in (
        (str(mute), "has no chat template, so it can't be asked as a judge"),
        (str(tmp_path / "nothing"), "does not exist"),
        ("stage:judge", "stands for a stage of a recipe"),
    ):
        with pytest.raises(ModelError, match=message):
            Judge(JudgeConfig(path=path))
    with pytest.raises(ModelError, match=r"chat_template_kwargs\.enable_thinking: the chat template has no such"):
        Judge(JudgeConfig(path=str(model), chat_template_kwargs={"enable_thinking": False}))
