"""What a run holds: splits, batches, seeds, templates, and the errors before training starts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import pytest
import torch

from preftune.config import Recipe
from preftune.errors import DataError, ModelError, PreftuneError, UsageError
from preftune.train.dry_run import dry_run
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.session import Session
from preftune.train.setup import seed_everything
from tests import tiny


def opened(recipe: Recipe, base_dir: Path | None = None) -> Session:
    return Session.open(recipe, functions=(), base_dir=base_dir, progress=Progress("test"))


def places(groups) -> list[str]:
    return [g.prompt.where.rpartition(":")[2] for g in groups]


def test_holdout_never_shares_a_row_with_training(sft, home: Path) -> None:
    plain = opened(sft(eval={"holdout": 5}))
    assert (len(plain.validation), len(plain.train)) == (5, 23)
    assert not set(places(plain.validation)) & set(places(plain.train))
    repeated = opened(sft(data=[{"path": str(home / "train.jsonl"), "weight": 2.5}], eval={"holdout": 5}))
    assert len(set(places(repeated.validation))) == 5
    assert len(set(places(repeated.train))) == 23
    assert len(repeated.train) in range(23 * 2, 23 * 3 + 1)
    assert not set(places(repeated.validation)) & set(places(repeated.train))
    tiny.write(home / "twice.jsonl", tiny.lines(home / "train.jsonl") * 2)
    twice = opened(sft(data=[{"path": str(home / "twice.jsonl")}], eval={"holdout": 5}))
    assert (len(twice.validation), len(twice.train)) == (5, 46)
    assert not {g.prompt.text for g in twice.validation} & {g.prompt.text for g in twice.train}
    # another seed holds out other rows
    assert places(opened(sft(seed=1, eval={"holdout": 5})).validation) != places(plain.validation)


def test_holdout_must_leave_rows(sft) -> None:
    with pytest.raises(DataError, match=r"eval.holdout 28 leaves no training row: the data has 28"):
        opened(sft(eval={"holdout": 28}))


def test_batches_are_epochs_in_an_order_of_their_own(sft) -> None:
    session = opened(sft(train={"batch_size": 8}))
    seen = [place for step in range(1, 8) for place in places(session.batch_of(step))]  # 56 rows: two epochs
    assert sorted(seen[:28]) == sorted(seen[28:]) == sorted(places(session.train))
    assert seen[:28] != seen[28:]
    # a step's rows need no history
    again = opened(sft(train={"batch_size": 8}))
    assert places(again.batch_of(4)) == seen[24:32]
    assert places(opened(sft(seed=1, train={"batch_size": 8})).batch_of(1)) != seen[:8]


def test_epochs_become_steps(sft) -> None:
    # 28 rows in batches of 8: three and a half batches an epoch
    assert opened(sft(train={"steps": None, "epochs": 1.0, "batch_size": 8})).steps == 4
    assert opened(sft(train={"steps": None, "epochs": 0.01, "batch_size": 8})).steps == 1
    with pytest.raises(UsageError, match=r"give train.steps or train.epochs"):
        opened(sft(train={"steps": None}))


def test_everything_random_is_seeded() -> None:
    def draw(seed: int, step: int) -> tuple[float, float, float]:
        seed_everything(seed, step)
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    assert draw(3, 7) == draw(3, 7)
    for other in ((3, 8), (4, 7)):
        assert all(a != b for a, b in zip(draw(3, 7), draw(*other), strict=True))
    draw(2**70, 1)  # any seed that a recipe may hold


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


def test_a_template_file_is_found_beside_the_recipe(sft, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipe" / "own.jinja").write_text(CHAT)
    (tmp_path / "elsewhere" / "own.jinja").write_text(CHAT.replace("eos_token }}{% endfor", "eos_token }}|{% endfor"))
    rows = [{"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "2"}]}]
    tiny.write(tmp_path / "chat.jsonl", rows)
    recipe = sft(data=[{"path": str(tmp_path / "chat.jsonl")}], tokens={"chat_template": "own.jinja"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    session = opened(recipe, tmp_path / "recipe")
    assert session.train[0].prompt.text == "user: 1+1<eos>assistant: "
    assert session.policy.tokenizer.chat_template == CHAT  # the saved model renders as it was trained
    assert opened(recipe).train[0].prompt.text == "user: 1+1<eos>|assistant: "
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"tokens.chat_template: can't read own.jinja"):
        opened(recipe)


def test_a_tokenizer_of_another_model_is_named(sft, home: Path, tmp_path: Path) -> None:
    tiny.save(tmp_path / "small", vocab_size=20)
    with pytest.raises(DataError, match=r"train.jsonl:\d+: token id \d+ is outside the model's 20 embeddings"):
        opened(sft(model={"path": str(tmp_path / "small")}))


def test_a_grpo_run_needs_a_reward(grpo) -> None:
    with pytest.raises(UsageError, match="grpo needs at least one reward"):
        opened(grpo(rewards=[]))


def test_eval_limit_and_reshaped_sampling_are_heard(grpo, home: Path) -> None:
    validation = {"data": [{"path": str(home / "validation.jsonl")}], "limit": 3}
    session = opened(grpo(eval=validation, sampling={"top_k": 5}))
    assert len(session.validation) == 3
    assert any("another distribution than the trainer scores" in note for note in session.notes)


def test_dry_run_shows_everything_and_writes_nothing(sft, grpo, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry_run(sft(eval={"holdout": 8}))
    for part in (
        "sft: 6 steps of 4 prompts", "train: 20 kept, 0 dropped, 0 truncated, 0 EOS invented", "validation: 8 kept",
        "engine: shared", "parameters: 20,448, of which 20,448 are trained", "memory estimate: ",
    ):  # fmt: skip
        assert part in text, part
    # each answer and its EOS carry loss, the prompt does not
    first = opened(sft(eval={"holdout": 8})).batch_of(1)[0]
    row = json.loads((home / "train.jsonl").read_text().splitlines()[int(first.prompt.where.rpartition(":")[2]) - 1])
    assert f"{row['prompt']}⟦{row['completion']}<eos>⟧" in text
    sampled = dry_run(grpo(model={"lora": {"r": 2, "alpha": 4}}))
    assert "⟦" not in sampled
    assert "the policy writes the completions" in sampled
    # r · (in + out) of each of the 7 linear layers, twice: q and o 64, k and v 48, gate, up and down 96
    assert f"of which {2 * 2 * (2 * 64 + 2 * 48 + 3 * 96):,} are trained" in sampled
    assert list(tmp_path.iterdir()) == []


def test_the_memory_estimate_adds_up(sft) -> None:
    """The tiny model's weights, gradients and AdamW moments: four times 20,448 floats, 0.3 MiB."""
    line = next(x for x in dry_run(sft(train={"max_tokens_per_batch": 5})).splitlines() if x.startswith("memory"))
    assert line == "memory estimate: 0 MiB (weights 0, gradients and optimizer 0, activations of a full pack about 0)"
    line = next(x for x in dry_run(sft(train={"max_tokens_per_batch": 100_000})).splitlines() if "memory" in x)
    # 2 layers · (10 · 32 + 4 · 64) floats a token
    assert f"about {2 * (320 + 256) * 4 * 100_000 / 2**20:,.0f})" in line


def test_a_pack_too_small_for_a_row_says_what_to_raise(sft, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"train.jsonl:\d+: prompt \(4\) .*train.max_tokens_per_batch = 4"):
        run(sft(train={"max_tokens_per_batch": 4}), tmp_path / "run")
