"""The contest of `--style competition`: a built-in one, the run's, or one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from preftune.competition import Construct
from preftune.config import CompetitionConfig
from preftune.errors import UsageError
from preftune.recipes.schema import expected, keys_of, nearest
from preftune.recipes.yamltext import read_file

STYLES: tuple[str, ...] = get_args(CompetitionConfig.model_fields["style"].annotation)


def read_construct(name: str) -> Construct:
    """The construct that `--construct` names.

    Args:
        name: a built-in one, or a YAML file: a recipe with a section `competition`, or what such a section holds.

    Raises:
        UsageError: no such construct or file, or a section that is wrong; names file, line and field.
    """
    if name in STYLES:
        return Construct.of(CompetitionConfig.model_validate({"style": name}))
    if Path(name).suffix not in (".yaml", ".yml"):
        near = nearest(name, STYLES)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(STYLES)}."
        raise UsageError(f"--construct {name}: no such contest; {hint} One of your own is a .yaml file")
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"--construct {name}: there is no such file")
    raw, lines = read_file(path)
    inside: tuple[str, ...] = ()
    if isinstance(raw, dict) and "competition" in raw:
        raw, inside = raw["competition"], ("competition",)
    elif isinstance(raw, dict) and ({"method", "stages"} & raw.keys()):
        raise UsageError(f"--construct {name}: this recipe has no section competition at its top level")
    try:
        return Construct.of(CompetitionConfig.model_validate({} if raw is None else raw))
    except ValidationError as error:
        raise UsageError(_words(path, error, lines, inside)) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _words(path: Path, error: ValidationError, lines: Any, inside: tuple[str, ...]) -> str:
    row = error.errors()[0]
    place = (*inside, *row["loc"])
    line = next((lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in lines), 1)
    field = ".".join(map(str, place)) or "the file"
    if row["type"] == "extra_forbidden":
        names = [*keys_of(CompetitionConfig)] if len(row["loc"]) == 1 else []
        near = nearest(str(row["loc"][-1]), names)
        return f"{path}:{line}: {field}: unknown key" + (f"; did you mean {near}?" if near else "; remove it")
    if row["type"] == "value_error":
        return f"{path}:{line}: {row['msg'].split(', ', 1)[1]}"
    fields = keys_of(CompetitionConfig)
    info = fields.get(str(row["loc"][0])) if len(row["loc"]) == 1 else None
    wanted = expected(info.annotation, info.metadata) if info is not None else row["msg"]
    return f"{path}:{line}: {field}: got {row['input']!r}; expected {wanted}"
