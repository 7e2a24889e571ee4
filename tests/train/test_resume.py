"""A run is a function of its recipe: broken and resumed anywhere, it is the unbroken one bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import CheckpointError, PreftuneError, RewardError, UsageError
from preftune.train import checkpoint, loop
from preftune.train.loop import run
from tests import tiny
from tests.torture import kill


@pytest.fixture(scope="module")
def unbroken(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(kill.recipe(home), folder)
    return folder


def test_the_same_seed_gives_the_same_run_and_another_does_not(home: Path, unbroken: Path, tmp_path: Path) -> None:
    run(kill.recipe(home), tmp_path / "again")
    assert tiny.same_run(unbroken, tmp_path / "again") == []
    assert tiny.lines(unbroken / "advice.jsonl"), "no advice: the comparison of advice.jsonl says nothing"
    run(kill.recipe(home, seed=6), tmp_path / "other")
    different = tiny.same_run(unbroken, tmp_path / "other")
    assert {"metrics.jsonl", "samples.jsonl", "final/adapter_model.safetensors"} <= set(different)


def test_kill_at_any_file_operation(home: Path, unbroken: Path, tmp_path: Path) -> None:
    recipe = kill.recipe(home)
    total = kill.count_operations(lambda: run(recipe, tmp_path / "counted"), tmp_path / "counted")
    assert total > 60
    for number in kill.moments(total, 4, seed=1):
        folder = tmp_path / f"run-{number}"
        assert kill.kill_at_operation(recipe, folder, number)
        kill.finish(recipe, folder)
        assert tiny.same_run(unbroken, folder) == [], f"killed at operation {number} of {total}"
        assert not list(folder.rglob(".writing-*"))


def test_kill_again_and_again(home: Path, unbroken: Path, tmp_path: Path) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    kills = sum(kill.kill_at_operation(recipe, folder, number) for number in (30, 45, 40))
    assert kills >= 2
    kill.finish(recipe, folder)
    assert tiny.same_run(unbroken, folder) == []


@pytest.mark.parametrize(
    ("where", "call"), [("save_checkpoint", 2), ("measure", 2), ("certify_adapter", 1), ("save_best", 1)]
)
def test_kill_inside(home: Path, unbroken: Path, tmp_path: Path, where: str, call: int) -> None:
    """During a checkpoint's writing, a validation, the end: the file operations above do not lie in all of these."""
    recipe, folder = kill.recipe(home), tmp_path / "run"
    honest = getattr(loop, where)

    def work() -> None:
        calls = 0

        def dies(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == call:
                if where == "save_checkpoint":
                    checkpoint.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args, **kwargs)

        setattr(loop, where, dies)
        run(recipe, folder)

    assert kill.in_child(work) == -signal.SIGKILL
    if where == "save_checkpoint":
        assert (folder / "checkpoints" / ".writing-step-4" / "state.json").exists()
    kill.finish(recipe, folder)
    assert tiny.same_run(unbroken, folder) == []
    assert not list(folder.rglob(".writing-*"))


def interrupt_at(monkeypatch, name: str, call: int) -> None:
    """Ctrl-C arrives while `loop.name` is called for the n-th time."""
    honest, calls = getattr(loop, name), 0

    def pressed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return honest(*args, **kwargs)

    monkeypatch.setattr(loop, name, pressed)


@pytest.mark.parametrize(
    ("where", "call", "saved"),
    [
        ("_Prepared", 4, 3),  # preparing step 4: it ends at once, step 3 is saved
        ("backward", 7, 4),  # within step 4's updates: it ends after that step
        ("batch_metrics", 5, 5),
        ("measure", 2, 3),  # validation after step 3: it is made again
        ("save_checkpoint", 2, 4),
        ("certify_adapter", 1, 7),
    ],
)
def test_ctrl_c_saves(home, unbroken, tmp_path, monkeypatch, where: str, call: int, saved: int) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, where, call)
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder)
        assert signal.getsignal(signal.SIGINT) is before
    steps = sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*"))
    assert steps[-1] == saved
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    run(recipe, folder, resume=True)
    assert tiny.same_run(unbroken, folder) == []


def test_a_finished_run_is_left_as_it_is(home: Path, unbroken: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"}
    again = run(kill.recipe(home), unbroken, resume=True)
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"} == times
    summary = json.loads((unbroken / "summary.json").read_text())
    assert again.steps == 7
    assert (
        again.difference["validation"]["reward/mean"].to_json() == (summary["difference"]["validation"]["reward/mean"])
    )


def half_done(recipe: Recipe, folder: Path, monkeypatch, after: int = 5) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_Prepared", after + 1)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated weights": lambda folder: truncate(folder / "step-5" / "weights.safetensors"),
    "a flipped bit in the optimizer": lambda folder: flip(folder / "step-5" / "optimizer.safetensors"),
    "a flipped bit in the state": lambda folder: flip(folder / "step-5" / "state.json"),
    "no state": lambda folder: (folder / "step-5" / "state.json").unlink(),
    "an empty folder": lambda folder: [p.unlink() for p in (folder / "step-5").iterdir()],
    "damaged best weights": lambda folder: [flip(p) for p in folder.glob("best-3.safetensors")],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(home, unbroken, tmp_path, monkeypatch, capsys, damage: str) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    half_done(recipe, folder, monkeypatch)
    state = json.loads((folder / "checkpoints" / "step-5" / "state.json").read_text())["state"]
    if damage == "damaged best weights" and state["best"]["step"] != 3:
        pytest.skip("step 3 is not the best")
    DAMAGE[damage](folder / "checkpoints")
    capsys.readouterr()
    run(recipe, folder, resume=True)
    said = capsys.readouterr().err
    assert "checkpoint step-5 is damaged" in said
    # steps 4 and 5 have the same best weights, so with those gone there is nothing to go back to
    assert ("going on after step 4" in said) != (damage == "damaged best weights")
    assert "going on after step 5" not in said
    assert any("step-5 is damaged" in note for note in json.loads((folder / "summary.json").read_text())["notes"])
    assert tiny.same_run(unbroken, folder) == []


def test_all_checkpoints_damaged_starts_again(home, unbroken, tmp_path, monkeypatch, capsys) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    half_done(recipe, folder, monkeypatch)
    for path in (folder / "checkpoints").glob("step-*/weights.safetensors"):
        truncate(path)
    capsys.readouterr()
    run(recipe, folder, resume=True)
    assert "no whole checkpoint is left: starting again from the first step" in capsys.readouterr().err
    assert tiny.same_run(unbroken, folder) == []


def test_a_cut_journal_is_an_error(home, tmp_path, monkeypatch) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    half_done(recipe, folder, monkeypatch)
    truncate(folder / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl holds .* bytes, but the checkpoint saw"):
        run(recipe, folder, resume=True)


def test_what_must_not_change_before_a_resume(home, tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    tiny.save(own / "model")
    rows = tiny.lines(home / "train.jsonl")
    tiny.write(own / "train.jsonl", rows)
    tiny.write(own / "validation.jsonl", tiny.lines(home / "validation.jsonl"))
    recipe, folder = kill.recipe(own), tmp_path / "run"
    half_done(recipe, folder, monkeypatch)
    with pytest.raises(UsageError, match=r"the run folder .* exists already.*--resume.*--output"):
        run(recipe, folder)

    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(UsageError, match=r"train.learning_rate was 0.01, now 0.5"):
        run(other, folder, resume=True)
    tiny.write(own / "train.jsonl", [*rows, {"prompt": "1+1=", "completion": "2", "answer": "2"}])
    with pytest.raises(CheckpointError, match=r"the train data changed since the run began"):
        run(recipe, folder, resume=True)
    tiny.write(own / "train.jsonl", rows)
    for changes in ({"seed": 1}, {"intermediate_size": 48}):
        tiny.save(own / "model", **changes)
        with pytest.raises(CheckpointError, match=r"the model changed since the run began"):
            run(recipe, folder, resume=True)
    tiny.save(own / "model")
    run(recipe, folder, resume=True)


def test_settings_of_how_may_change_before_a_resume(home, unbroken, tmp_path, monkeypatch) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    half_done(recipe, folder, monkeypatch)
    train = recipe.train.model_copy(update={"max_tokens_per_batch": 40, "checkpoint_every": 3})
    changed = recipe.model_copy(update={"train": train})
    run(changed, folder, resume=True)
    notes = json.loads((folder / "summary.json").read_text())["notes"]
    assert "resumed with another train.max_tokens_per_batch: 40 (was not set)" in notes
    want, found = tiny.timeless(unbroken), tiny.timeless(folder)
    for a, b in zip(want[-3:], found[-3:], strict=True):
        if a["kind"] == "train":  # smaller packs round otherwise, and give the same numbers
            assert b["metrics"]["grad_norm"] == pytest.approx(a["metrics"]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "half a recipe", "a file", "another folder"])
def test_resuming_what_is_no_run(home, tmp_path, what: str) -> None:
    folder = tmp_path / "run"
    recipe = kill.recipe(home)
    if what == "a file":
        folder.write_text("mine")
    elif what != "nothing":
        folder.mkdir()
    if what == "another folder":
        (folder / "thesis.tex").write_text("mine")
    if what == "half a recipe":
        (folder / ".writing-recipe.yaml").write_text("meth")
    if what in ("an empty folder", "half a recipe"):  # what a process that was killed at once leaves
        assert run(recipe, folder, resume=True).steps == 7
        return
    with pytest.raises(UsageError, match=r"there is no run|is a file|is not a run folder"):
        run(recipe, folder, resume=True)
    if what != "nothing":
        with pytest.raises(UsageError):
            run(recipe, folder)
    if what == "another folder":
        assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["save_file", "os.replace", "os.fsync"])
def test_a_full_disk_is_a_clear_error(home, unbroken, tmp_path, monkeypatch, what: str) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    honest = checkpoint.save_checkpoint
    calls = 0

    def third(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls < 2:
            return honest(*args, **kwargs)
        with monkeypatch.context() as patch:
            target = checkpoint if what == "save_file" else checkpoint.os
            patch.setattr(target, what.rpartition(".")[2], full_disk)
            return honest(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", third)
        with pytest.raises(CheckpointError, match=r"can't write the checkpoint.*No space left.*--resume") as caught:
            run(recipe, folder)
    assert caught.value.exit_code == 1
    run(recipe, folder, resume=True)
    assert tiny.same_run(unbroken, folder) == []


def test_a_full_disk_while_logging(home, unbroken, tmp_path, monkeypatch) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    honest = loop.Journal.write

    class File:
        def __init__(self, real) -> None:
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def flush(self) -> None:
            full_disk()

    def failing(self, record):
        if record.get("step") == 5 and not isinstance(self._file, File):
            self._file = File(self._file)
        honest(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Journal, "write", failing)
        with pytest.raises(PreftuneError, match=r"can't write .*jsonl.*No space left.*--resume"):
            run(recipe, folder)
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("failed: can't write")
    run(recipe, folder, resume=True)
    assert tiny.same_run(unbroken, folder) == []


def test_a_read_only_place_is_a_clear_error(home, tmp_path, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PreftuneError, match=r"can't make the run folder .*Read-only.*--output"):
        run(kill.recipe(home), tmp_path / "run")


def test_two_processes_never_share_a_folder(home, tmp_path, monkeypatch) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"

    def second(*args, **kwargs):
        with pytest.raises(UsageError, match=r"another process is running in"):
            run(recipe, folder, resume=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_Prepared", second)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, folder)


# --- a reward or the memory fails in the middle -------------------------------------------------------------------


def failing_after(calls: int, how: str):
    """A reward that is good for some calls, then fails."""
    seen = {"calls": 0}

    def brittle(prompts, completions, **columns):
        seen["calls"] += 1
        values = [float(len(set(c))) for c in completions]
        if seen["calls"] > calls:
            if how == "raises":
                raise ZeroDivisionError("row of the reward's own")
            if how == "nan":
                values[4] = float("nan")
            if how == "hangs":
                time.sleep(60)
        return values

    return brittle


@pytest.mark.parametrize("how", ["raises", "nan", "hangs"])
def test_a_failing_reward_leaves_a_checkpoint(home, tmp_path, monkeypatch, how: str) -> None:
    sections = {"rewards": [], "eval": {}, "train": {"steps": 5, "batch_size": 2, "checkpoint_every": 50}}
    recipe = kill.recipe(home, **sections)
    if how == "hangs":
        from preftune.rewards import base

        patient = base.RewardConfig
        monkeypatch.setattr(base, "RewardConfig", lambda **given: patient(**given, timeout=0.3))
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run(recipe, whole, functions=[failing_after(99, how)])
    with pytest.raises(RewardError, match=r"reward 'brittle' failed on .*train.jsonl:") as caught:
        run(recipe, folder, functions=[failing_after(3, how)])
    assert {"raises": "ZeroDivisionError", "nan": "nan", "hangs": "did not return within 0.3 s"}[how] in str(
        caught.value
    )
    assert (folder / "checkpoints" / "step-3").is_dir()
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("failed: reward 'brittle'")
    run(recipe, folder, resume=True, functions=[failing_after(99, how)])
    assert tiny.same_run(whole, folder) == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory"),
              MemoryError()],
)  # fmt: skip
def test_out_of_memory_says_what_to_change(home, unbroken, tmp_path, monkeypatch, error) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    with monkeypatch.context() as patch:
        honest, calls = loop.backward, 0

        def exhausted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 9:  # the first update of step 5
                raise error
            return honest(*args, **kwargs)

        patch.setattr(loop, "backward", exhausted)
        with pytest.raises(PreftuneError) as caught:
            run(recipe, folder)
    message = str(caught.value)
    for part in ("out of memory in step 5 (update)", "peak", "GiB", "a batch of 2 prompts", "train.jsonl:",
                 "train.max_tokens_per_batch (2048", "--resume"):  # fmt: skip
        assert part in message
    assert caught.value.__cause__ is error
    assert (folder / "checkpoints" / "step-4").is_dir()
    run(recipe, folder, resume=True)
    assert tiny.same_run(unbroken, folder) == []


def test_other_errors_keep_their_traceback_and_a_checkpoint(home, unbroken, tmp_path, monkeypatch) -> None:
    recipe, folder = kill.recipe(home), tmp_path / "run"
    with monkeypatch.context() as patch:
        honest, calls = loop._Prepared, 0

        def broken(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 6:
                raise AttributeError("a defect of ours")
            return honest(*args, **kwargs)

        patch.setattr(loop, "_Prepared", broken)
        with pytest.raises(AttributeError, match=r"a defect of ours"):
            run(recipe, folder)
    assert (folder / "checkpoints" / "step-5").is_dir()
    run(recipe, folder, resume=True)
    assert tiny.same_run(unbroken, folder) == []


# --- the real thing: another interpreter, the command line ------------------------------------------------------


def test_the_command_line_under_ctrl_c(home, unbroken, tmp_path) -> None:
    from preftune.recipes import dump

    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(dump(kill.recipe(home)))
    command = [sys.executable, "-m", "preftune", "run", str(tmp_path / "recipe.yaml"), "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-2").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "--resume goes on after step" in said
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert tiny.same_run(unbroken, folder) == []
    assert (folder / "report.html").exists()
