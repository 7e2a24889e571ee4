"""The rewards for reasoning, row by row of METHODS section 4, and the numbers that models write."""

from decimal import Decimal

import pytest

from preftune.rewards.builtins import make_builtin
from preftune.rewards.math import FIRST_NUMBER, final_answer, same_answer
from preftune.rewards.numbers import parse_number

END, OPEN, CLOSE = "<end_working_out>", "<SOLUTION>", "</SOLUTION>"


def value(name, text, answer=None, **args):
    return make_builtin(name, args)([text], answer=[answer])[0]


def solved(solution):
    return f"2 + 2 is 4{END}{OPEN}{solution}{CLOSE}"


# --- format, exact: 3.0 or 0 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (solved("4"), 3.0),
        (f"working{END}\n{OPEN}\n4\n{CLOSE}", 3.0),
        (f"{END} some words between {OPEN}4{CLOSE} \n\n", 3.0),
        (f"{END}{OPEN} {CLOSE}", 3.0),  # one character is enough
        (f"{END}{OPEN}{CLOSE}", 0.0),  # none is not
        (f"{OPEN}4{CLOSE}", 0.0),  # the working never ends
        (f"{OPEN}{END}4{CLOSE}", 0.0),  # in the wrong order
        (f"{END}{OPEN}4", 0.0),
        (f"{END}4{CLOSE}", 0.0),
        (f"{solved('4')} and more", 0.0),
        (f"{solved('4')}\nand another line", 0.0),  # the end is the text's, not a line's
        (f"{END}{END}{OPEN}4{CLOSE}", 3.0),  # repetition is what the approximate reward is for
        (f"{solved('4')}{CLOSE}", 3.0),
        ("", 0.0),
    ],
)
def test_format_exact(text, expected):
    assert value("reasoning-format-exact", text) == expected


def test_format_exact_is_the_authors_pattern():
    """Against the published regular expression (with the end of the text for the end of a line)."""
    import itertools
    import re

    pattern = re.compile(rf"{END}.*?{OPEN}(.+?){CLOSE}\s*(?:</s>)?\s*\Z", re.DOTALL)
    reward = make_builtin("reasoning-format-exact", {"eos": "</s>"})
    pieces = [END, OPEN, CLOSE, "4", " ", "</s>"]
    for size in range(1, 6):
        for chosen in itertools.product(pieces, repeat=size):
            text = "".join(chosen)
            match = pattern.search(text)
            assert reward.well_formed_solution(text) == (match and match.group(1)), text


def test_format_exact_eos_text():
    assert value("reasoning-format-exact", solved("4") + "<|end|>\n") == 0.0
    assert value("reasoning-format-exact", solved("4") + " <|end|>\n", eos="<|end|>") == 3.0


def test_own_tags():
    args = {"end_working": "</think>", "solution_open": "<answer>", "solution_close": "</answer>"}
    assert value("reasoning-format-exact", "hm</think><answer>4</answer>", **args) == 3.0
    assert value("reasoning-format-approx", "hm</think><answer>4</answer>", **args) == 1.5
    assert value("reasoning-answer", "hm</think><answer>4</answer>", "4", **args) == 5.0
    assert value("reasoning-number", "hm</think><answer>4</answer>", "4", **args) == 3.5


# --- format, approximate: three times +0.5 or −1.0 ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (solved("4"), 1.5),
        (f"{END}{OPEN}4", 0.0),  # 0.5 + 0.5 − 1
        (f"{END}", -1.5),
        ("", -3.0),
        (f"{END}{END}{OPEN}4{CLOSE}", 0.0),  # twice is as bad as never
        (f"{CLOSE}{OPEN}{END}", 1.5),  # order is the exact reward's matter
    ],
)
def test_format_approx(text, expected):
    assert value("reasoning-format-approx", text) == expected


# --- answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "truth", "expected"),
    [
        ("100", "100", 5.0),
        (" 100\n", "100", 3.5),
        ("100", " 100 ", 3.5),
        ("100.0", "100", 2.0),  # another text, ratio 1
        ("90", "100", 2.0),
        ("110", "100", 2.0),
        ("89.999", "100", 1.5),
        ("110.001", "100", 1.5),
        ("80", "100", 1.5),
        ("120", "100", 1.5),
        ("79.999", "100", -2.5),
        ("120.001", "100", -2.5),
        ("-100", "100", -2.5),
        ("-95", "-100", 2.0),
        ("a hundred", "100", -4.5),
        ("100 apples", "100", -4.5),
        ("7", "seven", -4.5),
        ("seven", "seven", 5.0),
        ("1,000", "1000", 2.0),  # thousands separators
        ("1000", "1,000", 2.0),
        ("1,00", "100", -4.5),
        ("0", "0", 5.0),
        ("0.0", "0", 2.0),  # no ratio to 0: exactly
        ("-0", "0", 2.0),
        ("0.0001", "0", -2.5),
        ("0", "5", -2.5),
        ("nan", "100", -4.5),
        ("inf", "100", -4.5),
        ("-Infinity", "100", -4.5),
        ("1e400", "100", -4.5),
        ("1e2", "100", 2.0),
        ("", "100", -2.0),  # not well formed
    ],
)
def test_answer(solution, truth, expected):
    assert value("reasoning-answer", solved(solution), truth) == expected


def test_answer_not_well_formed():
    assert value("reasoning-answer", f"{OPEN}100{CLOSE}", "100") == -2.0


def test_answer_column_of_numbers_lists_and_holes():
    assert value("reasoning-answer", solved("4"), 4) == 5.0
    assert value("reasoning-answer", solved("4"), ["four", "4"]) == 5.0
    assert value("reasoning-answer", solved("4"), None) is None
    assert value("reasoning-answer", solved("nan"), float("nan")) is None  # a hole in a table, not an answer


# --- number ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        (f"{OPEN}42{CLOSE}", "42", 3.5),
        (f"{OPEN}42", "42", 3.5),  # the closing tag is not needed
        (f"{OPEN}The answer is about 42 apples{CLOSE}", "42", 3.5),
        (f"{OPEN}It ends. 42{CLOSE}", "42", 3.5),  # a full stop is no number
        (f"{OPEN}42.{CLOSE}", "42", 3.5),
        (f"{OPEN}42,{CLOSE}", "42.0", 3.5),
        (f"{OPEN}-1,234.50{CLOSE}", "-1234.5", 3.5),
        (f"{OPEN}1,234{CLOSE}", "1,234", 3.5),
        (f"{OPEN}.5{CLOSE}", "0.5", 3.5),
        (f"{OPEN}0{CLOSE}", "0.00", 3.5),
        (f"{OPEN}41 or 42{CLOSE}", "42", -1.5),  # the first counts
        (f"{OPEN}10000000000000001{CLOSE}", "10000000000000000", -1.5),  # equal as floats
        (f"{OPEN}none{CLOSE} 42", "42", -2.5),
        (f"{OPEN}{CLOSE}", "42", -2.5),
        ("42", "42", -2.5),
        ("", "42", -2.5),
        (f"{OPEN}1.2.3{CLOSE}", "1.2", 0.0),
        (f"{OPEN}1,2{CLOSE}", "12", 0.0),  # not a thousands separator
        (f"{OPEN}1e400{CLOSE}", "1", 0.0),
        (f"{OPEN}42{CLOSE}", "forty-two", 0.0),
    ],
)
def test_number(text, truth, expected):
    assert value("reasoning-number", text, truth) == expected


def test_first_number_is_linear_in_the_text():
    assert FIRST_NUMBER.search("." * 200_000 + "-" * 200_000) is None  # would take hours if quadratic


# --- accuracy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        (solved(" 4 "), "4", 1.0),
        (solved("4.0"), "4", 1.0),
        (solved("1,000"), "1000", 1.0),
        (solved("Paris"), " Paris", 1.0),
        (solved("paris"), "Paris", 0.0),
        (solved("5"), "4", 0.0),
        (f"{OPEN}3{CLOSE}{OPEN}4{CLOSE}", "4", 1.0),  # the last is final
        (f"{OPEN}4{CLOSE}{OPEN}3{CLOSE}", "4", 0.0),
        (f"{CLOSE}{OPEN}4", "4", 0.0),
        (f"{OPEN}4{CLOSE} trailing", "4", 1.0),
        ("4", "4", 0.0),
        (solved("nan"), "4", 0.0),
        (solved("1e400"), "1e401", 0.0),  # both infinite as floats
        (solved("inf"), "1e400", 0.0),
        (solved("0"), "0", 1.0),
        (solved("1e-400"), "0", 0.0),  # zero as a float
        (solved("4"), ["3", "4"], 1.0),
        (solved("4"), None, None),
        (solved("4"), [], None),
    ],
)
def test_accuracy(text, truth, expected):
    assert value("accuracy", text, truth) == expected


def test_accuracy_with_a_pattern():
    assert value("accuracy", "#### 3 then #### 4", "4", extract=r"#### *(\S+)") == 1.0
    assert value("accuracy", "7 or 4", "4", extract=r"\d+") == 1.0
    assert value("accuracy", "none", "4", extract=r"\d+") == 0.0


def test_pattern_whose_group_took_no_part():
    assert final_answer("ab", "a(x)?", ("", "")) is None
    assert value("accuracy", "ab", "4", extract="a(x)?") == 0.0


def test_same_answer():
    assert same_answer("+4", "4.")
    assert not same_answer("4", "four")


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", "4"),
        (" -4.50 ", "-4.5"),
        ("+4", "4"),
        ("4.", "4"),
        (".5", "0.5"),
        ("1,234,567.5", "1234567.5"),
        ("1e5", "100000"),
        ("2.5E-1", "0.25"),
        ("1e308", "1e308"),
        ("1.1e308", None),
        ("1e400", None),
        ("1e9999999999", None),
        ("9" * 400, None),
        ("0." + "3" * 2000, None),
        ("1,23", None),
        ("1234,567", None),
        (",123", None),
        ("1_000", None),
        ("٣", None),
        ("１", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("1 2", None),
        ("--1", None),
        (".", None),
        ("", None),
    ],
)
def test_parse_number(text, expected):
    assert parse_number(text) == (None if expected is None else Decimal(expected))


# --- math-equal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        (r"so $\frac{1}{2}$", "0.5", 1.0),
        (r"so \boxed{\frac{10}{4}}", "5/2", 1.0),
        ("The answer is 1/2", r"\frac12", 1.0),
        (solved("4"), "4", 1.0),
        (solved("1,234"), "1234", 1.0),
        (solved("5 cm"), "5", 1.0),
        (r"\boxed{5\text{ cm}}", r"5\text{ cm}", 1.0),
        (solved("x + 1"), "1+x", 1.0),
        (r"$\{1, 2\}$", r"\{2, 1\}", 1.0),
        (solved("5"), "4", 0.0),
        (solved("nan"), "4", 0.0),
        (solved("inf"), "1e400", 0.0),
        (solved("1e400"), "1", 0.0),
        ("", "4", 0.0),
        (solved(""), "4", 0.0),
        ("$" * 51, "4", 0.0),
        (solved("4"), None, None),
        (solved("4"), "", None),
    ],
)
def test_math_equal(text, truth, expected):
    assert value("math-equal", text, truth) == expected


def test_math_equal_with_a_pattern():
    assert value("math-equal", "Final: 2/4. Not 7.", "1/2", extract=r"Final: ([^.]*)") == 1.0
    assert value("math-equal", "1/2", "1/2", extract=r"Final: ([^.]*)") == 0.0


def test_math_equal_gives_up_on_a_slow_row():
    reward = make_builtin("math-equal", {"row_timeout": 1})
    assert reward(["$9^{9^{9^9}}$", "$4$"], answer=["3", "4"]) == [0.0, 1.0]


def test_math_equal_outside_the_main_thread():
    """math-verify's own limit would raise there."""
    import threading

    values = []
    thread = threading.Thread(target=lambda: values.append(value("math-equal", "$4$", "4")))
    thread.start()
    thread.join()
    assert values == [1.0]
