"""Finding reward functions by name. Runs in the trainer and in worker processes; imports the standard library only.

A name is `module:function` or `path/file.py:function`. The trainer checks names by reading the source without
running it; the code itself is imported where the reward runs.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from preftune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a function lives: `file` or `module`, and its (dotted) name there. `path` is searched after sys.path."""

    function: str
    module: str = ""
    file: str = ""
    path: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Import the function. Raises UsageError when it is not there; the module's own errors pass through."""
        with extended_path(self.path):
            home = load_file(Path(self.file)) if self.file else importlib.import_module(self.module)
        found: Any = home
        for part in self.function.split("."):
            if not hasattr(found, part):
                raise UsageError(f"{self.file or self.module} has no {self.function!r}")
            found = getattr(found, part)
        if not callable(found):
            raise UsageError(f"{self.file or self.module}:{self.function} is not a function")
        return found  # type: ignore[no-any-return]  # callable() does not narrow Any


@contextmanager
def extended_path(folders: tuple[str, ...]) -> Iterator[None]:
    """Search `folders` after sys.path for the time of an import."""
    added = [folder for folder in folders if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)


def load_file(path: Path) -> ModuleType:
    """Import a Python file by its path, once per process. Its own folder is on sys.path for its imports."""
    name = f"preftune_rewards_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with extended_path((str(path.parent),)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def find_reference(name: str, base_dir: Path) -> Reference:
    """Turn `module:function` or `file.py:function` into a Reference, checked without running any of its code.

    Relative files start at `base_dir` (the working directory, from the command line); modules are searched on
    sys.path, then in `base_dir` and the working directory. Raises UsageError naming what is missing.
    """
    home, _, function = name.rpartition(":")
    if not home or not function:
        raise UsageError(f"reward {name!r}: expected module:function or path/file.py:function")
    if home.endswith(".py"):
        file = (base_dir / Path(home).expanduser()).resolve()
        if not file.is_file():
            raise UsageError(f"reward {name!r}: there is no file {file}")
        _check_defined(file, function, name)
        return Reference(function, file=str(file))
    path = (str(base_dir.resolve()), str(Path.cwd()))
    try:
        with extended_path(path):
            spec = importlib.util.find_spec(home)
    except (ImportError, ValueError) as error:
        raise UsageError(f"reward {name!r}: module {home!r} can't be imported: {error}") from None
    if spec is None:
        raise UsageError(
            f"reward {name!r}: there is no module {home!r} on sys.path, in {path[0]} or in {path[1]}; "
            f"for a file write path/to/file.py:{function}"
        )
    if spec.origin and spec.origin.endswith(".py"):
        _check_defined(Path(spec.origin), function, name)
    return Reference(function, module=home, path=path)


def _check_defined(file: Path, function: str, name: str) -> None:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise UsageError(f"reward {name!r}: {file}:{error.lineno}: {error.msg}") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            if node.name == "*":
                return  # anything may come from a star import: the import itself will tell
            names.add(node.asname or node.name.split(".")[0])
    first = function.partition(".")[0]
    if first not in names and "__getattr__" not in names:
        near = difflib.get_close_matches(first, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"reward {name!r}: {file} defines no {first!r}{hint}")


def reference_to(function: Callable[..., Any]) -> Reference | None:
    """The Reference by which another process can import `function`, or None when it can't.

    None for closures, lambdas, bound methods, callable objects (they may hold a model) and functions of the main
    script (importing that would run it again).
    """
    if not inspect.isfunction(function) or function.__module__ in ("__main__", "builtins"):
        return None
    try:
        pickle.dumps(function)  # pickles by name, so it fails unless the name leads back to this very object
        spec = importlib.util.find_spec(function.__module__)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError, ValueError):
        return None
    known = sys.modules[function.__module__]
    if spec is None or spec.origin != getattr(known, "__file__", None):
        return None
    return Reference(function.__qualname__, module=function.__module__)
