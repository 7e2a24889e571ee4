"""What a RewardSet does with rewards that work: TRL's signature, weights, names, order, where each runs."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from preftune.config import RewardConfig
from preftune.errors import RewardError, UsageError
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards import BUILTINS, TrainerState, build_rewards
from preftune.rewards.base import make_batch

HERE = Path(__file__).parent


def group(texts, where="rows.jsonl:1", content="q", **columns):
    prompt = Prompt(ids=(1,), text="rendered", content=content, columns=columns, where=where)
    return Group(prompt, tuple(Completion(ids=(7,) * n, mask=(True,) * n, text=t) for n, t in enumerate(texts, 1)))


def own(function, **fields):
    return RewardConfig(name=f"functions_for_tests.py:{function}", **fields)


def score(groups, *configs, functions=(), step=0, total_steps=1):
    with build_rewards(configs, functions, base_dir=HERE) as rewards:
        return rewards.score(groups, step, total_steps)


# --- TRL's signature -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", ["process", "inline"])
def test_trl_reward_unchanged(isolate):
    groups = [group(["it is 4", "it is 5"], answer="4"), group(["so 9"], answer=None, where="rows.jsonl:2")]
    always = RewardConfig(name="length", args={"at_most": 100})
    scored = score(groups, own("trl_style", isolate=isolate), always, step=3, total_steps=12)
    assert [c.breakdown["trl_style"] for g in scored.groups for c in g.completions] == [1.0, 0.0, None]
    assert [g.scores for g in scored.groups] == [(2.0, 1.0), (1.0,)]
    assert scored.extras == ({"got": "4", "ids": 1}, {"got": "5", "ids": 2}, {"got": "9", "ids": 1})
    assert scored.metrics["logged/progress"] == 0.25


def test_none_is_left_out_of_its_rows_sum_only():
    def odd_only(completions):
        return [2.0 if len(text) % 2 else None for text in completions]

    scored = score([group(["a", "bb"])], own("good", weight=10.0), functions=[odd_only])
    assert scored.groups[0].scores == (12.0, 20.0)
    assert scored.groups[0].completions[1].breakdown == {"good": 2.0, "odd_only": None}
    assert scored.metrics["reward/odd_only"] == 2.0
    assert scored.metrics["reward_left_out/odd_only"] == 0.5
    assert scored.skipped == 0  # not applicable is no failure


@pytest.mark.parametrize("isolate", ["process", "inline"])
def test_async_reward(isolate):
    scored = score([group(["a", "b"], content="four")], own("async_style", isolate=isolate))
    assert scored.groups[0].scores == (4.0, 4.0)


def test_async_inline_keeps_one_event_loop():
    """An HTTP client made in the first call must still work in the second."""
    loops = []

    async def remembers(completions):
        loops.append(asyncio.get_running_loop())
        return [1.0] * len(completions)

    with build_rewards([], [remembers]) as rewards:
        rewards.score([group(["a"])], 0, 1)
        rewards.score([group(["a"])], 1, 1)
    assert loops[0] is loops[1]


def test_async_inline_rewards_run_at_the_same_time():
    """Each waits for the other, so that one after the other could never end."""
    barrier = threading.Barrier(2, timeout=20)

    async def one(completions):
        barrier.wait()
        return [1.0] * len(completions)

    async def two(completions):
        barrier.wait()
        return [2.0] * len(completions)

    assert score([group(["a"])], functions=[one, two]).groups[0].scores == (3.0,)


@pytest.mark.parametrize("isolate", ["process", "inline"])
def test_conversation(isolate):
    content = (Message("system", "Be short."), Message("user", "Hi"))
    scored = score([group(["Hello", "Yo"], content=content)], own("conversation", isolate=isolate))
    assert scored.groups[0].scores == (5.0, 2.0)


def test_batch_layout():
    groups = [group(["a", "b"], answer="1"), group(["c"], field="x", content="")]
    batch = make_batch(groups, TrainerState(1, 2))
    assert batch.prompts == ["q", "q", "rendered"]  # without plain content, the rendered text
    assert batch.completions == ["a", "b", "c"]
    assert batch.completion_ids == [[7], [7, 7], [7]]
    assert batch.columns == {"answer": ["1", "1", None], "field": [None, None, "x"]}


def test_function_gets_only_the_arguments_it_names():
    assert score([group(["red", "blue"], color="red", other=1)], own("wants_color")).groups[0].scores == (1.0, 0.0)


def test_recipe_args_reach_the_function():
    assert score([group(["abc"], answer="x")], own("scaled", args={"factor": 2})).groups[0].scores == (6.0,)


@pytest.mark.parametrize(
    "value",
    [
        [True, 2],
        (1, 2.0),
        np.array([1.0, 2.0], dtype=np.float32),
        [np.float32(1), np.int64(2)],
        torch.tensor([1.0, 2.0]),
        [torch.tensor(1.0), torch.tensor(2.0)],
    ],
    ids=["bools", "tuple", "array", "numpy scalars", "tensor", "tensor scalars"],
)
def test_what_counts_as_a_list_of_numbers(value):
    def constant(completions):
        return value

    assert score([group(["a", "b"])], functions=[constant]).groups[0].scores == (1.0, 2.0)


def test_log_extra_may_come_in_pieces_and_log_metric_is_averaged():
    def logs(completions, log_extra, log_metric):
        for text in completions:
            log_extra("upper", [text.upper()])
            log_metric("length", len(text))
        return [0.0] * len(completions)

    scored = score([group(["a", "bbb"])], functions=[logs])
    assert scored.extras == ({"upper": "A"}, {"upper": "BBB"})
    assert scored.metrics["logged/length"] == 2.0


# --- Sums, names, order ----------------------------------------------------------------------------------------


def test_weighted_sum_breakdown_and_metrics():
    configs = [
        RewardConfig(name="exact", weight=3.0),
        RewardConfig(name="length", weight=-0.5, args={"at_most": 1}),
        RewardConfig(name="exact", weight=0.0, args={"column": "other"}),
    ]
    scored = score([group(["4", "5"], answer="4", other="5")], *configs)
    first, second = scored.groups[0].completions
    assert first.breakdown == {"exact": 1.0, "length": 1.0, "exact-2": 0.0}
    assert second.breakdown == {"exact": 0.0, "length": 0.0, "exact-2": 1.0}
    assert scored.groups[0].scores == (2.5, 0.0)  # a weight of 0 only measures
    assert scored.metrics == {
        "reward/exact": 0.5,
        "reward/length": 0.5,
        "reward/exact-2": 0.5,
    }


def test_scoring_changes_nothing_else_of_a_completion():
    before = group(["4"], answer="4")
    after = score([before], RewardConfig(name="exact")).groups[0]
    assert after.prompt is before.prompt
    assert before.completions[0].score is None
    assert (after.completions[0].ids, after.completions[0].text) == (before.completions[0].ids, "4")


@pytest.mark.parametrize(("slow_first", "slow_second"), [(0.3, 0.0), (0.0, 0.3)])
def test_results_do_not_depend_on_which_reward_finished_first(slow_first, slow_second):
    configs = [
        own("first_to_log", args={"first_delay": slow_first}),
        own("second_to_log", args={"second_delay": slow_second}),
    ]
    scored = score([group(["a", "b"])], *configs)
    assert list(scored.groups[0].completions[0].breakdown.items()) == [("first_to_log", 0.1), ("second_to_log", 0.2)]
    assert scored.groups[0].scores == (0.1 + 0.2,) * 2
    assert scored.extras == ({"who": "first", "second_to_log/who": "second"},) * 2
    assert scored.metrics["logged/shared"] == 2.0


def test_the_first_reward_in_the_recipe_is_blamed_whichever_failed_first():
    for order in (["crashes", "raises"], ["raises", "crashes"]):
        with pytest.raises(RewardError, match=f"reward '{order[0]}' failed"):
            score([group(["bomb"])], *(own(name) for name in order))


def test_groups_of_different_sizes_and_none_at_all():
    scored = score([group(["a"]), group([]), group(["bb", "ccc"])], own("good"))
    assert [g.scores for g in scored.groups] == [(1.0,), (), (2.0, 3.0)]
    empty = score([], own("good"))
    assert (empty.groups, empty.metrics, empty.extras, empty.skipped) == ((), {}, (), 0)


def test_without_rewards_nothing_is_scored():
    scored = score([group(["a"])])
    assert scored.groups[0].completions[0].score is None
    assert scored.unscored == 1


def test_sum_beyond_single_precision():
    def large(completions):
        return [2e38] * len(completions)

    with pytest.raises(RewardError, match=r"weighted sum of rewards on rows\.jsonl:1, completion 1 of 1 is 4e\+38"):
        score([group(["a"])], functions=[large, large])
    with pytest.raises(RewardError, match=r"returned 1e\+39, which is infinite in the single precision"):
        score([group(["a"])], functions=[lambda completions: [1e39]])


def test_reward_named_as_a_metric_of_the_loop():
    def mean(completions):
        return [1.0] * len(completions)

    scored = score([group(["a"])], functions=[mean, mean])
    assert scored.groups[0].completions[0].breakdown == {"mean-2": 1.0, "mean-3": 1.0}


# --- Where rewards come from and where they run ----------------------------------------------------------------


def test_describe_says_where_each_runs():
    def closure(completions):
        return [0.0] * len(completions)

    configs = [RewardConfig(name="exact"), RewardConfig(name="regex", weight=2, args={"pattern": "a"}), own("good")]
    with build_rewards(configs, [closure], base_dir=HERE) as rewards:
        assert rewards.describe() == [
            "exact (weight 1): directly in the trainer (a built-in that can't hang)",
            "regex (weight 2): isolated in a worker process",
            "good (weight 1): isolated in a worker process",
            "closure (weight 1): inline in the trainer, under a watchdog",
        ]


def test_isolate_overrides():
    configs = [RewardConfig(name="exact", isolate="process"), own("good", isolate="inline")]
    with build_rewards(configs, base_dir=HERE) as rewards:
        assert "worker process" in rewards.describe()[0]
        assert "inline" in rewards.describe()[1]
        scored = rewards.score([group(["a"], answer="a")], 0, 1)
    assert scored.groups[0].scores == (2.0,)


def test_accuracy_needs_a_process_only_with_a_pattern_of_the_users():
    plain, custom = RewardConfig(name="accuracy"), RewardConfig(name="accuracy", args={"extract": "=(.*)"})
    with build_rewards([plain, custom]) as rewards:
        assert "directly" in rewards.describe()[0]
        assert "worker process" in rewards.describe()[1]
        scored = rewards.score([group(["1+1=2"], answer="2")], 0, 1)
    assert scored.groups[0].completions[0].breakdown == {"accuracy": 0.0, "accuracy-2": 1.0}


def test_importable_callable_runs_in_a_process(tmp_path, monkeypatch):
    (tmp_path / "user_module_of_rewards.py").write_text(
        "import os\nclass Rewards:\n"
        "    def where(completions, log_metric):\n"
        "        log_metric('pid', os.getpid())\n        return [1.0] * len(completions)\n"
        "def count(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import user_module_of_rewards as module

    scored = score([group(["abc"])], functions=[module.count, module.Rewards.where])
    assert scored.groups[0].completions[0].breakdown == {"count": 3.0, "where": 1.0}
    assert scored.metrics["logged/pid"] != os.getpid()
    renamed = module.count
    monkeypatch.setattr(module, "count", lambda completions: [0.0])  # the name leads elsewhere now
    with build_rewards([], [renamed]) as rewards:
        assert "inline" in rewards.describe()[0]


def test_function_of_the_main_script_runs_inline(tmp_path):
    """Importing the main script in a worker would run the whole script again."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE.parent.parent)!r})\n"
        "from preftune.records import Completion, Group, Prompt\nfrom preftune.rewards import build_rewards\n"
        "def mine(completions):\n    return [float(len(c)) for c in completions]\n"
        "rewards = build_rewards([], [mine])\n"
        "scored = rewards.score([Group(Prompt((1,), 'q', 'q'), (Completion((1,), (True,), 'abc'),))], 0, 1)\n"
        "print(rewards.describe()[0], scored.groups[0].scores)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "mine (weight 1): inline in the trainer, under a watchdog (3.0,)\n"


def test_module_name_is_found_beside_the_recipe(tmp_path):
    (tmp_path / "beside_the_recipe.py").write_text("def f(completions):\n    return [5.0] * len(completions)\n")
    for isolate in ("auto", "inline"):
        config = RewardConfig(name="beside_the_recipe:f", isolate=isolate)
        with build_rewards([config], base_dir=tmp_path) as rewards:
            assert rewards.names == ("f",)
            assert rewards.score([group(["a"])], 0, 1).groups[0].scores == (5.0,)
    assert str(tmp_path) not in sys.path


def test_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 6.0\n")
    (tmp_path / "uses_neighbour.py").write_text(
        "from neighbour import VALUE\ndef f(completions):\n    return [VALUE] * len(completions)\n"
    )
    scored = build_rewards([RewardConfig(name="uses_neighbour.py:f")], base_dir=tmp_path)
    with scored as rewards:
        assert rewards.score([group(["a"])], 0, 1).groups[0].scores == (6.0,)


def test_worker_imports_neither_torch_nor_pydantic():
    assert score([group(["a"])], own("torch_is_loaded")).groups[0].scores == (0.0,)


def test_rewards_import_without_torch():
    code = "import sys; from preftune.rewards import build_rewards, BUILTINS; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent.parent)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "acuracy"}, "unknown reward 'acuracy'; did you mean 'accuracy'?"),
        ({"name": "zzz"}, "the built-ins are accuracy, code, competition-answer,"),
        ({"name": "no_such_module_here:f"}, "there is no module 'no_such_module_here'"),
        ({"name": "no.such.module_here:f"}, "module 'no.such.module_here' can't be imported"),
        ({"name": "missing.py:f"}, "there is no file"),
        ({"name": "functions_for_tests.py:god"}, "defines no 'god'; did you mean 'good'?"),
        ({"name": ":f"}, "expected module:function"),
        ({"name": "regex"}, "reward 'regex', args.pattern: Field required"),
        ({"name": "regex", "args": {"patern": "a"}}, "unknown argument 'patern' under args; did you mean 'pattern'?"),
        ({"name": "regex", "args": {"pattern": "("}}, "args: pattern is no regular expression: missing )"),
        ({"name": "accuracy", "args": {"extract": "("}}, "extract is no regular expression"),
        ({"name": "length"}, "give at_least, at_most or both"),
        ({"name": "length", "args": {"at_least": 3, "at_most": 2}}, "at_most (2) is less than at_least (3)"),
        ({"name": "length", "args": {"at_most": 2, "unit": "bytes"}}, "args.unit"),
        ({"name": "json-schema", "args": {"schema": {"type": "objet"}}}, "schema is no JSON schema"),
        ({"name": "json-schema", "args": {"schema": {"$ref": "http://a.b/c"}}}, "$ref that leads nowhere inside it"),
        ({"name": "format", "args": {"tags": []}}, "tags needs at least one name"),
        ({"name": "reasoning-answer", "args": {"solution_open": ""}}, "a tag can't be empty"),
    ],
)
def test_wrong_recipes(fields, message):
    with pytest.raises(UsageError) as caught:
        build_rewards([RewardConfig(**fields)], base_dir=HERE)
    assert message in str(caught.value)


def test_syntax_error_in_a_users_file_is_found_without_running_it(tmp_path):
    (tmp_path / "typo.py").write_text("raise SystemExit\ndef f(completions:\n")
    with pytest.raises(UsageError, match=r"typo\.py:2: "):
        build_rewards([RewardConfig(name="typo.py:f")], base_dir=tmp_path)


def test_callable_that_cannot_be_isolated_is_refused_when_asked_for():
    from preftune.rewards.base import make_reward

    with pytest.raises(UsageError, match="can't run in a process"):
        make_reward(RewardConfig(name="f", isolate="process"), "f", None, lambda completions: [0.0])


def test_not_a_function():
    with pytest.raises(UsageError, match="'exact' is not a function"):
        build_rewards([], ["exact"])


def test_table_of_builtins_tells_their_arguments():
    assert BUILTINS["regex"].args == {"pattern": "str, required", "full": "bool, default False"}
    assert all(builtin.summary for builtin in BUILTINS.values())


def test_documentation_lists_every_builtin_and_argument():
    table = (HERE.parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    for name, builtin in BUILTINS.items():
        assert f"| `{name}` |" in table
        assert all(f"`{arg}`" in table for arg in builtin.args)
