"""Long traces end to end: a contest of thousands of tokens through data, packing, checkpointing and an update.

The full size, 32k tokens for each of three personas in a window of 128k, takes minutes: PREFTUNE_LONG=1 runs it.
"""

from __future__ import annotations

import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.methods import get_method
from preftune.records import Completion, Group, Prompt
from preftune.train.batch import backward, make_batch
from preftune.train.certificate import MAX_TOKENS, SHORTEST, sample_of
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.session import Session
from tests import tiny

torch.set_num_threads(1)


def contest(tokens_each: int, seed: int = 0) -> str:
    """A contest of three personas, each of so many tokens (one a character)."""
    rng = random.Random(seed)
    words = ["aye", "by my oath", "let me check", "no, that is wrong", "so it is", "7 * 6 = 42", "hmm", "again"]

    def speech(name: str) -> str:
        text = ""
        while len(text) < tokens_each:
            text += f"{rng.choice(words)}{rng.randrange(1000)}. "
        return f"<{name}>{text[: tokens_each - 2 * len(name) - 5]}</{name}>"

    personas = "".join(map(speech, ("pirate", "knight", "viking")))
    return (
        f"<competition>{personas}<result>the knight is right. <winner>knight</winner></result></competition> it is 42."
    )


def recipe_of(folder: Path, completion: str, window: int, *, checkpointing: bool, lora: bool = False) -> Recipe:
    if not (folder / "model").exists():
        tiny.save(folder / "model", max_position_embeddings=window)
    data = tiny.write(folder / "rows.jsonl", [{"prompt": "what is 6 * 7?", "completion": completion}])
    model: dict[str, Any] = {"path": str(folder / "model"), "gradient_checkpointing": checkpointing}
    if lora:
        model["lora"] = {"r": 4, "alpha": 8}
    return Recipe.model_validate(
        {
            "method": "sft", "name": "long", "model": model, "data": [{"path": str(data)}], "log": {"sinks": []},
            "tokens": {"max_completion_tokens": window}, "train": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
        }
    )  # fmt: skip


def gradient(recipe: Recipe) -> tuple[torch.Tensor, float, int]:
    """The update's gradient, loss and trained tokens, from data to backward as a run does it."""
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    try:
        (group,) = session.batch_of(1)
        batch = session.make_batch([group])
        session.policy.train_mode(True)
        metrics, packs = backward(session.engine, batch, session.method, recipe, session.budget)
        assert len(packs) == 1 and session.engine.mode == "shared"
        grads = torch.cat([p.grad.flatten() for _, p in session.parameters])
        return grads, float(metrics["loss"].total), int(packs[0].target_T.numel())
    finally:
        session.close()


def test_a_contest_of_three_times_4k_tokens_is_trained_exactly(tmp_path: Path) -> None:
    """In a window of 16k: with checkpointing as without, bit for bit, and as plain code with whole logits."""
    completion = contest(4096)
    saved, loss, tokens = gradient(recipe_of(tmp_path, completion, 1 << 14, checkpointing=True))
    kept, same, _ = gradient(recipe_of(tmp_path, completion, 1 << 14, checkpointing=False))
    assert tokens == len(completion) + 1 > 3 * 4096  # a character is a token, and the EOS
    assert torch.equal(saved, kept) and loss == same
    model = tiny.Qwen3ForCausalLM.from_pretrained(tmp_path / "model")
    prompt, rest = (tiny.tokenizer()(text)["input_ids"] for text in ("what is 6 * 7?", completion))
    row = torch.tensor([[*prompt, *rest, 1]])
    logits = model(row).logits[0, len(prompt) - 1 : -1]
    plain = torch.nn.functional.cross_entropy(logits, row[0, len(prompt) :])
    plain.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert loss == pytest.approx(float(plain.detach()), rel=1e-5)
    assert float((saved - theirs).norm() / theirs.norm()) < 1e-5


def test_a_run_on_it(tmp_path: Path) -> None:
    """Certificate, update, checkpoint, metrics: with an adapter, which is checked against merged weights at the end."""
    completion = contest(2000)
    run(recipe_of(tmp_path, completion, 1 << 13, checkpointing=True, lora=True), tmp_path / "run")
    checks = {c["name"]: c for c in json.loads((tmp_path / "run" / "certificate.json").read_text())["checks"]}
    assert all(check["passed"] for check in checks.values())
    assert "over 2034 tokens" in checks["shared prompt vs plain"]["detail"]  # cut: 2,048 with the prompt
    (line,) = [one["metrics"] for one in tiny.lines(tmp_path / "run" / "metrics.jsonl") if one["kind"] == "train"]
    assert line["tokens/trained"] == len(completion) + 1
    assert 0.0 < line["loss"] < 20.0


def test_a_group_of_long_completions_is_split_and_adds_up(tmp_path: Path) -> None:
    """GRPO on two completions of 3k tokens, one pack each: the gradient is that of both in one pack."""
    rng = random.Random(1)
    texts = [tuple(rng.randrange(3, 50) for _ in range(3000)) for _ in range(2)]
    completions = tuple(Completion(ids, (True,) * len(ids), score=float(n)) for n, ids in enumerate(texts))
    groups = [Group(Prompt((5, 6, 7), "", where="p"), completions)]
    recipe = recipe_of(tmp_path, "x", 1 << 13, checkpointing=True).model_copy(update={"method": "grpo"})
    method = get_method("grpo")
    out = []
    for budget, count in ((3003, 2), (6003, 1)):
        session = Session.open(
            recipe_of(tmp_path, "x", 1 << 13, checkpointing=True),
            functions=(),
            base_dir=None,
            progress=Progress("test"),
        )
        session.policy.train_mode(True)
        _, packs = backward(session.engine, make_batch(groups, method, recipe), method, recipe, budget)
        assert len(packs) == count
        out.append(torch.cat([p.grad.flatten() for _, p in session.parameters]))
        session.close()
    assert float(out[0].norm()) > 0
    assert float((out[0] - out[1]).norm() / out[1].norm()) < 1e-5


# --- the certificate's sample -----------------------------------------------------------------------------------------


def long_group(prompt: int, *lengths: int, first: int = 0) -> Group:
    """Completions whose first `first` tokens the policy did not write."""
    completions = tuple(
        Completion(
            ids=tuple(range(n)), mask=(False,) * first + (True,) * (n - first), logprobs=(-1.0,) * n, finish="eos"
        )
        for n in lengths
    )
    return Group(Prompt((1,) * prompt, ""), completions)


def test_a_group_over_the_bound_is_cut() -> None:
    (some,) = sample_of([long_group(48, 9000, 300, 9000), long_group(5, 10)])
    room = (MAX_TOKENS - 48) // 3
    assert [len(c.ids) for c in some.completions] == [room, 300, room]
    for c in some.completions:
        assert len(c.ids) == len(c.mask) == len(c.logprobs) and c.ids == tuple(range(len(c.ids)))
    (few,) = sample_of([long_group(5000, 900)])
    assert len(few.prompt.ids) == 5000 and len(few.completions[0].ids) == SHORTEST
    (late,) = sample_of([long_group(48, 9000, first=4000)])
    assert sum(late.completions[0].mask) == 1  # never nothing to check


def test_groups_within_the_bound_stay_whole() -> None:
    groups = [long_group(48, 900, 300), long_group(5, 700), long_group(5, 2000), long_group(5, 3)]
    assert sample_of(groups) == [groups[0], groups[1], groups[3]]


# --- the full size ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("PREFTUNE_LONG") != "1", reason="minutes: PREFTUNE_LONG=1 runs it")
def test_three_times_32k_tokens_in_a_window_of_128k(tmp_path: Path) -> None:
    completion = contest(1 << 15)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(recipe_of(tmp_path, completion, 1 << 17, checkpointing=True), tmp_path / "run")
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    (line,) = [one for one in tiny.lines(tmp_path / "run" / "metrics.jsonl") if one["kind"] == "train"]
    print(f"\n{len(completion) + 1:,} tokens, {peak:,.0f} MiB over the start; {line}")
    assert line["metrics"]["tokens/trained"] == len(completion) + 1 > 3 * (1 << 15)
    assert 0.0 < line["metrics"]["loss"] < 20.0
    # 32 wide: quadratic memory (one fp32 score each) would be 36 GiB a head
    assert peak < 4096
