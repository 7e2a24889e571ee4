"""The commands that train nothing, exit codes, and that the light ones load no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from preftune import __version__
from preftune.cli.init import template, unread
from preftune.cli.main import main
from preftune.config import Recipe
from preftune.errors import DataError, RewardError
from preftune.methods import METHODS
from preftune.recipes import resolve
from preftune.recipes.schema import item_of, leaves, model_of
from preftune.recipes.yamltext import parse

_LIGHT = """
import sys
from preftune.cli.main import main
for arguments in {commands!r}:
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's --help
        code = stop.code
    heavy = [name for name in ("torch", "transformers", "datasets", "peft", "numpy") if name in sys.modules]
    print("RESULT", code, heavy)
"""


def test_help_and_errors_load_no_torch(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: grpo\nmodel: {path: m}\ndata: {path: d}\ntrain: {steps: 1, lerning_rate: 1}\n")
    commands = [
        [], ["--help"], ["--version"], ["grpo", "--help"], ["run", str(bad)], ["grpo", "--train.lerning_rate", "1"],
        ["init", "grpo"], ["rewards"], ["nothing"],
    ]  # fmt: skip
    code = _LIGHT.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    results = re.findall(r"^RESULT (\d+) (.*)$", done.stdout, re.M)
    assert results == [(code, "[]") for code in "000022002"], done.stdout + done.stderr
    assert "train.lerning_rate: unknown key; did you mean train.learning_rate?" in done.stderr
    assert f"{bad}:4" in done.stderr


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, preftune, preftune.recipes, preftune.methods\n"
        "preftune.load_recipe, preftune.Recipe\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_help_names_every_command_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("run", "demo", "init", "merge", "report", "rewards", *METHODS):
        assert re.search(rf"^  {name}\s", text, re.M), name


def test_command_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sft", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for leaf in leaves(Recipe):
        assert f"--{leaf.name.replace('*', 'NAME')} " in text, leaf.name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"preftune {__version__} (Python ")


def test_rewards_lists_the_built_ins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards"]) == 0
    text = capsys.readouterr().out
    assert "accuracy: 1 when the final answer equals the answer column" in text
    assert "    pattern: str, required" in text


@pytest.mark.parametrize("method", list(METHODS))
def test_init_prints_a_recipe_that_resolves(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", method]) == 0
    text = capsys.readouterr().out
    assert text == template(method)
    (stage,) = resolve(parse(text, "init")[0]).stages
    assert (stage.method, stage.train.steps, stage.data[0].path) == (method, 100, "train.jsonl")
    assert [reward.name for reward in stage.rewards] == (["accuracy"] if METHODS[method].scored else [])


def _shows(text: str, key: str) -> bool:
    return re.search(rf"^\s*(# )?\s*(- )?{re.escape(key)}:", text, re.M) is not None


@pytest.mark.parametrize("method", list(METHODS))
def test_init_shows_every_field_that_the_method_reads_and_its_default(method: str) -> None:
    text = template(method)
    left_out = unread(METHODS[method])
    for leaf in leaves(Recipe):
        if leaf.name.startswith("eval.benchmarks."):
            continue  # shown in one line, with an example
        if not any(leaf.name == name or leaf.name.startswith(f"{name}.") for name in left_out):
            assert _shows(text, leaf.path[-1]), leaf.name
            assert str(leaf.info.description) in text, leaf.name
    # with every comment sign of a setting taken away it is still a recipe, and only the blocks shown as examples differ
    lines = text[text.index("\nmethod:") :].splitlines()
    open_text = "\n".join(re.sub(r"^(\s*)# ", r"\1", line) for line in lines)
    (opened,) = resolve(parse(open_text, "init")[0]).stages
    (plain,) = resolve(parse(text, "init")[0]).stages
    assert opened.model.lora is not None and opened.model.lora.r == (16 if method == "gmpo" else 32)
    assert opened.data[0].columns["answer"].source == "answer"
    for section in (
        "tokens",
        "sampling",
        "policy",
        "value",
        "collect",
        "human",
        "gmpo",
        "loss",
        "train",
        "eval",
        "log",
    ):
        was, now = (getattr(recipe, section).model_dump() for recipe in (plain, opened))
        # An optional section is shown with its fields, so opening it asks for it.
        now = {key: None if key in ("lora", "until") else value for key, value in now.items()}
        if section == "gmpo":
            now["critic"]["lora"] = None
        assert now == was, section
        own = {**METHODS[method].defaults.get(section, {}), **({"steps": 100} if section == "train" else {})}
        assert getattr(plain, section) == type(getattr(plain, section)).model_validate(own), section


@pytest.mark.parametrize(
    ("method", "there", "left_out"),
    [
        (
            "sft",
            "label_threshold",
            "policy preset group_size normalize reference_cache reference beta value collect human gmpo",
        ),
        (
            "grpo",
            "policy preset group_size reference minibatches overlong combine",
            "loss normalize reference_logprobs value gamma collect human gmpo",
        ),
        ("ppo", "policy kl_target value gamma lam warmup_steps minibatches", "loss collect human gmpo normalize"),
        (
            "iterative-dpo",
            "repeat collect margin reference_cache loss pairs missing_eos_penalty overlong group_size",
            "preset clip_low keep min_score spread_only value human gmpo minibatches normalize",
        ),
        ("rft", "repeat collect keep min_score spread_only overlong", "preset loss value human gmpo minibatches"),
        ("human", "collect human raters preset beta group_size minibatches", "resample overlong keep value gmpo loss"),
        (
            "gmpo",
            "gmpo critic truth cold_start meta_prompt group_size lora",
            "preset clip_low value human collect loss",
        ),
        (
            "dpo",
            "loss name beta odds_weight pairs reference reference_cache",
            "policy center desirable_weight normalize",
        ),
        (
            "kto",
            "beta desirable_weight label_threshold reference reference_logprobs",
            "policy pairs odds_weight center",
        ),
        (
            "reward",
            "center margin pairs normalize",
            "policy sampling rewards temperature beta reference_logprobs reference",
        ),
    ],
)
def test_init_leaves_out_what_the_method_does_not_read(method: str, there: str, left_out: str) -> None:
    text = template(method)
    assert [key for key in there.split() if not _shows(text, key)] == []
    assert [key for key in left_out.split() if _shows(text, key)] == []


@pytest.mark.parametrize(("method", "keys"), [("dpo", ("chosen", "rejected")), ("kto", ("completion", "label"))])
def test_init_says_what_a_row_is(method: str, keys: tuple[str, ...]) -> None:
    (line,) = [line for line in template(method).splitlines() if line.startswith("# Rows:")]
    assert all(f'"{key}":' in line for key in keys)


@pytest.mark.parametrize("field", sorted({name for method in METHODS.values() for name in unread(method)}))
def test_what_init_leaves_out_is_a_field(field: str) -> None:
    model: Any = Recipe
    for part in field.split("."):
        annotation = model.model_fields[part].annotation
        model = item_of(annotation) or model_of(annotation)


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (RewardError("reward x failed on row 17"), 1, "error: reward x failed on row 17\n"),
        (DataError("rows.jsonl:3: no column question"), 2, "error: rows.jsonl:3: no column question\n"),
        (
            KeyboardInterrupt(),
            130,
            "stopped: interrupted; what knows --resume goes on with it, anything else starts again\n",
        ),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise raised

    monkeypatch.setitem(sys.modules, "preftune.pipeline", SimpleNamespace(run_pipeline=fail))
    flags = ["--model.path=m", "--data.path=d", "--train.steps=1"]
    assert main(["sft", *flags]) == code
    assert capsys.readouterr().err == message


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setitem(sys.modules, "preftune.pipeline", SimpleNamespace(run_pipeline=fail))
    with pytest.raises(ZeroDivisionError):
        main(["sft", "--model.path=m", "--data.path=d", "--train.steps=1"])


def test_output_cut_by_head_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m preftune init grpo | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("# grpo:")


def test_merge_and_report_call_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def merge(adapter: str, out: Path, *, trust_remote_code: bool) -> Path:
        calls.append((adapter, out, trust_remote_code))
        return out

    monkeypatch.setitem(sys.modules, "preftune.models", SimpleNamespace(merge=merge))
    monkeypatch.setitem(
        sys.modules, "preftune.report", SimpleNamespace(write_report=lambda folder: folder / "report.html")
    )
    assert main(["merge", "some/adapter", str(tmp_path / "out")]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert calls == [("some/adapter", tmp_path / "out", False)]
    assert capsys.readouterr().out == f"merged model: {tmp_path / 'out'}\nreport: {tmp_path / 'report.html'}\n"


def test_nothing_of_an_error_moves_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"\\u001b[2Jcolumn": "x"}\n')
    assert main(["data", "pairs", f"--data.path={path}", f"--output={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    assert "␛[2Jcolumn" in told and "\x1b" not in told


def test_progress_takes_a_label_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier may be named like rich's markup."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    from preftune.train.progress import Progress

    with Progress("generate") as progress:
        progress.begin("[/bold] weak")
        progress.tick(1, 2)
        (task,) = progress._rich.tasks
        rendered = progress._rich.columns[0].render(task)
    assert rendered.plain == "generate · [/bold] weak"


def test_the_help_names_what_data_has(capsys: pytest.CaptureFixture[str]) -> None:
    from preftune.cli.data import COMMANDS as DATA

    assert main(["--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  data ")]
    assert all(name in line for name in DATA)
