"""From a row's tests to cases: programs to run, and how to decide outside the sandbox whether they were right."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from preftune.rewards.code_driver import OBSERVE
from preftune.rewards.code_values import Expected

_ENTRY = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)?")
_IDENTICAL = (None, True, False)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The program gets `stdin` and must print `stdout`."""

    stdin: str
    stdout: str

    def right(self, printed: bytes) -> bool:
        """True when the output is the same but for white space at line ends and blank lines at the end."""
        return _lines(printed.decode("utf-8", errors="replace")) == _lines(self.stdout)


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n").split("\n")


@dataclass(frozen=True, slots=True)
class Check:
    """The program is loaded, then `source` runs.

    Attributes:
        source: the test, with asserts of the form `… == literal` turned into observations.
        expected: what each observation must be; it never enters the sandbox.
        required: the observations that a test which ran to its end has made.
        inside: True when the test has asserts that only the sandboxed interpreter judges.
        entry: the name under test, where the row says it.
    """

    source: str
    expected: tuple[Expected, ...]
    required: frozenset[int]
    inside: bool
    entry: str | None


Case = Dialogue | Check


def read_cases(tests: Any, entry: Any = None) -> list[Case]:
    """The cases of a row, in order. Raises ValueError saying what is wrong with the column, to follow "its tests"."""
    entry = _entry(entry)
    if isinstance(tests, str) and tests.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):  # Python, after all: the parser will say
            tests = json.loads(tests)
    if isinstance(tests, str):
        return [_check(tests, entry)]
    cases: list[Case] = []
    if isinstance(tests, Mapping):
        cases = list(_pairs(tests, entry))
    elif isinstance(tests, (list, tuple)):
        for item in tests:
            if isinstance(item, str):
                cases.append(_check(item, entry))
            elif isinstance(item, Mapping):
                cases.extend(_pairs(item, entry))
            else:
                raise ValueError(f"hold a {type(item).__name__}, where Python source or {{input, output}} is expected")
    else:
        raise ValueError(
            f"are a {type(tests).__name__}; expected Python source, a list of it, or {{input, output}} pairs"
        )
    if not cases:
        raise ValueError("are empty")
    return cases


def _entry(entry: Any) -> str | None:
    if entry is None or (isinstance(entry, float) and math.isnan(entry)) or entry == "":
        return None
    if not isinstance(entry, str) or not _ENTRY.fullmatch(entry):
        raise ValueError(f"come with an entry point that is no name, like f or Solution().f: {entry!r}")
    return entry


def _pairs(table: Mapping[str, Any], entry: str | None) -> Iterator[Case]:
    """{input, output}, one or, in lists, several; with `fn_name` or an entry point, inputs are arguments."""
    inputs = table.get("inputs", table.get("input"))
    outputs = table.get("outputs", table.get("output"))
    if inputs is None or outputs is None:
        raise ValueError(f"have the keys {', '.join(map(repr, table))}, but not 'input' and 'output'")
    entry = _entry(table.get("fn_name")) or entry
    several = "inputs" in table or (isinstance(inputs, list) and isinstance(outputs, list) and entry is None)
    if not several:
        inputs, outputs = [inputs], [outputs]
    if not isinstance(inputs, (list, tuple)) or not isinstance(outputs, (list, tuple)) or len(inputs) != len(outputs):
        raise ValueError("have not as many outputs as inputs")
    for given, wanted in zip(inputs, outputs, strict=True):
        if entry is not None and not isinstance(given, str):
            yield _call(entry, given, wanted)
        else:
            yield Dialogue(_text(given, "input"), _text(wanted, "output"))


def _text(value: Any, what: str) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"have an {what} that is neither text nor a list of lines, and the row has no entry point to call")


def _call(entry: str, given: Any, wanted: Any) -> Check:
    arguments = f"*{given!r}" if isinstance(given, (list, tuple)) else f"**{given!r}"
    try:
        ast.literal_eval(repr(given))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError("have arguments that are no plain data") from None
    if not isinstance(given, (list, tuple, Mapping)):
        raise ValueError("have arguments that are neither a list nor names with values")
    function = (
        entry if "." in entry or "(" in entry else f"(Solution().{entry} if 'Solution' in globals() else {entry})"
    )
    source = f"{OBSERVE}(0, {function}({arguments}))"
    return Check(source, (Expected(wanted, loose=True),), frozenset([0]), inside=False, entry=entry)


def _check(source: str, entry: str | None) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, on escapes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"are no Python: {error}") from None
    if not any(isinstance(node, (ast.Assert, ast.Raise)) for node in ast.walk(tree)):
        raise ValueError("have no assert, so any program would pass")
    called = _called(tree, entry)
    outside = _Outside()
    tree = outside.visit(tree)
    run = {*called, *_called_on_top(tree)}
    bodies = [tree.body, *(n.body for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in run)]
    required = frozenset(number for body in bodies for number in _straight(body))
    for name in called:
        argument = entry if name == "check" else ""
        tree.body.extend(ast.parse(f"{name}({argument})").body)
    left = (node for node in ast.walk(tree) if isinstance(node, (ast.Assert, ast.Raise)))
    inside = any(isinstance(node, ast.Raise) or not isinstance(node.test, ast.Constant) for node in left)
    return Check(ast.unparse(ast.fix_missing_locations(tree)), tuple(outside.expected), required, inside, entry)


def _called(tree: ast.Module, entry: str | None) -> list[str]:
    """Functions of the test that it leaves to be called: `check(candidate)`, and those of the name test…"""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    out = []
    for function in functions:
        takes = len(function.args.posonlyargs + function.args.args) - len(function.args.defaults)
        if function.name in calls:
            continue
        if function.name == "check" and takes == 1:
            if entry is None:
                raise ValueError("define check(candidate), but the row has no entry point to check")
            out.append("check")
        elif function.name.startswith("test") and takes == 0:
            out.append(function.name)
    reached = bool(out) or any(not isinstance(n, (ast.FunctionDef, ast.ClassDef)) and _judges(n) for n in tree.body)
    if not reached and not calls & {function.name for function in functions}:
        raise ValueError(
            "have asserts in functions or classes only, and nothing calls them (unittest classes are not run)"
        )
    return out


def _called_on_top(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            yield node.value.func.id


def _judges(statement: ast.stmt) -> bool:
    return any(isinstance(node, (ast.Assert, ast.Raise)) for node in ast.walk(statement))


def _straight(body: list[ast.stmt]) -> Iterator[int]:
    """The observations that are made whenever `body` runs to its end."""
    for statement in body:
        if isinstance(statement, ast.Return):
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            call = statement.value
            if isinstance(call.func, ast.Name) and call.func.id == OBSERVE:
                assert isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, int)
                yield call.args[0].value


class _Outside(ast.NodeTransformer):
    """Turns asserts on a value E into observations of it: `E == literal`, `E is None|True|False`,
    `abs(E - literal) < tolerance` and `math.isclose(E, literal)`.

    Not inside `try` and `with`, where the assert's own exception may be wanted.
    """

    def __init__(self) -> None:
        self.expected: list[Expected] = []

    def visit_Try(self, node: ast.Try) -> ast.AST:
        return node

    def visit_TryStar(self, node: ast.AST) -> ast.AST:
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        found = _compared(node.test) or _near(node.test)
        if found is None:
            return node
        seen, expected = found
        call = ast.Call(ast.Name(OBSERVE, ast.Load()), [ast.Constant(len(self.expected)), seen], [])
        self.expected.append(expected)
        return ast.copy_location(ast.Expr(call), node)


def _sides(one: ast.expr, other: ast.expr) -> tuple[ast.expr, Any] | None:
    """Of two expressions the one that the program decides, and the other's value, if just that one is a literal."""
    for seen, literal in ((one, other), (other, one)):
        if _is_literal(literal) and not _is_literal(seen):
            return seen, ast.literal_eval(literal)
    return None


def _compared(test: ast.expr) -> tuple[ast.expr, Expected] | None:
    """E == literal, or E is a constant."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], (ast.Eq, ast.Is)):
        return None
    found = _sides(test.left, test.comparators[0])
    identical = isinstance(test.ops[0], ast.Is)
    if found is None or (identical and not any(found[1] is constant for constant in _IDENTICAL)):
        return None
    return found[0], Expected(found[1], identical)


def _near(test: ast.expr) -> tuple[ast.expr, Expected] | None:
    """abs(E − literal) < tolerance, or math.isclose(E, literal)."""
    if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose") and len(test.args) == 2:
        found = _sides(*test.args)
        named = {keyword.arg: keyword.value for keyword in test.keywords}
        if not set(named) <= {"rel_tol", "abs_tol"} or not all(map(_is_literal, named.values())):
            return None
        given = {name: ast.literal_eval(value) for name, value in named.items()}
        near = (given.get("rel_tol", 1e-9), given.get("abs_tol", 0.0))
    elif (
        isinstance(test, ast.Compare)
        and [type(op) in (ast.Lt, ast.LtE) for op in test.ops] == [True]
        and isinstance(test.left, ast.Call)
        and ast.unparse(test.left.func) == "abs"
        and len(test.left.args) == 1
        and isinstance(difference := test.left.args[0], ast.BinOp)
        and isinstance(difference.op, ast.Sub)
        and _is_literal(test.comparators[0])
    ):
        found = _sides(difference.left, difference.right)
        limit = ast.literal_eval(test.comparators[0])
        if not _is_number(limit):
            return None
        near = (0.0, math.nextafter(limit, 0) if isinstance(test.ops[0], ast.Lt) else float(limit))
    else:
        return None
    if found is None or not _is_number(found[1]) or not all(_is_number(number) and number >= 0 for number in near):
        return None
    return found[0], Expected(found[1], near=near)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True
