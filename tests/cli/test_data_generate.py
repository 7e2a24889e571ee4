"""Settings from a file and from flags, and `preftune data generate` and `pairs` as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.cli import data_generate, data_pairs
from preftune.cli.main import main
from preftune.cli.parser import Parser, flag_name
from preftune.cli.settings_file import add_file_settings, read_file_settings
from preftune.curation.generate.config import GenerateConfig, TierConfig
from preftune.curation.pairs.config import PairsConfig
from preftune.errors import UsageError
from preftune.recipes.schema import leaves
from tests import tiny

UNREAD = data_generate.UNREAD


def read(*arguments: str) -> GenerateConfig:
    parser = Parser(prog="preftune data generate")
    add_file_settings(parser, GenerateConfig, UNREAD, named=("tiers",))
    config, _ = read_file_settings(parser, list(arguments), GenerateConfig, UNREAD, named=("tiers",))
    return config


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tiers.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


TIERS = """\
data: {path: p.jsonl}
tiers:
  - {name: human, rank: 1, column: answer}
  - name: gpt-4.1
    rank: 2
    endpoint: {model: gpt-4.1, requests_per_minute: 60}
    sampling: {n: 2}
"""


def test_a_file_and_flags_over_it(tmp_path: Path) -> None:
    name = file(tmp_path, TIERS)
    config = read(name)
    assert [tier.name for tier in config.tiers] == ["human", "gpt-4.1"] and config.data[0].path == "p.jsonl"
    flags = [
        "--tiers.human.rank", "3", "--tiers.1.sampling.temperature=0.5", "--tiers.1.endpoint.extra_body", "{a: null}",
        "--tiers.weak.rank", "4", "--tiers.weak.model.path", "folder", "--tiers.weak.sampling.stop", "['#']",
        "--data.path", "other.jsonl", "--data.columns.prompt.from", "question", "--seed", "7", "--cut=keep",
    ]  # fmt: skip
    config = read(name, *flags)
    human, gpt, weak = config.tiers
    assert (human.rank, config.seed, config.cut, config.data[0].path) == (3, 7, "keep", "other.jsonl")
    assert config.data[0].columns["prompt"].source == "question"
    assert (gpt.sampling.temperature, gpt.sampling.n) == (0.5, 2)
    assert gpt.endpoint is not None and gpt.endpoint.extra_body == {"a": None}
    assert gpt.endpoint.requests_per_minute == 60
    assert weak.model is not None and (weak.name, weak.rank, weak.model.path) == ("weak", 4, "folder")
    assert weak.sampling.stop == ["#"]


def test_flags_alone() -> None:
    config = read(
        "--data.path", "a.jsonl", "--data.1.path", "b.jsonl", "--tiers.best.endpoint", "gpt-5", "--tiers.best.rank", "1"
    )
    assert [source.path for source in config.data] == ["a.jsonl", "b.jsonl"]
    assert config.tiers[0].endpoint is not None and config.tiers[0].endpoint.model == "gpt-5"
    whole = read("--data.path", "a.jsonl", "--tiers", "[{name: x, rank: 1, column: c}]", "--tiers.x.rank", "2")
    assert (whole.tiers[0].column, whole.tiers[0].rank) == ("c", 2)
    cleared = read("--data.path=a", "--tiers.x.rank=1", "--tiers.x.column=c", "--tiers.x.system=null")
    assert cleared.tiers[0].system is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("rank: 2", "rnak: 2"), r"tiers.yaml:5: tiers.1.rnak: unknown key; did you mean tiers.1.rank\?"),
        (("rank: 2", "rank: zwei"), r"tiers.yaml:5: tiers.1.rank: got 'zwei'; expected a whole number, at least 1"),
        (("rank: 1, ", ""), r"tiers.yaml:3: tiers.0.rank: missing; expected a whole number"),
        (("n: 2", "n: 0"), r"tiers.yaml:7: tiers.1.sampling.n: got 0; expected a whole number, at least 1"),
        (("60}", "60, price: 3}"), r"tiers.yaml:6: tiers.1.endpoint.price: unknown key"),
        (("column: answer", "column: answer, model: m"), r"tiers.yaml:3: tiers.0: tier human has model and column"),
        (("path: p.jsonl", "pth: p.jsonl"), r"tiers.yaml:1: data.0.pth: unknown key; did you mean data.0.path"),
        (("path: p.jsonl", "path: p, weight: 2"), r"data.weight: preftune data generate does not read this setting"),
        (("data:", "tier: 3\ndata:"), r"tiers.yaml:1: tier: unknown key; did you mean tiers\?"),
        (("data:", "data: {path: x}\ndata:"), r"tiers.yaml:2: data is given twice"),
        (("tiers:", "- tiers:"), r"not valid YAML"),
    ],
)
def test_slips_in_the_file_are_named_with_their_line(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert change[0] in TIERS
    with pytest.raises(UsageError, match=words):
        read(file(tmp_path, TIERS.replace(*change, 1)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tiers.human.rnak=2"], r"--tiers.human.rnak: no such setting; did you mean"),
        (["--tiers.human.rank=x"], r"--tiers.human.rank: got 'x'; expected a whole number"),
        (["--tiers.5.rank=1"], r"--tiers.5.rank: tiers has no item 5"),
        (["--tiers.human.rank.x=1"], r"--tiers.human.rank.x: tiers.0.rank is a value"),
        (["--tiers.human.sampling.stop={"], r"--tiers.human.sampling.stop: got '{', which is not valid YAML"),
        (["--teirs.human.rank=1"], r"--teirs"),
        (["--sed", "1"], r"--sed: no such flag; did you mean --seed"),
        (["--data.weight=2"], r"data.weight: preftune data generate does not read this setting"),
        (
            ["--cut", "keep", "--duplicates=some", "--seed=-1"],
            r"(?s)2 problems.*--seed: got -1.*--duplicates: got 'some'",
        ),
    ],
)
def test_slips_in_flags_are_named(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(file(tmp_path, TIERS), *flags)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, words in (
        (str(tmp_path / "none.yaml"), "none.yaml: no such file of settings"),
        (file(tmp_path, "- a\n"), "is a mapping"),
        (str(tmp_path), "can't be read"),
    ):
        with pytest.raises(UsageError, match=words):
            read(path)
    with pytest.raises(UsageError, match=r"tiers: missing"):
        read("--data.path", "x")


@pytest.mark.parametrize(
    ("command", "model", "named"), [("generate", GenerateConfig, "tiers"), ("pairs", PairsConfig, "")]
)
def test_every_setting_is_a_flag_with_help(
    capsys: pytest.CaptureFixture[str], command: str, model: Any, named: str
) -> None:
    with pytest.raises(SystemExit):
        main(["data", command, "--help"])
    shown = capsys.readouterr().out
    wanted = [
        leaf for leaf in leaves(model) if leaf.path[0] != named and ".".join(leaf.path[:2]) not in data_pairs.UNREAD
    ]
    if named:
        wanted += leaves(TierConfig, (named, "*"))
    assert len(wanted) > 20
    for leaf in wanted:
        assert f"--{flag_name(leaf)} " in shown, leaf.name
        assert leaf.info.description, leaf.name
    assert "--data.weight " not in shown


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "prompts.jsonl", [{"prompt": "a", "gold": "b\x1b[31m"}, {"prompt": "c", "gold": "d"}])
    flags = ["--data.path", f"{tmp_path}/prompts.jsonl", "--tiers.people.rank=1", "--tiers.people.column=gold"]
    command = ["data", "generate", *flags, "--output", f"{tmp_path}/out"]
    assert main([*command, "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main([*command, "--resume", "auto"]) == 0
    assert "people (rank 1): 2 of 2 answers" in (said := capsys.readouterr().out)
    assert "\x1b" not in said and f"{tmp_path}/out/rows.jsonl (2 prompts, 2 answers)" in said
    assert tiny.lines(tmp_path / "out" / "rows.jsonl")[0]["responses"][0]["text"] == "b\x1b[31m"
    assert main(command) == 2
    assert main([*command, "--resume=auto"]) == 0
    assert main(["data", "generate", "--data.path=x"]) == 2
    assert "--output" in capsys.readouterr().err
