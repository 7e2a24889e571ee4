"""Runs inside the sandbox, as its main program: executes a model's program, or such a program and one test of it.

Imports nothing of preftune, and little at all: a sandbox starts for every test. What to do comes on descriptor 3: eight
bytes of length, a marshalled dict, and then, read only after the test has ended, a secret. The report on descriptor 4
is lines:

    see INDEX VALUE     an observed value, encoded; whether it is right is decided outside
    fail STAGE TEXT     `program` or `test` raised; the exception in hex
    end SECRET          the test ran to its end
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than starting Python
    from typing import Any

MESSAGE, REPORT = 3, 4
OBSERVE = "__observe__"
DEEPEST = 100
"""Levels of nesting of an observed value. A value that is deeper, or holds itself, is not plain data."""


def take(size: int, read: Any = os.read) -> bytes:
    out = b""
    while len(out) < size:
        part = read(MESSAGE, size - len(out))
        if not part:
            raise EOFError("the message ended")
        out += part
    return out


def encode(value: Any, depth: int = 0) -> str:
    """Plain data as JSON: a list of a letter and what it holds. A subclass counts as the class that it extends."""
    if depth > DEEPEST:
        return '["?","a value nested too deep"]'
    if value is None or value is True or value is False:
        return {None: '["n"]', True: '["t"]', False: '["f"]'}[value]
    if isinstance(value, int):
        return f'["i","{int.__format__(value, "x")}"]'
    if isinstance(value, float):
        return f'["r","{float.hex(value)}"]'
    if isinstance(value, complex):
        return f'["c","{float.hex(value.real)}","{float.hex(value.imag)}"]'
    if isinstance(value, str):
        return f'["s","{str.encode(value, "utf-8", "surrogatepass").hex()}"]'
    if isinstance(value, (bytes, bytearray)):
        return f'["b","{bytes(memoryview(value)).hex()}"]'
    for kind, letter, walk in WALKS:
        if isinstance(value, kind):
            return f'["{letter}",[{",".join([encode(item, depth + 1) for item in walk(value)])}]]'
    if isinstance(value, dict):
        pairs = [f"[{encode(k, depth + 1)},{encode(v, depth + 1)}]" for k, v in dict.items(value)]
        return f'["d",[{",".join(pairs)}]]'
    return encode_other(value)


WALKS: tuple[tuple[Any, str, Any], ...] = (
    (list, "l", list.__iter__),
    (tuple, "u", tuple.__iter__),
    (set, "e", set.__iter__),
    (frozenset, "e", frozenset.__iter__),
    (type({}.keys()), "e", iter),
    (type({}.items()), "e", iter),
)


def encode_other(value: Any) -> str:
    kind = type(value)
    if (kind.__module__, kind.__name__) in (("fractions", "Fraction"), ("decimal", "Decimal")):
        try:
            over, under = value.as_integer_ratio()
            return f'["q","{over:x}","{under:x}"]'
        except (ValueError, OverflowError):
            pass  # an infinite decimal number
    name = f"{kind.__module__}.{kind.__name__}"
    return f'["?","{ascii(name)[1:-1][:200].translate(HARMLESS)}"]'


HARMLESS = {34: "'", 92: "/"}


def run_program(source: Any) -> None:
    """As `python program.py` would."""
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    os.close(MESSAGE)
    os.close(REPORT)
    exec(compile(source, "program.py", "exec"), main.__dict__)


def run_test(job: dict[str, Any]) -> None:
    """The program as a module, then the test in a name space of its own; does not return.

    What this function uses it holds from before the program ran. The program could still find it, by looking through
    the frames of its interpreter: docs/code-reward.md says what that is worth.
    """
    execute, translate, leave, write, whole = exec, compile, os._exit, os.write, take
    home = vars(builtins)
    plain = dict(home)
    sys.modules["__main__"] = type(sys)("__main__")  # the program need not have this one's names at hand

    def report(line: str) -> None:
        data = line.encode() + b"\n"
        while data:
            data = data[write(REPORT, data) :]

    def fail(stage: str, error: BaseException) -> None:
        try:
            text = f"{type(error).__name__}: {error}"[:500]
        except BaseException:  # noqa: BLE001  the program's own exception class
            text = type(error).__name__
        report(f"fail {stage} {text.encode('utf-8', 'backslashreplace').hex()}")
        leave(1)

    program = type(sys)("program")
    sys.modules["program"] = sys.modules["solution"] = program
    try:
        for name in ("setup", "program"):
            execute(translate(job[name], f"{name}.py", "exec"), program.__dict__)
    except BaseException as error:  # noqa: BLE001  SystemExit above all
        fail("program", error)
    home.update(plain)
    sys.settrace(None)
    sys.setprofile(None)
    names = {n: v for n, v in list(program.__dict__.items()) if not (n.startswith("__") and n.endswith("__"))}
    if job["hide"]:
        names = {n: v for n, v in names.items() if n not in plain or n == job["keep"]}
    space = {
        "__name__": "tests",
        **names,
        "__builtins__": plain,
        OBSERVE: lambda index, value: report(f"see {index} {encode(value)}"),
    }
    try:
        execute(translate(job["test"], "tests.py", "exec"), space)
    except BaseException as error:  # noqa: BLE001  as above
        fail("test", error)
    report("end " + whole(32).decode())
    leave(0)


def main() -> None:
    import _sitebuiltins  # the interpreter starts without `site`, which is slow, so without these two

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    sys.argv = ["program.py"]
    job = marshal.loads(take(int.from_bytes(take(8), "big")))
    if "test" in job:
        run_test(job)
    else:
        run_program(job["program"])


if __name__ == "__main__":
    main()
