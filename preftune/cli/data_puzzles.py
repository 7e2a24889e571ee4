"""`preftune data puzzles`: knights-and-knaves puzzles with exactly one solution, as rows for the methods on rewards."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from preftune.cli.parser import Parser
from preftune.errors import DataError, UsageError
from preftune.logic import Puzzle, generate, render, sayings_from_json
from preftune.logic.generate import DEPTH, PEOPLE
from preftune.scoring.run import check_new

_ABOUT = """\
Makes knights-and-knaves puzzles, each with exactly one solution, and writes a line of JSON for each: prompt, answer (in
words), solution, statements, people. The reward knights-knaves reads them. See docs/logic-reward.md.

  preftune data puzzles --count 2000 --people 2-5 --output puzzles.jsonl --split held_out.jsonl=200

No two puzzles are the same under other names, in one file or in two of one call. The same command gives the same files.
"""


def execute(arguments: list[str]) -> int:
    options = _parser().parse(arguments)
    files = [(options.output, options.count), *options.split]
    paths = [path.resolve() for path, _ in files]
    if len(set(paths)) < len(paths):
        raise UsageError("--output and --split name one file twice; give each a name of its own")
    for number, (path, _) in enumerate(files):
        check_new(path, "--split" if number else "--output")
    puzzles = list(
        generate(
            sum(count for _, count in files),
            people=options.people,
            depth=options.depth,
            seed=options.seed,
            exclude={form for path in options.exclude for form in _forms(path)},
        )
    )
    rng = random.Random(f"words {options.seed}")
    rng.shuffle(puzzles)  # small puzzles run out first, and the files should be alike
    start = 0
    for path, count in files:
        _write(path, puzzles[start : start + count], rng)
        start += count
    print(_words(puzzles, files))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="preftune data puzzles",
        usage="preftune data puzzles --count N --output FILE [--people 2-5] [--depth D] [--seed S] [--split FILE=N …]",
        description=_ABOUT,
    )
    parser.add_argument("--count", type=_positive, required=True, metavar="N", help="puzzles in the output")
    parser.add_argument("--output", type=_jsonl, required=True, metavar="FILE", help="new JSONL file")
    parser.add_argument(
        "--people",
        type=_range,
        default=(2, 5),
        metavar="A-B",
        help=f"fewest and most people, or one number, within {PEOPLE[0]}-{PEOPLE[1]} (default 2-5)",
    )
    parser.add_argument(
        "--depth",
        type=int,
        choices=range(DEPTH[0], DEPTH[1] + 1),
        default=2,
        metavar="D",
        help=f"of the deepest statement of each puzzle: 1 without connectives, up to {DEPTH[1]} (default 2)",
    )
    parser.add_argument(
        "--seed", type=_whole, default=0, metavar="S", help="other puzzles for another seed (default 0)"
    )
    parser.add_argument(
        "--split",
        type=_split,
        action="append",
        default=[],
        metavar="FILE=N",
        help="write N further puzzles to another new file; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="make no puzzle that is in this file of an earlier call, under whatever names; may be given several times",
    )
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 1")
    return int(text)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 0")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not all(part.isascii() and part.isdigit() for part in (first, last if dash else first)):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number or a range, such as 2-5")
    return int(first), int(last if dash else first)


def _jsonl(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".jsonl":
        raise argparse.ArgumentTypeError(f"got {text!r}; the file's name must end in .jsonl")
    return path


def _split(text: str) -> tuple[Path, int]:
    name, _, count = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected FILE=N, such as held_out.jsonl=200")
    return _jsonl(name), _positive(count)


def _forms(path: Path) -> Iterator[str]:
    """The canonical forms of a file's puzzles. Raises DataError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--exclude: {path} can't be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "statements" not in row:
                raise ValueError("it has no column 'statements'")
            yield sayings_from_json(row["statements"]).canonical()
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: no row of preftune data puzzles: {error}") from None


def _row(puzzle: Puzzle, rng: random.Random) -> dict[str, Any]:
    text = render(puzzle, rng)
    return {
        "prompt": text.prompt,
        "answer": text.answer,
        "solution": {name: "knight" if kind else "knave" for name, kind in puzzle.solution.items()},
        "statements": puzzle.to_json(),
        "people": len(puzzle.people),
    }


def _write(path: Path, puzzles: Sequence[Puzzle], rng: random.Random) -> None:
    """A file that is whole when it has its name."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        for puzzle in puzzles:
            stream.write(f"{json.dumps(_row(puzzle, rng), ensure_ascii=False)}\n")
    os.replace(partial, path)


def _words(puzzles: Sequence[Puzzle], files: Sequence[tuple[Path, int]]) -> str:
    kinds = [kind for puzzle in puzzles for kind in puzzle.solution.values()]
    sizes = [len(puzzle.people) for puzzle in puzzles]
    told = ", ".join(f"{sizes.count(size)} of {size} people" for size in sorted(set(sizes)))
    written = "\n".join(f"{count} puzzles: {path}" for path, count in files)
    return f"{written}\n{told}; {sum(kinds) / len(kinds):.1%} of the people are knights"
