"""The reward `code`: which program, which tests, what a pass is, and what a program can't fake."""

import json
import re
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import RewardConfig
from preftune.data.load import load_examples
from preftune.errors import RewardError, UsageError
from preftune.recipes import resolve
from preftune.records import Completion, Group, Prompt
from preftune.rewards import build_rewards
from preftune.rewards import code as code_module
from preftune.rewards.call import Batch, Caller, Failure, Reply, TrainerState
from preftune.rewards.code import CodeReward, fenced
from preftune.rewards.code_cases import Check, Dialogue, read_cases
from preftune.rewards.code_driver import encode
from preftune.rewards.code_values import Expected
from preftune.sandbox import Layers, SandboxError

ADD = "def add(a, b):\n    return a + b\n"
ADD_TESTS = ["assert add(1, 2) == 3", "assert add('x', 'y') == 'xy'"]


def block(program):
    return f"Here it is:\n```python\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def make():
    """Rewards of given fields, each made once; their sandboxes end with the module."""
    made = {}

    def get(**fields):
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            made[key] = CodeReward(**{"workers": 2, **fields})
        return made[key]

    yield get
    for reward in made.values():
        if "_sandboxes" in reward.__dict__:
            reward._sandboxes.close()


def call(reward, programs, fence=True, **columns):
    """Values, notes and metrics of programs that share their columns."""
    rows = len(programs)
    batch = Batch(
        ["q"] * rows, [block(p) if fence else p for p in programs], [[1]] * rows,
        {name: [value] * rows for name, value in columns.items()}, TrainerState(0, 1),
    )  # fmt: skip
    reply = Caller(reward, {})(batch)
    assert isinstance(reply, Reply), reply
    return reply


def score(reward, program, tests, **columns):
    reply = call(reward, [program], tests=tests, **columns)
    assert not reply.bad, reply.bad
    return reply.values[0], reply.extras["code"][0]


# ---- the program ----


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("no code", None),
        ("```python\na = 1\n```", "a = 1"),
        ("```python\na = 1\n```\n```py\na = 2\n```\n```\na = 3\n```", "a = 2"),
        ("```\na = 3\n```\n```json\n{}\n```", "a = 3"),
        ("```json\n{}\n```", None),
        ("```Python3 title=x\na = 1\n\n```", "a = 1\n"),
        ("```python\na = 1\n", None),  # cut: it was never closed
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("~~~python\na = 1\n~~~", "a = 1"),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("``` python\na\r\n```\r\n", "a\r"),
    ],
)
def test_fenced(text, program):
    assert fenced(text) == program


lines = st.text(st.characters(blacklist_characters="\n`~\r"), max_size=20)


@given(
    before=st.lists(lines, max_size=4),
    program=st.lists(lines, min_size=1, max_size=6),
    after=st.lists(lines, max_size=4),
)
def test_any_program_is_found_again(before, program, after):
    text = "\n".join([*before, "```python", *program, "```", *after])
    assert fenced(text) == "\n".join(program)


@given(
    st.lists(
        st.sampled_from(["```", "```python", "~~~", "````", "x", "  ```", "", "```json", "\ud800", "\x00"]), max_size=12
    )
)
def test_any_text_has_a_program_or_none(parts):
    found = fenced("\n".join(parts))
    assert found is None or isinstance(found, str)


def test_extract_and_whole(make):
    text = "x = 0\n[[def add(a, b): return 0]] or [[def add(a, b): return a + b]]"
    reply = call(make(extract=r"\[\[(.*?)\]\]"), [text, "none"], fence=False, tests=ADD_TESTS)
    assert reply.values == [1.0, 0.0] and reply.extras["code"][1]["why"] == "no program in the text"
    assert call(make(whole=True), [ADD, block(ADD)], fence=False, tests=ADD_TESTS).values == [1.0, 0.0]
    with pytest.raises(ValueError, match="exclude each other"):
        CodeReward(extract="x", whole=True)
    with pytest.raises(ValueError, match="no regular expression"):
        CodeReward(extract="(")


# ---- the shapes of the tests ----


def test_shapes(make):
    reward = make()
    assert score(reward, ADD, "assert add(1, 2) == 3\nassert add(2, 2) == 4")[0] == 1.0
    assert score(reward, ADD, ADD_TESTS)[0] == 1.0
    echo = "print(int(input()) + int(input()))"
    pairs = [{"input": "1\n2\n", "output": "3\n"}, {"input": "1\n1", "output": "3"}]
    value, note = score(reward, echo, pairs)
    assert value == 0.5 and note == {"passed": 1, "tests": 2, "why": "test 2: wrong: printed 2\n"}
    table = {"inputs": ["1\n2\n", ["4", "5"]], "outputs": ["3", ["9"]]}
    assert score(reward, echo, table)[0] == 1.0
    assert score(reward, echo, json.dumps(table))[0] == 1.0
    assert score(reward, echo, {"input": ["1\n2\n"], "output": ["3"]})[0] == 1.0


def test_check_of_a_candidate(make):
    """HumanEval's shape: check(candidate), and the entry point in a column."""
    check = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(candidate(0.5, 1) - 1.5) < 1e-6\n"
    assert score(make(), ADD, check, entry_point="add")[0] == 1.0
    value, note = score(make(), ADD.replace("+", "-"), check, entry_point="add")
    assert value == 0.0 and "observation 1" in note["why"]


def test_calls_with_arguments(make):
    solution = "class Solution:\n    def add(self, a, b):\n        return (a, b)\n"
    table = {"fn_name": "add", "inputs": [[1, 2], [None, True]], "outputs": [[1, 2], [None, True]]}
    assert score(make(), solution, json.dumps(table))[0] == 1.0  # a tuple is JSON's list
    assert score(make(), ADD, {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})[0] == 1.0  # [result]
    pairs = [{"input": {"a": 1, "b": 2}, "output": 3}, {"input": [[1], [2]], "output": [1, 2]}]
    assert score(make(), ADD, pairs, entry_point="add")[0] == 1.0
    assert score(make(), solution, [{"input": [1, 2], "output": [1, 2]}], entry_point="Solution().add")[0] == 1.0


def test_functions_named_test_are_called(make):
    tests = (
        "from solution import add\n\n"
        "def test_one():\n    assert add(1, 1) == 2\n\ndef test_two():\n    assert add(1, 1) == 3\n"
    )
    assert score(make(), ADD, tests)[0] == 0.0
    assert score(make(), ADD, tests.replace("3", "2"))[0] == 1.0


def test_setup_is_seen_by_program_and_tests(make):
    assert score(make(), "def f(): return math.pi", "assert 3 < f() < 4", setup=["import math", "import re"])[0] == 1.0
    setup = "import math\nfrom typing import List\nLIMIT = 3\n"
    program = "def f(x: List[int]):\n    return [math.sqrt(v) for v in x][:LIMIT]"
    assert score(make(), program, "assert f([4] * 9) == [2.0] * LIMIT", setup=setup)[0] == 1.0
    assert score(make(), "print(LIMIT)", [{"input": "", "output": "3"}], setup=setup)[0] == 1.0


@pytest.mark.parametrize(
    ("tests", "entry", "words"),
    [
        ("assert f(", None, "are no Python: '(' was never closed"),
        ("print(f(1))", None, "have no assert, so any program would pass"),
        ("def check(candidate):\n    assert candidate(1)", None, "no entry point to check"),
        ("class T(TestCase):\n    def test(self):\n        assert 1", None, "unittest classes"),
        ("assert f()", "f; import os", "no name, like f or Solution().f"),
        ([], None, "are empty"),
        ([3], None, "hold a int"),
        (3, None, "are a int"),
        ({"in": 1}, None, "have the keys 'in', but not 'input' and 'output'"),
        ({"inputs": ["1"], "outputs": []}, None, "not as many outputs as inputs"),
        ([{"input": {"a": 1}, "output": "1"}], None, "neither text nor a list of lines"),
        ([{"input": 5, "output": 5}], "f", "neither a list nor names"),
        ([{"input": [object()], "output": 5}], "f", "no plain data"),
    ],
)  # fmt: skip
def test_malformed_tests_name_the_row(tests, entry, words):
    with pytest.raises(ValueError) as caught:
        read_cases(tests, entry)
    assert words in str(caught.value)


def group(texts, where="rows.jsonl:1", **columns):
    prompt = Prompt(ids=(1,), text="q", content="q", columns=columns, where=where)
    return Group(prompt, tuple(Completion(ids=(1, 2), mask=(True, True), text=text) for text in texts))


def test_asserts_with_literals_are_decided_outside():
    source = (
        "assert add(1, 2) == 3, 'never 3'\nassert [4] == add(1, x=5)\nassert f() is None\nassert f() is 7\n"
        "assert f() > 6.0\nfor n in range(3):\n    assert g(n) == 'eight'\n"
        "try:\n    assert h() == 9\nexcept AssertionError:\n    assert h() == 10\nassert 1 == 1\n"
    )
    (case,) = read_cases(source)
    assert isinstance(case, Check) and case.inside
    assert [one.value for one in case.expected] == [3, [4], None, "eight"]
    assert case.required == {0, 1, 2}
    assert "'eight'" not in case.source and "never" not in case.source and "== 3" not in case.source
    assert "h() == 9" in case.source and "f() > 6.0" in case.source
    (case,) = read_cases("assert f(2) == -1.5e3")
    assert not case.inside and "1500" not in case.source


def test_asserts_that_a_number_is_near_are_decided_outside():
    source = (
        "assert abs(f(1) - 3) < 1\nassert abs(-0.5 - f(2)) <= 0.25\nassert math.isclose(f(3), 4.0)\n"
        "assert isclose(4, f(4), rel_tol=0, abs_tol=2)\nassert abs(f(5) - g(5)) < 1\n"
        "assert isclose(f(6), 1, rel_tol=t)\n"
        "assert abs(f(7)) < 3\nassert abs(f(8) - 'x') < 1\n"
    )
    (case,) = read_cases(source)
    assert [one.value for one in case.expected] == [3, -0.5, 4.0, 4] and case.required == {0, 1, 2, 3}
    strict, loose, relative, absolute = case.expected
    assert strict.met(["i", "3"]) and strict.met(["r", "0x1.fp+1"]) and not strict.met(["i", "4"])
    assert loose.met(json.loads(encode(-0.75))) and not loose.met(["r", "0x0p+0"])
    assert relative.met(json.loads(encode(4 + 1e-9))) and not relative.met(json.loads(encode(4.001)))
    assert absolute.met(["i", "6"]) and not absolute.met(["i", "7"]) and not absolute.met(["s", "34"])
    assert case.inside and "abs(f(5) - g(5)) < 1" in case.source and "abs(f(7)) < 3" in case.source


# ---- what counts as equal ----

numbers = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
plain = st.recursive(
    st.none() | numbers | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner, max_size=4)
    | st.sets(st.integers() | st.text(), max_size=4)
    | st.frozensets(st.tuples(st.integers()), max_size=3),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(plain, plain)
def test_equality_outside_is_pythons(value, other):
    seen = json.loads(encode(value))
    assert Expected(value).met(seen)
    assert Expected(other).met(seen) == (value == other)


def test_subclasses_and_numbers_of_the_standard_library():
    from collections import Counter, OrderedDict, defaultdict, namedtuple
    from decimal import Decimal
    from enum import IntEnum

    class Colour(IntEnum):
        RED = 1

    values = [
        (Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}), (defaultdict(int, a=1), {"a": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)), (Colour.RED, 1), (Decimal("0.5"), 0.5), (Fraction(1, 2), 0.5),
        ({"a": 1}.keys(), {"a"}), (bytearray(b"x"), b"x"), (True, 1), (1.0, 1),
    ]  # fmt: skip
    for value, wanted in values:
        assert Expected(wanted).met(json.loads(encode(value)))
    assert Expected(True, identical=True).met(["t"]) and not Expected(True, identical=True).met(["i", "1"])
    assert not Expected([1, 2]).met(json.loads(encode((1, 2)))) and Expected([1, 2], loose=True).met(
        json.loads(encode((1, 2)))
    )


def test_objects_and_endless_data_are_no_plain_data():
    endless = []
    endless.append(endless)
    for value in (object(), lambda: 1, range(3), endless, float("nan"), [{1: endless}]):
        assert not any(Expected(wanted).met(json.loads(encode(value))) for wanted in (0, [0, 1, 2], [[]], [], {}))


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)), plain)
@settings(deadline=None)
def test_a_forged_value_is_never_an_error(seen, wanted):
    assert Expected(wanted).met(seen) in (True, False)


def test_values_made_to_be_slow_are_judged_in_no_time():
    collide = [["i", f"{(2**61 - 1) * n:x}"] for n in range(30_000)]
    began = time.monotonic()
    assert not Expected({1, 2}).met(["e", collide])
    assert not Expected({frozenset([1])}).met(["e", [["e", collide]]])
    assert not Expected({1: 2}).met(["d", [[["e", collide], ["n"]]]])
    assert not Expected(1).met(["q", "3" * 500_000, "7" * 500_000])
    assert not Expected({1, 2}).met(["e", [["i", "1"], ["i", "1"]]])  # one element, twice
    assert time.monotonic() - began < 5


def test_printed_lines():
    right = Dialogue("", "a b\nc\n").right
    assert right(b"a b\nc") and right(b"a b  \r\nc\n\n\n")
    assert not right(b"a  b\nc") and not right(b"a b c") and not right(b"\na b\nc") and not right(b"\xff")
    assert Dialogue("", "").right(b"\n") and not Dialogue("", "").right(b"x")


# ---- what a program can't do ----

WRONG = "def add(a, b):\n    return 0\n"
FAKES = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit at the first call": "def add(a, b):\n    raise SystemExit(0)",
    "_exit at the first call": "def add(a, b):\n    import os\n    os._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "an object that equals everything":
        "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "a number that equals everything":
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b): return Any(0)",
    "magic words": "print('passed', 'OK', 'end', flush=True)\n" + WRONG,
    "a forged end": "import os\nos.write(4, b'end ' + b'0' * 32 + b'\\n')\n" + WRONG,
    "a forged end and exit": "import os\nos.write(4, b'see 0 [\"i\",\"0\"]\\nend ' + b'0' * 32 + b'\\n')\nos._exit(0)",
    "a guessed observation": "import os\nos.write(4, b'see 0 [\"i\",\"0\"]\\n')\nos._exit(0)",
    "no AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit\n" + WRONG,
    "patched builtins": "import builtins\nbuiltins.compile = builtins.exec = lambda *a, **k: None\n" + WRONG,
    "patched os": "import os\nos.write = lambda *a: 99\n" + WRONG,
    "a trace function": "import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(SystemExit(0)))\n" + WRONG,
    "the driver's module":
        "import __main__\nfor name in list(vars(__main__)): setattr(__main__, name, lambda *a: 0)\n" + WRONG,
    "a thread that forges":
        "import threading, os\n"
        "threading.Thread(target=lambda: [os.write(4, b'end 1\\n') for _ in range(9)]).start()\n" + WRONG,
    "closed descriptors": "import os\nos.closerange(0, 99)\n" + WRONG,
    "the secret itself": "import os\nrest = os.read(3, 9999)\nos.write(4, b'end ' + rest[-32:] + b'\\n')\nos._exit(0)",
    "endless output": "while True: print('x' * 9999)",
    "a syntax error": "def add(a, b) return 3",
    "NUL bytes": "x = '\x00'\n" + WRONG,
    "surrogates": "x = '\ud800'\n" + WRONG,
    "a recursion without end": "def add(a, b): return add(a, b)",
    "nesting that no parser takes": "x = " + "(" * 100_000,
    "a very long source": "x = 1\n" * 200_000 + WRONG,
    "memory": "x = bytearray(10**11)\n" + WRONG,
}  # fmt: skip


def test_faked_passes(make):
    """None passes; nobody but the program suffers; the right program beside them passes."""
    reward = make()
    threads = threading.active_count()
    reply = call(reward, [*FAKES.values(), ADD], tests=["assert add(1, 2) == 3"])
    got = dict(zip([*FAKES, "right"], reply.values, strict=True))
    assert got == {**dict.fromkeys(FAKES, 0.0), "right": 1.0}
    ends = {name: note["why"].split(": ")[1] for name, note in zip(FAKES, reply.extras["code"], strict=False)}
    told = {"endless output": "output", "a syntax error": "syntax", "NUL bytes": "syntax", "memory": "memory"}
    assert {name: ends[name] for name in told} == told or ends["NUL bytes"] == "error"
    json.dumps(reply.extras["code"])
    assert threading.active_count() == threads
    assert call(reward, [ADD], tests=ADD_TESTS).values == [1.0]


def test_asserts_inside_see_the_real_builtins(make):
    """Names of the program that hide built-in functions don't reach a test that it might deceive with them."""
    liar = "def abs(x): return 0\ndef add(a, b): return 7\n"
    assert score(make(), liar, "assert abs(add(1, 2) - 3) + 0 < 1e-6")[0] == 0.0
    patched = "import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b): return 7\n"
    assert score(make(), patched, "assert abs(add(1, 2) - 3) + 0 < 1e-6")[0] == 0.0
    # but a task may ask for such a name, when the values are decided outside or the entry point says so
    assert score(make(), "def sum(a, b): return a + b", "assert sum(1, 2) == 3")[0] == 1.0
    assert score(make(), "def sum(a, b): return a + b", "assert 2 < sum(1, 2) < 4", entry_point="sum")[0] == 1.0


def test_what_can_still_be_faked(make):
    """As the documentation says: an assert that only the program's own interpreter judges, by a program that reads the
    driver's secret. With a value to be observed the same program fails."""
    thief = "import os\nos.write(4, b'end ' + os.read(3, 9999)[-32:] + b'\\n')\nos._exit(0)"
    assert score(make(), thief, "assert add(1, 2) > 2")[0] == 1.0
    assert score(make(), thief, "assert add(1, 2) == 3")[0] == 0.0


def test_a_test_that_exits_early_is_no_pass(make):
    quitter = "import os\ndef add(a, b):\n    if a == 1: return 3\n    os._exit(0)\n"
    assert score(make(), quitter, "assert add(1, 2) == 3\nassert add(2, 2) == 4")[0] == 0.0


# ---- scores, notes, numbers ----


def test_partial_and_all_or_nothing(make):
    tests = [*ADD_TESTS, "assert add(1, 1) == 3"]
    assert score(make(), ADD, tests)[0] == pytest.approx(2 / 3)
    value, note = score(make(partial=False), ADD, tests)
    assert value == 0.0 and note == {
        "passed": 2,
        "tests": 3,
        "why": "test 3: wrong: observation 1 is not what it must be",
    }
    assert score(make(partial=False), ADD, ADD_TESTS)[0] == 1.0


def test_notes_and_counts(make):
    programs = [ADD, "def add(a, b): return 1 / 0", "x = 1\n\x1b[31m = 2", "def add(a, b): return [0] * 10**12"]
    reply = call(make(), programs, tests="assert add(1, 2) == 3")
    whys = [note["why"] for note in reply.extras["code"]]
    assert whys[0] == "" and whys[1] == "test 1: error: ZeroDivisionError: division by zero"
    assert whys[2].startswith("test 1: syntax: SyntaxError: invalid") and "\x1b" not in whys[2]
    assert whys[3].startswith("test 1: memory: MemoryError")
    metrics = {name: values[0] for name, values in reply.metrics.items()}
    assert metrics == {
        "code_no_program": 0, "code_tests": 4, "code_passed": 1, "code_wrong": 0, "code_error": 1, "code_syntax": 1,
        "code_time": 0, "code_memory": 1, "code_output": 0, "code_killed": 0,
    }  # fmt: skip


def test_two_hangs_settle_a_row(make):
    """The third test is not waited for; what the order of the tests says is what counts."""
    reward = make(seconds=1)
    program = "import time\ndef f(n):\n    while n != 1: time.sleep(9)\n    return 1\n"
    tests = ["assert f(0) == 1", "assert f(1) == 1", "assert f(2) == 1", "assert f(1) == 1", "assert f(3) == 1"]
    value, note = score(reward, program, tests)
    assert value == 1 / 5 and note["passed"] == 1 and note["why"].startswith("test 1: time: ended after ")


def test_rows_without_tests_have_no_value(make):
    reply = call(make(), [ADD], tests=None)
    assert reply.values == [None] and reply.extras["code"] == [None] and reply.metrics == {}
    assert call(make(), [ADD], tests=float("nan")).values == [None]


def test_missing_columns():
    batch = Batch(["q"], ["x"], [[1]], {"test": ["assert 1"]}, TrainerState(0, 1))
    failure = Caller(CodeReward(), {})(batch)
    assert isinstance(failure, Failure) and "needs the column 'tests'" in failure.message
    batch = Batch(["q"], ["x"], [[1]], {"tests": ["assert 1"]}, TrainerState(0, 1))
    failure = Caller(CodeReward(setup="imports"), {})(batch)
    assert isinstance(failure, Failure) and "needs the column 'imports'" in failure.message


def test_the_batch_ends_within_its_timeout(make):
    reward = make(seconds=2, memory=256).within(1.5)
    reply = call(reward, ["while True: pass", ADD], tests=["assert add(1, 2) == 3"])
    assert reply.values[1] in (1.0, None) and reply.values[0] is None
    assert "within the reward's timeout of 1.5 s; raise timeout or workers, or lower seconds" in reply.bad[0]


def test_a_whole_set_of_rewards():
    """Rows, a worker process, an error that names the row, and on_error: skip."""
    groups = [
        group([block(ADD), "none"], tests=ADD_TESTS),
        group([block("print(input())")], tests=[{"input": "1", "output": "1"}]),
    ]
    with build_rewards([RewardConfig(name="code", args={"workers": 2})]) as rewards:
        assert "programs behind" in rewards.describe()[0] and "limits" in rewards.describe()[0]
        scored = rewards.score(groups, 0, 1)
        assert [c.score for g in scored.groups for c in g.completions] == [1.0, 0.0, 1.0]
        assert scored.metrics["logged/code_passed"] == 3 and scored.metrics["logged/code_no_program"] == 1
        assert scored.extras[0]["code"] == {"passed": 2, "tests": 2, "why": ""}
        with pytest.raises(
            RewardError,
            match=r"rows.jsonl:7, completion 1 of 1: it can't run its tests: those in the column 'tests' are empty",
        ):
            rewards.score([group([block(ADD)], where="rows.jsonl:7", tests=[])], 0, 1)
    with build_rewards([RewardConfig(name="code", on_error="skip", args={"workers": 1})]) as rewards:
        scored = rewards.score([group([block(ADD)], tests=[]), group([block(ADD)], tests=ADD_TESTS)], 0, 1)
        assert [c.score for g in scored.groups for c in g.completions] == [None, 1.0] and scored.skipped == 1


def test_in_a_recipe():
    recipe = {
        "method": "grpo", "model": {"path": "m"}, "data": {"path": "d.jsonl"}, "train": {"steps": 1},
        "rewards": [{"name": "code", "timeout": 60, "args": {"tests": "test_list", "seconds": 2, "partial": False}}],
    }  # fmt: skip
    (stage,) = resolve(recipe).stages
    (config,) = stage.rewards
    with build_rewards([config]) as rewards:
        assert rewards.names == ("code",)
    with pytest.raises(UsageError, match="did you mean 'seconds'"):
        build_rewards([RewardConfig(name="code", args={"second": 2})])
    with pytest.raises(UsageError, match="at least 1 second"):
        build_rewards([RewardConfig(name="code", args={"seconds": 0})])
    with pytest.raises(UsageError, match="workers is at least 1"):
        build_rewards([RewardConfig(name="code", args={"workers": 0})])


@pytest.mark.parametrize(
    ("require", "layers", "fine"),
    [
        ("auto", Layers(), True),
        ("isolated", Layers(), False),
        ("isolated", Layers(filter=True, landlock=True), True),
        ("isolated", Layers("root", True), False),
        ("namespaces", Layers(filter=True, landlock=True), False),
        ("namespaces", Layers("user", filter=True), True),
    ],
)
def test_require(monkeypatch, require, layers, fine):
    monkeypatch.setattr(code_module, "available", lambda: layers)
    if fine:
        build_rewards([RewardConfig(name="code", args={"require": require})]).close()
        return
    with pytest.raises(RewardError, match=f"require: {require}, which can't be had on this machine: .*limits"):
        build_rewards([RewardConfig(name="code", args={"require": require})])


def test_further_processes_need_a_layer_that_tells_them_apart(monkeypatch):
    monkeypatch.setattr(code_module, "available", lambda: Layers(filter=True, landlock=True))
    with pytest.raises(RewardError, match="processes: 2, but programs can start none on this machine"):
        CodeReward(processes=2).layers()
    monkeypatch.setattr(code_module, "available", lambda: Layers("root", True, True))
    assert CodeReward(processes=2).layers().own_processes


def test_no_isolation_at_all_is_an_error_before_the_run(monkeypatch):
    def nothing():
        raise SandboxError("programs can't be isolated on Windows")

    monkeypatch.setattr(code_module, "available", nothing)
    with pytest.raises(RewardError, match="reward 'code': programs can't be isolated on Windows"):
        build_rewards([RewardConfig(name="code")])


def test_programs_may_start_processes_where_the_recipe_says(make):
    program = (
        "import os\ndef f():\n    if os.fork() == 0:\n        os._exit(5)\n"
        "    return os.waitstatus_to_exitcode(os.wait()[1])\n"
    )
    if make(processes=0).layers().own_processes:
        assert score(make(processes=1), program, "assert f() == 5")[0] == 1.0
    assert score(make(), program, "assert f() == 5")[0] == 0.0


def test_the_documentations_recipe_and_defaults(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "code-reward.md").read_text(encoding="utf-8")
    (block_of_page,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (stage,) = resolve(yaml.safe_load(block_of_page)).stages
    row = {"name": "a", "description": "Add.", "public_tests": {"input": ["1 2\n", "2 2\n"], "output": ["3\n", "4\n"]}}
    file = tmp_path / "contests.jsonl"
    file.write_text(json.dumps(row) + "\n")
    source = stage.data[0].model_copy(update={"path": str(file)})
    (example,) = load_examples([source], seed=0).examples
    with build_rewards(stage.rewards) as rewards:
        done = rewards.score([group([block("print(sum(map(int, input().split())))")], **example.columns)], 0, 1)
    assert done.groups[0].completions[0].score == 1.0
    for field in ("partial", "seconds", "memory", "disk", "output", "processes", "require"):
        (told,) = re.findall(rf"^\| `{field}` \| (\S+) \|", page, re.MULTILINE)
        assert told.strip("`") == str(getattr(CodeReward(), field)).lower()
