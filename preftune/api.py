"""preftune from Python: `train` is the command line's run with values instead of a file.

import preftune

def shorter(prompts, completions, **columns):
    return [-float(len(c)) for c in completions]

result = preftune.train("grpo", model="my-model", data=[{"prompt": "Say hi."}], rewards=[shorter],
                        train={"steps": 10})
print(result.report)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import DataError, UsageError
from preftune.pipeline import PipelineResult, run_pipeline
from preftune.recipes import resolve
from preftune.train.folder import open_folder, write_text
from preftune.train.result import RunResult

Rows = Sequence[Mapping[str, Any]]


def train(
    method: str,
    *,
    model: str | Mapping[str, Any],
    data: str | Path | Mapping[str, Any] | Rows,
    rewards: Sequence[str | Mapping[str, Any] | Callable[..., Any]] = (),
    eval_data: str | Path | Rows | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    **sections: Any,
) -> RunResult:
    """Train a model and return where the results are.

    Args:
        method: a row of the table of methods: "sft", "grpo", …
        model: a hub id or folder, or the recipe's `model:` section.
        data: a file or hub id, the recipe's source, or rows as mappings (they are kept as data.jsonl beside the run).
        rewards: built-in names, `module:function`, the recipe's mappings, or functions in TRL's form,
            `fn(prompts, completions, **columns) -> list of numbers` (None: does not apply).
        eval_data: rows that are measured before and after and never trained on.
        output: run folder, default runs/METHOD. It must not exist, unless `resume`.
        sections: other sections or fields of the recipe: `train={"steps": 100}`, `sampling={…}`, `tokens={…}`,
            `name="…"`.

    Raises:
        PreftuneError: with a message that says what to do.
    """
    name = str(sections.pop("name", method))
    folder = Path(output or Path("runs") / name)
    functions = [r for r in rewards if callable(r)]
    named = [{"name": r} if isinstance(r, str) else dict(r) for r in rewards if not callable(r)]
    raw: dict[str, Any] = {
        "method": method,
        "name": name,
        "output": str(folder),
        "seed": seed,
        "model": {"path": model} if isinstance(model, str) else dict(model),
        "data": _source(data, folder, "data", resume),
        "rewards": named,
        **sections,
    }
    if eval_data is not None:
        evaluation = dict(raw.get("eval", {}))
        if "test" in evaluation:
            raise UsageError("give either eval_data or eval={'test': …}, not both")
        raw["eval"] = {**evaluation, "test": [_source(eval_data, folder, "eval", resume)]}
    pipeline = resolve(raw, functions=functions)
    result = run_pipeline(pipeline, resume=resume, functions=functions)
    assert isinstance(result, PipelineResult)  # only a dry run has no result
    return result.last


def _source(data: str | Path | Mapping[str, Any] | Rows, folder: Path, name: str, resume: bool) -> dict[str, Any]:
    if isinstance(data, (str, Path)):
        return {"path": str(data)}
    if isinstance(data, Mapping):
        return dict(data)
    beside = folder.with_name(f"{folder.name}-{name}.jsonl")
    text = "".join(_line(number, row, name) + "\n" for number, row in enumerate(data, 1))
    if resume and beside.exists():
        if beside.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"can't resume {folder}: the {name} rows differ from those it began with ({beside}); give the same "
                "rows, or another output"
            )
    else:
        open_folder(folder, resume=resume)  # says that the folder is taken before anything is written beside it
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_text(beside, text)
    return {"path": str(beside.resolve())}


def _line(number: int, row: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"row {number} of the {name} rows can't be written as JSON: {error}. Give text, numbers, true, false, "
            "null, lists and mappings, or the path of a file"
        ) from error
