"""Every way a reward can fail ends in an error that names reward and row, or in a row left out and counted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preftune.config import RewardConfig
from preftune.errors import RewardError, UsageError
from preftune.records import Completion, Group, Prompt
from preftune.rewards import build_rewards, isolation, settle

HERE = Path(__file__).parent


def group(texts, where="rows.jsonl:1", content="q", **columns):
    prompt = Prompt(ids=(1,), text="q", content=content, columns=columns, where=where)
    return Group(prompt, tuple(Completion(ids=(1, 2), mask=(True, True), text=text) for text in texts))


def rows_with_bomb(at=17, rows=20):
    """One completion per prompt of rows.jsonl:1 … 20; that of row `at` makes the reward fail."""
    return [group(["bomb" if row == at else "fine"], where=f"rows.jsonl:{row}") for row in range(1, rows + 1)]


def own(function, **fields):
    return RewardConfig(name=f"functions_for_tests.py:{function}", **fields)


def build(*configs, functions=()):
    return build_rewards(configs, functions, base_dir=HERE)


FAILURES = {
    "raises": "raised ValueError: can't read 'bomb'",
    "crashes": "ended its process (exit code 3)",
    "is_killed": "ended its process (signal SIGSEGV)",
    "exits": "raised SystemExit: 4",
    "nan": "returned nan",
    "infinite": "returned an infinite number",
    "huge_integer": "returned an infinite number",
    "word": "returned a str instead of a number or None",
    "drops_rows": "returned 0 values for 1 completions",
    "one_too_many": "returned 2 values for 1 completions",
    "scalar": "returned a float instead of a list of 1 numbers",
    "nothing": "returned None instead of a list of 1 numbers",
}
EVERY_ROW = {"one_too_many", "scalar", "nothing"}


@pytest.mark.parametrize("function", FAILURES)
def test_failure_names_reward_and_row(function):
    row = 1 if function in EVERY_ROW else 17
    with build(own(function)) as rewards, pytest.raises(RewardError) as caught:
        rewards.score(rows_with_bomb(), step=0, total_steps=1)
    message = str(caught.value)
    assert f"reward '{function}' failed on rows.jsonl:{row}, completion 1 of 1" in message
    assert FAILURES[function] in message
    assert "on_error: skip" in message


def test_raising_names_the_line_of_the_users_code():
    with build(own("raises")) as rewards, pytest.raises(RewardError, match=r"functions_for_tests\.py:16 in raises"):
        rewards.score([group(["bomb"])], 0, 1)


@pytest.mark.parametrize("function", sorted(set(FAILURES) - EVERY_ROW))
def test_skip_leaves_the_row_out_and_keeps_the_others(function):
    with build(own(function, on_error="skip"), RewardConfig(name="exact")) as rewards:
        groups = [group(["fine", "bomb", "fine"], answer="bomb")]
        scored = rewards.score(groups, 0, 1)
        again = rewards.score([group(["fine"], answer="fine")], 0, 1)
    assert [c.breakdown for c in scored.groups[0].completions] == [
        {function: 1.0, "exact": 0.0},
        {function: None, "exact": 1.0},
        {function: 1.0, "exact": 0.0},
    ]
    assert scored.groups[0].scores == (1.0, 1.0, 1.0)
    assert scored.skipped == 1
    assert scored.unscored == 0
    assert scored.metrics[f"reward_left_out/{function}"] == pytest.approx(1 / 3)
    assert again.groups[0].scores == (2.0,)  # a fresh worker, where the old one died


def test_hang_in_a_process_names_the_row():
    with build(own("hangs", timeout=1.0)) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["fine", "bomb"], where="rows.jsonl:17")], 0, 1)
    assert "reward 'hangs' failed on rows.jsonl:17, completion 2 of 2: it did not return within 1 s" in str(
        caught.value
    )


def test_hang_in_a_process_skipped():
    with build(own("hangs", timeout=1.0, on_error="skip")) as rewards:
        scored = rewards.score([group(["fine", "bomb", "fine"])], 0, 1)
        after = rewards.score([group(["fine"])], 0, 1)
    assert [c.score for c in scored.groups[0].completions] == [1.0, None, 1.0]
    assert (scored.skipped, scored.unscored) == (1, 1)
    assert [len(g.completions) for g in scored.usable] == [2]
    assert after.groups[0].scores == (1.0,)


def test_search_for_hanging_rows_is_bounded(monkeypatch):
    monkeypatch.setattr(settle, "SEARCH_TIMEOUTS", 1)
    with build(own("hangs", timeout=0.5, on_error="skip")) as rewards:
        scored = rewards.score([group(["bomb", "fine"])], 0, 1)  # the first row takes all the time
    assert [c.score for c in scored.groups[0].completions] == [None, None]
    assert scored.skipped == 2


def test_hang_inline_is_reported_by_the_watchdog_for_the_batch():
    with build(own("hangs", timeout=0.3, isolate="inline")) as rewards:
        with pytest.raises(RewardError) as caught:
            rewards.score([group(["fine", "bomb"])], 0, 1)
        after = rewards.score([group(["fine"])], 0, 1)  # in a new thread
    assert "reward 'hangs' failed on the 2 rows from rows.jsonl:1, completion 1 of 2 to" in str(caught.value)
    assert "it did not return within 0.3 s" in str(caught.value)
    assert after.groups[0].scores == (1.0,)


def test_hang_inline_skipped_leaves_the_whole_batch_out():
    with build(own("hangs", timeout=0.3, on_error="skip", isolate="inline"), RewardConfig(name="exact")) as rewards:
        scored = rewards.score([group(["fine", "bomb"], answer="fine")], 0, 1)
    assert [c.breakdown["hangs"] for c in scored.groups[0].completions] == [None, None]
    assert [c.score for c in scored.groups[0].completions] == [1.0, 0.0]
    assert scored.skipped == 2


def test_inline_raise_names_the_row():
    def raises_inline(completions):
        if "bomb" in completions:
            raise KeyError("no such thing")
        return [0.0] * len(completions)

    with build(functions=[raises_inline]) as rewards, pytest.raises(RewardError) as caught:
        rewards.score(rows_with_bomb(), 0, 1)
    assert "reward 'raises_inline' failed on rows.jsonl:17, completion 1 of 1: it raised KeyError" in str(caught.value)


def test_batch_that_fails_only_as_a_whole_is_an_error_naming_the_batch():
    with build(own("batch_of_one_only")) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["a", "b"])], 0, 1)
    assert "on the 2 rows from rows.jsonl:1, completion 1 of 2 to rows.jsonl:1, completion 2 of 2" in str(caught.value)
    assert "one at a time, please" in str(caught.value)
    assert "failed on none of them" in str(caught.value)


def test_batch_that_fails_only_as_a_whole_keeps_its_rows_under_skip_and_says_so():
    with build(own("batch_of_one_only", on_error="skip")) as rewards:
        scored = rewards.score([group(["a", "b"])], 0, 1)
    assert scored.groups[0].scores == (2.0, 2.0)
    assert scored.skipped == 0
    assert scored.metrics["reward_row_by_row/batch_of_one_only"] == 1.0


def test_missing_column_is_an_error_even_under_skip():
    with build(own("wants_color", on_error="skip")) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["red"], colour="red")], 0, 1)
    message = str(caught.value)
    assert "reward 'wants_color' needs an argument 'color', but the data has only colour" in message
    assert "did you mean 'colour'?" in message


def test_builtin_names_the_missing_column():
    with build(RewardConfig(name="exact", args={"column": "anwser"})) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["4"], answer="4")], 0, 1)
    assert "reward 'exact' needs the column 'anwser', but the data has only answer (did you mean 'answer'?)" in str(
        caught.value
    )


def test_argument_that_the_function_does_not_take():
    config = own("scaled", args={"facto": 2})
    with build(config) as rewards, pytest.raises(RewardError, match=r"reward 'scaled' takes no argument 'facto'"):
        rewards.score([group(["abc"])], 0, 1)


def test_column_with_a_reserved_name():
    with build(own("good")) as rewards, pytest.raises(RewardError, match=r"column 'prompts'.*rename it under"):
        rewards.score([group(["a"], prompts="x")], 0, 1)


def test_extra_that_cannot_leave_its_process():
    with build(own("unpicklable_extra")) as rewards, pytest.raises(RewardError, match="can't leave its process"):
        rewards.score([group(["a"])], 0, 1)


def test_column_that_cannot_enter_a_process():
    with build(own("good")) as rewards, pytest.raises(RewardError, match=r"can't be sent.*isolate: inline"):
        rewards.score([group(["a"], callback=lambda: 0)], 0, 1)


def test_module_that_fails_to_import(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\ndef f(completions):\n    return [0.0]\n")
    config = RewardConfig(name="broken.py:f")
    with build_rewards([config], base_dir=tmp_path) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["a"])], 0, 1)
    assert "reward 'f' can't be imported: it raised ModuleNotFoundError: No module named 'no_such_module'" in str(
        caught.value
    )
    with pytest.raises(UsageError, match="can't be imported: it raised ModuleNotFoundError"):
        build_rewards([config.model_copy(update={"isolate": "inline"})], base_dir=tmp_path)


def test_module_that_ends_the_process_when_imported(tmp_path):
    (tmp_path / "dies.py").write_text("import os\nos._exit(5)\ndef f(completions):\n    return [0.0]\n")
    config = RewardConfig(name="dies.py:f")
    with (
        build_rewards([config], base_dir=tmp_path) as rewards,
        pytest.raises(RewardError, match=r"\(exit code 5\) while it was"),
    ):
        rewards.score([group(["a"])], 0, 1)


def test_module_that_hangs_when_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "START_SECONDS", 1.0)
    (tmp_path / "sleepy.py").write_text("import time\ntime.sleep(60)\ndef f(completions):\n    return [0.0]\n")
    config = RewardConfig(name="sleepy.py:f")
    with build_rewards([config], base_dir=tmp_path) as rewards, pytest.raises(RewardError, match="did not import it"):
        rewards.score([group(["a"])], 0, 1)


def test_interrupt_leaves_no_stale_answer(monkeypatch):
    """Ctrl-C while a worker is busy: the next batch must not be answered with the last one's values."""
    with build(own("good")) as rewards:
        rewards.score([group(["a"])], 0, 1)
        lane = rewards._rewards[0].lane

        def interrupted(self, timeout):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(lane), "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rewards.score([group(["abcdef"])], 0, 1)
        assert rewards.score([group(["abc"])], 0, 1).groups[0].scores == (3.0,)


def test_worker_is_kept_and_replaced_only_when_it_died():
    with build(own("process_id"), own("crashes", on_error="skip")) as rewards:
        first = rewards.score([group(["fine"])], 0, 1).metrics["logged/pid"]
        second = rewards.score([group(["bomb"])], 0, 1).metrics["logged/pid"]
    assert first == second


def test_no_reward_applies_to_a_row():
    def never(completions):
        return [None] * len(completions)

    with (
        build(functions=[never]) as rewards,
        pytest.raises(RewardError, match=r"no reward applies to rows\.jsonl:1, c"),
    ):
        rewards.score([group(["a"])], 0, 1)


def test_no_reward_applies_to_a_row_under_skip():
    with build(RewardConfig(name="exact", on_error="skip")) as rewards:
        scored = rewards.score([group(["a"], answer=None), group(["b"], answer="b")], 0, 1)
    assert [[c.score for c in g.completions] for g in scored.groups] == [[None], [1.0]]
    assert (scored.skipped, scored.unscored) == (0, 1)
    assert len(scored.usable) == 1


def test_catastrophic_pattern_of_the_users_is_stopped():
    config = RewardConfig(name="regex", args={"pattern": r"^(a+)+$"}, timeout=1.0)
    with build(config) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([group(["aaa", "a" * 60 + "b"])], 0, 1)
    assert "reward 'regex' failed on rows.jsonl:1, completion 2 of 2: it did not return within 1 s" in str(caught.value)


def test_text_that_hangs_the_verifier_scores_zero_and_is_counted():
    """math-equal blames the text, not the reward, even where math-verify's own limit does not act."""
    config = RewardConfig(name="math-equal", timeout=1.5, args={"row_timeout": 1000})
    with build(config) as rewards:
        scored = rewards.score([group(["$9^{9^{9^9}}$", "$4$"], answer="4")], 0, 1)
    assert scored.groups[0].scores == (0.0, 1.0)
    assert scored.metrics["reward_hung/math-equal"] == 1.0
    assert scored.skipped == 0


def test_workers_end_with_close():
    rewards = build(own("good"))
    rewards.score([group(["a"])], 0, 1)
    process = rewards._rewards[0].lane._process
    rewards.close()
    rewards.close()
    assert process.poll() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_worker_ends_when_the_trainer_is_killed(tmp_path):
    """kill -9 of the trainer: the worker sees its pipe close."""
    script = tmp_path / "trainer.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(HERE.parent.parent)!r})\n"
        "from pathlib import Path\nfrom preftune.config import RewardConfig\n"
        "from preftune.rewards import build_rewards\nfrom preftune.records import Completion, Group, Prompt\n"
        f"rs = build_rewards([RewardConfig(name='functions_for_tests.py:process_id')], base_dir=Path({str(HERE)!r}))\n"
        "s = rs.score([Group(Prompt((1,), 'q', 'q'), (Completion((1,), (True,), 'a'),))], 0, 1)\n"
        "print(int(s.metrics['logged/pid']), flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as trainer:
        worker = int(trainer.stdout.readline())
        os.kill(worker, 0)  # it is there
        trainer.send_signal(signal.SIGKILL)
    for _ in range(200):
        try:
            with open(f"/proc/{worker}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return  # ended, waiting for a parent to notice
            time.sleep(0.05)
        except FileNotFoundError:
            return
    pytest.fail("the worker outlived the trainer")
