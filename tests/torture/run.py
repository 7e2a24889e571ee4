"""`make torture`: what users, disks and policies do to a run, on purpose and many times. Prints counts.

    python tests/torture/run.py                       all of it, some minutes
    python tests/torture/run.py --kills 5 --seed 3    part of it

Exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")


def check_kills(folder: Path, count: int, seed: int = 0) -> str:
    """Runs that die by SIGKILL at random moments, up to three times each, are resumed and compared."""
    from tests import tiny
    from tests.torture import kill

    home = folder / "home"
    home.mkdir()
    tiny.save(home / "model")
    rows = tiny.sums(35)
    tiny.write(home / "train.jsonl", rows[:28])
    tiny.write(home / "validation.jsonl", rows[28:])
    recipe = kill.recipe(home)
    whole = folder / "whole"
    total = kill.count_operations(lambda: kill.start_or_resume(recipe, whole), whole)
    start = time.monotonic()
    kill.finish(recipe, folder / "timed")
    seconds = time.monotonic() - start
    assert not tiny.same_run(whole, folder / "timed"), "two unbroken runs differ"
    rng = random.Random(seed)
    done = runs = 0
    while done < count:
        run = folder / f"run-{runs}"
        runs += 1
        died: list[str] = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            if done == count:
                break
            if rng.random() < 0.5:
                number = rng.randint(1, total)
                dead, where = kill.kill_at_operation(recipe, run, number), f"file operation {number} of {total}"
            else:
                after = rng.random() * seconds
                dead, where = kill.kill_at_time(recipe, run, after), f"{after:.2f} s"
            if dead:
                died.append(where)
                done += 1
        kill.finish(recipe, run)
        differs = tiny.same_run(whole, run)
        assert not differs, f"killed at {' and '.join(died)}: {', '.join(differs)} differ from the unbroken run"
    return f"{done} kills in {runs} runs, all resumed bit for bit"


def check_wrong_recipes(folder: Path, count: int, seed: int = 0) -> str:
    """Each wrong recipe gives one message that names the fault, and exit code 2."""
    import yaml

    from preftune.cli.main import main
    from tests.torture.recipes import wrong_recipes

    for number, (recipe, word) in enumerate(wrong_recipes(count, seed)):
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(["run", str(path), "--output", str(folder / "never")])
        text = said.getvalue()
        assert code == 2, f"recipe {number}: exit code {code}\n{text}\n{recipe}"
        assert text.count("error:") == 1 and "Traceback" not in text, f"recipe {number}:\n{text}"
        assert word in text, f"recipe {number}: the message does not name {word!r}\n{text}"
        assert not (folder / "never").exists(), f"recipe {number} began a run"
    return f"{count} wrong recipes, each one clear message and exit code 2"


def rows(folder: Path, count: int, seed: int = 0) -> str:
    from tests.torture.rows import check_rows

    counts = check_rows(folder, count, seed)
    return f"{count} fuzzed rows: {counts['used']} used, {counts['refused']} refused with a message"


def completions(folder: Path, count: int, seed: int = 0) -> str:
    from tests.torture.completions import check_completions

    seen = check_completions(count, seed)
    fewer = [f"{name} on {n:,} (its time was up)" for name, n in seen.items() if n < count]
    return f"{count:,} fuzzed completions through {len(seen)} readers" + (f"; {'; '.join(fewer)}" if fewer else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Torture a run, bounded.")
    for name, default in (("kills", 50), ("rows", 1000), ("recipes", 200), ("completions", 10_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    parts: list[tuple[Callable[[Path, int, int], str], int]] = [
        (check_kills, given.kills), (rows, given.rows), (check_wrong_recipes, given.recipes),
        (completions, given.completions),
    ]  # fmt: skip
    failed = 0
    for part, count in parts:
        if count == 0:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = part(Path(folder), count, given.seed)
            except Exception as error:  # noqa: BLE001  whatever went wrong is this part's failure, and the others go on
                failed += 1
                traceback.print_exc()
                said = f"FAILED: {type(error).__name__}: {error}"
        print(f"{said}  ({time.monotonic() - start:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
