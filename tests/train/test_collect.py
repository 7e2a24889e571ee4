"""Answers drawn once: what is drawn, kept and trained on, by hand; files that are used again, and refused."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import CheckpointError, DataError, ModelError, UsageError
from preftune.train import collect, loop
from preftune.train.loop import run
from tests import tiny
from tests.torture import kill
from tests.train import byhand
from tests.train.acting import columns, recipe_of

Row = tuple[tuple[int, ...], list[tuple[tuple[int, ...], float]]]
"""Prompt's ids, and (ids, score) of each answer."""


def inline(score: Any, name: str = "letters") -> Any:
    """A closure: it runs in the trainer, so no test waits for a worker process."""

    def call(completions, **_):
        return score(completions)

    call.__name__ = name
    return call


def by_letters(completions: list[str]) -> list[float]:
    """Graded, with ties: letters of the first half of the alphabet."""
    return [0.1 * sum(ch in "abcdefghijklm" for ch in text) for text in completions]


letters = inline(by_letters)
noisy = inline(lambda completions: [random.random() for _ in completions], "noisy")


def recipe(home: Path, method: str = "iterative-dpo", **changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "sampling": {"group_size": 5, "max_tokens": 3, "temperature": 0.5}, "eval": {}, "rewards": [],
        "train": {"steps": 7, "batch_size": 4, "checkpoint_every": 3, "learning_rate": 1e-3},
    }  # fmt: skip
    for section, value in changes.items():
        base[section] = {**base.get(section, {}), **value} if isinstance(value, dict) else value
    return recipe_of(home, None, method=method, **base)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    honest = loop.backward

    def backward(engine: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(part)
        return honest(engine, part, *args, **kwargs)

    monkeypatch.setattr(loop, "backward", backward)
    return seen


def drawn(folder: Path) -> list[Row]:
    return [
        (tuple(line["prompt"]["ids"]), [(tuple(c["ids"]), c["score"]) for c in line["completions"]])
        for line in tiny.lines(folder / "collected.jsonl")[1:]
    ]


def different(answers: list[tuple[tuple[int, ...], float]]) -> list[tuple[tuple[int, ...], float]]:
    return [a for i, a in enumerate(answers) if a[0] not in [b[0] for b in answers[:i]]]


def test_what_is_drawn(home: Path, tmp_path: Path) -> None:
    """Every training prompt is answered group_size times by the policy as it stands, and every answer is scored."""
    run(recipe(home, sampling={"temperature": 0.8, "max_tokens": 6}), tmp_path / "run", functions=[letters])
    lines = tiny.lines(tmp_path / "run" / "collected.jsonl")[1:]
    prompts = [row["prompt"] for row in tiny.lines(home / "train.jsonl")]
    assert [line["prompt"]["text"] for line in lines] == prompts
    model = byhand.tf.AutoModelForCausalLM.from_pretrained(home / "wide")
    worst = 0.0
    for line in lines:
        assert len(line["completions"]) == 5
        for c in line["completions"]:
            row = torch.tensor([[*line["prompt"]["ids"], *c["ids"]]])
            with torch.no_grad():
                every = torch.log_softmax(model(input_ids=row).logits[0] / 0.8, -1)
            start = len(line["prompt"]["ids"])
            plain = [float(every[start + t - 1, token]) for t, token in enumerate(c["ids"])]
            worst = max(worst, *(abs(a - b) for a, b in zip(plain, c["logprobs"], strict=True)))
            assert [c["score"]] == by_letters([c["text"]]) and c["breakdown"] == {"letters": c["score"]}
            assert (c["finish"] == "eos") == (c["ids"][-1] == 1) and c["policy_version"] == 0
    assert worst < 1e-4
    assert len({tuple(c["ids"]) for line in lines for c in line["completions"]}) > 60
    note = next(
        n for n in json.loads((tmp_path / "run/summary.json").read_text())["notes"] if n.startswith("collected:")
    )
    mean = sum(c["score"] for line in lines for c in line["completions"]) / 140
    assert f"140 answers to 28 prompts, mean score {mean:.4g}" in note
    assert columns(tmp_path / "run")[0]["collected/score"] == pytest.approx(mean)


@pytest.mark.parametrize(("pairs", "margin"), [("best-worst", 0.0), ("best-worst", 0.15), ("all", 0.0), ("all", 0.15)])
def test_pairs_by_hand(home: Path, tmp_path: Path, monkeypatch, pairs: str, margin: float) -> None:
    seen = watched(monkeypatch)
    run(recipe(home, loss={"pairs": pairs}, collect={"margin": margin}), tmp_path / "run", functions=[letters])
    want: dict[tuple[int, ...], set[tuple[Any, Any]]] = {}
    equal = 0
    for prompt, answers in drawn(tmp_path / "run"):
        some = different(answers)
        equal += len(answers) - len(some)
        found = set()
        if pairs == "all":
            for a, b in combinations(some, 2):
                better, worse = sorted((a, b), key=lambda x: -x[1])
                if better[1] - worse[1] > margin + 1e-9:
                    found.add((better[0], worse[0]))
        else:
            best = max(some, key=lambda a: a[1])  # max and min take the first
            worst = min(some, key=lambda a: a[1])
            if best[1] - worst[1] > margin + 1e-9:
                found.add((best[0], worst[0]))
        if found:
            want[prompt] = found
    assert equal > 5 and 5 < len(want) <= 28  # ties and equal texts there are
    trained: dict[tuple[int, ...], set[tuple[Any, Any]]] = {}
    for part in seen:
        flat = [(g.prompt.ids, c.ids) for g in part.groups for c in g.completions]
        for chosen, rejected in part.pairs.pairs_P2.tolist():
            prompt, better = flat[chosen]
            assert flat[rejected][0] == prompt
            trained.setdefault(prompt, set()).add((better, flat[rejected][1]))
    assert trained == want  # seven steps of four are at least one pass
    logged = columns(tmp_path / "run")
    assert logged[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)  # the policy is its reference
    assert logged[0]["collected/prompts_kept"] == pytest.approx(len(want) / 28)


@pytest.mark.parametrize(
    "settings", [{}, {"keep": 2}, {"keep": 3, "min_score": 0.15}, {"keep": 9, "spread_only": True}, {"min_score": 0.1}]
)
def test_the_best_by_hand(home: Path, tmp_path: Path, monkeypatch, settings: dict[str, Any]) -> None:
    seen = watched(monkeypatch)
    run(recipe(home, "rft", collect=settings), tmp_path / "run", functions=[letters])
    want: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, answers in drawn(tmp_path / "run"):
        scores = [score for _, score in answers]
        if settings.get("spread_only") and max(scores) == min(scores):
            continue
        some = [a for a in different(answers) if a[1] >= settings.get("min_score", -9.0)]
        best = []
        while some and len(best) < settings.get("keep", 1):
            top = next(a for a in some if a[1] == max(score for _, score in some))
            some.remove(top)
            best.append(top[0])
        if best:
            want[prompt] = best
    trained = {g.prompt.ids: [c.ids for c in g.completions] for part in seen for g in part.groups}
    assert trained == want
    assert all(part.advantages_S is None and part.pairs is None for part in seen)
    if "min_score" in settings or "spread_only" in settings:
        assert len(want) < 28
    model = byhand.tf.AutoModelForCausalLM.from_pretrained(home / "wide")
    nll = [
        -byhand.logprobs(model, g, c, 1.0).detach() for g in seen[0].groups for c in g.completions
    ]  # the trainer scores at temperature 1, whatever answers were drawn at
    assert columns(tmp_path / "run")[0]["loss"] == pytest.approx(float(torch.cat(nll).mean()), rel=1e-5)


def test_scores_that_differ_in_rounding_alone_are_ties(home: Path, tmp_path: Path) -> None:
    """0.1 + 0.2 and 0.3 are one number in the precision of the signal: such a prompt has no pair to train on."""

    nearly = inline(lambda completions: [0.1 + 0.2 if i % 2 else 0.3 for i in range(len(completions))])
    with pytest.raises(DataError, match="of 28 prompts with 140 answers none is left to train on: no two answers"):
        run(recipe(home), tmp_path / "run", functions=[nearly])


# --- files that are used again ----------------------------------------------------------------------------------


def test_killed_while_drawing(home: Path, tmp_path: Path) -> None:
    """After the draw and before the file, within the reward, and when the file was just written: the unbroken run.
    The reward draws random numbers, which must not depend on what the process did before."""
    what = recipe(home)

    def go(folder: Path) -> None:
        run(what, folder, resume=folder.exists(), functions=[noisy])

    assert kill.in_child(lambda: go(tmp_path / "unbroken")) == 0

    def dying(where: str, folder: Path) -> None:
        random.seed(where)
        if where == "reward":
            run(what, folder, functions=[inline(lambda _: os.kill(os.getpid(), signal.SIGKILL), "noisy")])
        honest = collect.write_collected

        def dies(*args: Any) -> None:
            if where == "written":
                honest(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        collect.write_collected = dies
        go(folder)

    def again(where: str, folder: Path) -> None:
        random.seed(where[::-1])
        if where == "written":
            collect.draw_scored = lambda *_: pytest.fail("the answers were drawn again")
        go(folder)

    for where in ("reward", "drawn", "written"):
        folder = tmp_path / where
        assert kill.in_child(lambda where=where, folder=folder: dying(where, folder)) == -signal.SIGKILL
        assert (folder / "collected.jsonl").exists() == (where == "written")
        assert kill.in_child(lambda where=where, folder=folder: again(where, folder)) == 0
        assert tiny.same_run(tmp_path / "unbroken", folder) == [], where
        assert (folder / "collected.jsonl").read_bytes() == (tmp_path / "unbroken/collected.jsonl").read_bytes()


def interrupted(what: Recipe, folder: Path, step: int, monkeypatch, **given: Any) -> None:
    with monkeypatch.context() as patch:
        calls: list[int] = []
        honest = loop.backward

        def pressed(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == step:
                signal.raise_signal(signal.SIGINT)
            return honest(*args, **kwargs)

        patch.setattr(loop, "backward", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(what, folder, **given)


@pytest.mark.parametrize("method", ["iterative-dpo", "rft"])
def test_a_resumed_run_reads_its_file(home: Path, tmp_path: Path, monkeypatch, method: str) -> None:
    what = recipe(home, method, eval={"holdout": 4, "every": 4})
    run(what, tmp_path / "unbroken", functions=[letters])
    interrupted(what, tmp_path / "run", 5, monkeypatch, functions=[letters])
    monkeypatch.setattr(collect, "draw_scored", lambda *_: pytest.fail("the answers were drawn again"))
    run(what, tmp_path / "run", resume=True, functions=[letters])
    assert tiny.same_run(tmp_path / "unbroken", tmp_path / "run") == []


def test_what_must_not_change_before_a_resume(home: Path, tmp_path: Path, monkeypatch) -> None:
    own = tmp_path / "own"
    tiny.save(own / "wide", initializer_range=0.3)
    (own / "train.jsonl").write_bytes((home / "train.jsonl").read_bytes())
    what, folder = recipe(own), tmp_path / "run"
    interrupted(what, folder, 5, monkeypatch, functions=[letters])
    other = what.model_copy(update={"sampling": what.sampling.model_copy(update={"temperature": 0.6})})
    with pytest.raises(UsageError, match=r"sampling.temperature was 0.5, now 0.6"):
        run(other, folder, resume=True, functions=[letters])
    with pytest.raises(DataError, match="collected by another policy or with other settings"):
        run(what, folder, resume=True, functions=[noisy])
    whole = (folder / "collected.jsonl").read_text()
    for damage in (whole[:-40], whole.replace('"score": 0.1', '"score": 0.9', 1), ""):
        (folder / "collected.jsonl").write_text(damage)
        with pytest.raises(DataError, match=r"collected.jsonl.*(changed or cut|no file of collected answers)"):
            run(what, folder, resume=True, functions=[letters])
    (folder / "collected.jsonl").write_text(whole)
    tiny.save(own / "wide", seed=9, initializer_range=0.3)
    with pytest.raises(DataError, match="collected by another policy"):
        run(what, folder, resume=True, functions=[letters])
    tiny.save(own / "wide", initializer_range=0.3)
    run(what, folder, resume=True, functions=[letters])


def test_a_given_file_is_trained_on_and_must_stay(home: Path, tmp_path: Path, monkeypatch) -> None:
    run(recipe(home), tmp_path / "first", functions=[letters])
    given = tmp_path / "answers.jsonl"
    given.write_bytes((tmp_path / "first" / "collected.jsonl").read_bytes())
    what = recipe(home, collect={"path": str(given)})
    monkeypatch.setattr(collect, "draw_scored", lambda *_: pytest.fail("the answers were drawn again"))
    run(what, tmp_path / "second")
    weights = [tmp_path / f / "final" / "model.safetensors" for f in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    notes = json.loads((tmp_path / "second" / "summary.json").read_text())["notes"]
    assert not any("another policy" in note for note in notes)

    interrupted(what, tmp_path / "third", 5, monkeypatch)
    from preftune.data.collected import read_collected, write_collected

    found = read_collected(given)
    write_collected(given, found.groups[1:], found.about)
    with pytest.raises(CheckpointError, match="the collected data changed since the run began"):
        run(what, tmp_path / "third", resume=True)

    elsewhere = recipe(home, collect={"path": str(given)}, model={"path": str(home / "model")})
    run(elsewhere, tmp_path / "fourth")
    notes = json.loads((tmp_path / "fourth" / "summary.json").read_text())["notes"]
    assert any("written by another policy than the one that is trained" in note for note in notes)
    with pytest.raises(DataError, match=r"can't read the collected answers .*nowhere"):
        run(recipe(home, collect={"path": str(tmp_path / "nowhere")}), tmp_path / "fifth")


def test_nothing_left_is_told_and_the_answers_are_kept(home: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run"
    for method, settings, why in (
        ("iterative-dpo", {"margin": 5.0}, r"no two answers .* by more than collect.margin 5; lower it"),
        ("rft", {"min_score": 7.0}, r"no answer reaches collect.min_score 7; lower it"),
    ):
        for resume in (False, True):  # no dead end: the folder stays one to resume, and says what to do instead
            with pytest.raises(
                DataError, match=rf"28 prompts with 140 answers none is left.*{why}.*collect.path: .*run"
            ):
                run(recipe(home, method, collect=settings), folder / method, resume=resume, functions=[letters])
        assert not (folder / method / "checkpoints").exists()
        monkeypatch.setattr(collect, "draw_scored", lambda *_: pytest.fail("the answers were drawn again"))
        again = recipe(home, method, collect={"path": str(folder / method / "collected.jsonl")})
        assert run(again, tmp_path / f"again-{method}").steps == 7
        monkeypatch.undo()


def test_a_reward_that_fails_while_collecting_leaves_the_folder_free(home: Path, tmp_path: Path) -> None:
    from preftune.errors import RewardError

    def fails(completions: list[str]) -> list[float]:
        raise OSError("the file server is down")

    with pytest.raises(RewardError, match="the file server is down"):
        run(recipe(home), tmp_path / "run", functions=[inline(fails)])
    assert not [p for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")]
    run(recipe(home), tmp_path / "run", functions=[letters])


def test_a_missing_reward_model_costs_no_draw(
    home: Path, rewards: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    from tests import tinyreward

    monkeypatch.setattr(collect, "draw_scored", lambda *_: pytest.fail("answers were drawn"))
    two = tinyreward.save(tmp_path / "two", labels=2)
    for path, message in ((tmp_path / "gone", "does not exist"), (two, "2 labels"), (home / "wide", "no reward head")):
        for lora in ({}, {"lora": {"r": 2, "alpha": 4}}):
            reward = {"name": "reward-model", "args": {"path": str(path)}}
            for method in ("iterative-dpo", "ppo"):
                made = (
                    recipe_of(home, path, model=lora) if method == "ppo" else recipe(home, rewards=[reward], model=lora)
                )
                with pytest.raises(ModelError, match=rf"reward 'reward-model' can't use args.path .*: .*{message}"):
                    run(made, tmp_path / "run")
    assert not [p for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")]


def test_best_answers_that_are_no_better_than_the_worst_are_told(home: Path, tmp_path: Path) -> None:
    def same(completions: list[str], **columns: Any) -> list[float]:
        return [0.0 for _ in completions]

    said = "have answers of one score alone, so the one that is trained on is as good as any"
    for name, settings, told in (("plain", {}, True), ("bar", {"min_score": 0.0}, False)):
        run(recipe(home, "rft", collect=settings), tmp_path / name, functions=[same])
        notes = json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8"))["notes"]
        assert any(said in note for note in notes) == told, name
