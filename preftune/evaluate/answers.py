"""The answers of a folder: each is on disk before the next one is asked for, and none is asked for twice.

settings.json     what the answers depend on; a command that would draw others stops here
answers.jsonl     a line for each answer, in the order in which they came, and for each request that failed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from preftune.errors import DataError, PreftuneError, UsageError
from preftune.evaluate.config import EvaluateConfig
from preftune.tasks.benchmark import Followed, Outcome
from preftune.tasks.choices import Chosen
from preftune.tasks.rows import TaskRow, TaskRows

ANSWERS, SETTINGS, SUMMARY, REPORT = "answers.jsonl", "settings.json", "summary.json", "report.html"
VERSION = 1


class Answers:
    """What is known of each model on each task.

    Args:
        folder: new, or one that was begun before.
        tasks: the rows of each task, by its title.
        resume: go on with a folder that was begun.

    Raises:
        UsageError: the folder holds something and `resume` is not asked for, or its answers are others'.
        DataError: the file of answers is damaged.
    """

    def __init__(self, folder: Path, config: EvaluateConfig, tasks: Mapping[str, TaskRows], *, resume: bool) -> None:
        self.folder = folder
        self._tasks = tasks
        self._known: dict[tuple[str, str, int], Outcome] = {}
        self._failed: dict[tuple[str, str, int], str] = {}
        check_folder(folder, resume=resume)
        settings = _settings(config, tasks)
        self._check(settings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = (folder / ANSWERS).open("a+b", buffering=0)
        except OSError as error:
            raise PreftuneError(f"can't write into {folder}: {error.strerror or error}") from error
        self._read()
        write_json(folder / SETTINGS, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None and not self._known and not self._failed:
            # Refused before anything was asked: leave nothing behind that the mended command would have to avoid.
            for name in (ANSWERS, SETTINGS):
                (self.folder / name).unlink(missing_ok=True)

    def missing(self, model: str, task: str) -> list[int]:
        """Rows of a task without this model's answer."""
        return [n for n in range(len(self._tasks[task].rows)) if (model, task, n) not in self._known]

    def outcomes(self, model: str, task: str) -> list[Outcome | None]:
        """A model's outcome on every row of a task; None where there is no answer."""
        return [self._known.get((model, task, n)) for n in range(len(self._tasks[task].rows))]

    def failures(self, model: str, task: str) -> list[tuple[int, str]]:
        """Rows without an answer, and why."""
        return [(n, self._failed.get((model, task, n), "not asked yet")) for n in self.missing(model, task)]

    def keep(self, model: str, task: str, rows: Sequence[tuple[int, Outcome]]) -> None:
        """Write answers. Raises PreftuneError where that fails; what was written before is safe."""
        self._append([_line(model, task, n, self._tasks[task].rows[n], outcome) for n, outcome in rows])
        for n, outcome in rows:
            self._known[model, task, n] = outcome

    def fail(self, model: str, task: str, row: int, why: str) -> None:
        """Write that a request failed; a later command asks again."""
        where = self._tasks[task].rows[row].where
        self._append([{"model": model, "task": task, "row": row, "where": where, "error": why}])
        self._failed[model, task, row] = why

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        data = b"".join(_encoded(line) for line in lines)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError as error:
            raise PreftuneError(
                f"can't write {self.folder / ANSWERS}: {error.strerror or error}; make room, then go on with --resume"
            ) from error

    def _check(self, settings: Mapping[str, Any]) -> None:
        """That answers which are there were drawn as they would be now; then take over what this command leaves out."""
        path = self.folder / SETTINGS
        if not path.exists():
            return
        try:
            was = json.loads(path.read_text(encoding="utf-8"))
            pairs = [(was["drawn"], settings["drawn"], "how answers are drawn")]
            for what in ("models", "tasks"):
                known = was[what]
                pairs += [
                    (known[name], settings[what][name], f"{what[:-1]} {name}")
                    for name in settings[what]
                    if name in known
                ]
                for name in known:
                    settings[what].setdefault(name, known[name])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} can't be read ({error!r}); give another folder with --output") from None
        for before, now, what in pairs:
            if before != now:
                fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
                told = ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in fields)
                raise UsageError(
                    f"can't go on in {self.folder}: {what} has changed since its answers were drawn ({told}). Put it "
                    "back, give the model or task another name, or name another folder with --output"
                )

    def _read(self) -> None:
        """Answers of earlier commands; a half-written last line is taken away."""
        path = self.folder / ANSWERS
        self._file.seek(0)
        size = 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            if not line.endswith(b"\n"):
                self._file.truncate(size)
                break
            size += len(line)
            try:
                raw = json.loads(line)
                place = (str(raw["model"]), str(raw["task"]), int(raw["row"]))
                if place[1] not in self._tasks:
                    continue  # a task that this command leaves out
                if "error" in raw:
                    self._failed[place] = str(raw["error"])
                else:
                    self._known[place] = _outcome(raw)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: no answer of ours ({error!r}); give another --output") from None


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raises UsageError for a folder that may not be written into."""
    if folder.is_file():
        raise UsageError(f"--output {folder} is a file; name a new folder")
    if not folder.is_dir() or not any(not path.name.startswith(".") for path in folder.iterdir()):
        if resume:
            raise UsageError(f"there is nothing in {folder} to go on with; leave --resume out")
        return
    if not resume:
        raise UsageError(
            f"--output {folder} exists and is not empty; go on there with --resume, or name another folder"
        )
    if not (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is no folder of preftune evaluate (it has no {SETTINGS}); name another one")


def _settings(config: EvaluateConfig, tasks: Mapping[str, TaskRows]) -> dict[str, Any]:
    about = {
        task.title: {
            "task": task.task, "content": tasks[task.title].content_hash, "chat": task.chat, "system": task.system,
            "normalize": task.normalize, "unconditional": task.unconditional, "by": task.by,
            "max_tokens": (task.max_tokens or config.max_tokens) if task.draws else None,
        }
        for task in config.tasks
    }  # fmt: skip
    return {
        "version": VERSION, "drawn": {"temperature": config.temperature, "seed": config.seed},
        "models": {model.title: model.identity() for model in config.models}, "tasks": about,
    }  # fmt: skip


def _line(model: str, task: str, number: int, row: TaskRow, outcome: Outcome) -> dict[str, Any]:
    prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content
    head = {"model": model, "task": task, "row": number, "where": row.where, "prompt": prompt}
    if isinstance(outcome, Followed):
        return {
            **head, "answer": outcome.text, "finish": outcome.finish, "tokens": outcome.tokens,
            "strict": outcome.strict, "loose": outcome.loose,
        }  # fmt: skip
    told: dict[str, Any] = {"picked": outcome.picked, "right": outcome.right}
    if outcome.values:
        return {**head, **told, "right_sum": outcome.right_sum, "values": outcome.values, "sums": outcome.sums}
    return {**head, **told, "answer": outcome.text, "cut": outcome.cut}


def _outcome(raw: Mapping[str, Any]) -> Outcome:
    if "strict" in raw:
        strict, loose = (tuple(bool(one) for one in raw[name]) for name in ("strict", "loose"))
        return Followed(str(raw["answer"]), strict, loose, str(raw["finish"]), raw["tokens"])
    values, sums = (tuple(float(one) for one in raw.get(name, ())) for name in ("values", "sums"))
    right_sum = None if raw.get("right_sum") is None else float(raw["right_sum"])
    picked = None if raw["picked"] is None else int(raw["picked"])
    return Chosen(
        values, sums, picked, float(raw["right"]), right_sum, str(raw.get("answer", "")), bool(raw.get("cut"))
    )


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(line, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, from broken model output
        return (json.dumps(line, ensure_ascii=True) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    try:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error.strerror or error}") from error
