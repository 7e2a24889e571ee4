"""Flags made from a command's settings: typed, grouped, and wrong ones are told all at once with the remedy."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser
from preftune.config import SourceConfig
from preftune.config.base import Strict
from preftune.errors import UsageError
from preftune.judges.config import JudgeConfig


class _Settings(Strict):
    data: list[SourceConfig] = Field(min_length=1, description="rows")
    cap: int = Field(100, ge=1, description="largest cluster")
    share: float = Field(0.5, gt=0, le=1, description="share")
    keep: Literal["random", "diverse"] = Field("random", description="which rows stay")
    names: list[str] = Field(default_factory=list, description="names")
    note: str | None = Field(None, description="a note")
    judge: JudgeConfig | None = Field(None, description="a judge")

    @model_validator(mode="after")
    def _not_seven(self) -> _Settings:
        if self.cap == 7:
            raise ValueError("cap can't be 7")
        return self


def _read(*arguments: str) -> tuple[_Settings, Any]:
    parser = Parser(prog="preftune data thing")
    parser.add_argument("--output", default=None)
    add_settings(parser, _Settings, ["data.weight"])
    return read_settings(parser, list(arguments), _Settings, ["data.weight"])


def test_values_by_their_types() -> None:
    found, rest = _read(
        "--data.path", "a.jsonl", "--cap", "5", "--share=0.25", "--keep", "diverse", "--names", "[x, y]", "--note", "3",
        "--output", "out",
    )  # fmt: skip
    assert (found.cap, found.share, found.keep, found.names, found.note) == (5, 0.25, "diverse", ["x", "y"], "3")
    assert found.data[0].path == "a.jsonl" and rest.output == "out" and found.judge is None


def test_several_sources_and_their_columns() -> None:
    found, _ = _read("--data.path", "a.jsonl", "--data.1.path", "b.jsonl", "--data.1.columns.prompt.from", "question")
    assert [one.path for one in found.data] == ["a.jsonl", "b.jsonl"]
    assert found.data[1].columns["prompt"].source == "question"


def test_a_section_of_its_own() -> None:
    found, _ = _read("--data.path", "a.jsonl", "--judge.model", "m", "--judge.votes", "3")
    assert found.judge is not None and (found.judge.model, found.judge.votes) == ("m", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"data.*path: missing"),
        (["--data.path", "a", "--cap", "0"], r"--cap: got 0; expected a whole number, at least 1"),
        (["--data.path", "a", "--cap", "x"], r"--cap: got 'x'; expected a whole number"),
        (["--data.path", "a", "--cap", "true"], r"--cap: got true; expected a whole number"),
        (["--data.path", "a", "--cap", "7"], r"cap can't be 7"),
        (["--data.path", "a", "--keep", "all"], r"--keep: got 'all'; expected one of random, diverse"),
        (["--data.path", "a", "--names", "[x"], r"--names: got '\[x', which is not valid YAML"),
        (["--data.path", "a", "--kap", "3"], r"--kap: no such flag; did you mean --cap\?"),
        (["--data.pth", "a"], r"did you mean (--)?data\.path\?"),
        (["--data.path", "a", "--data.weight", "2"], r"does not read this setting|no such flag"),
        (["--data.path", "a", "--data.0.weight", "2"], r"does not read this setting"),
        (["--data.path", "a", "--judge.votes", "0", "--judge.model", "m"], r"--judge\.votes: got 0; expected"),
        (["--data.path", "a", "--judge.model", "m", "--judge.path", "p"], r"--judge: give path .* or model"),
        (["--data.path", "a", "--judge.extra_body.x", "1"], r"is set as a whole"),
        (["--data.path", "a", "--data.limit", "x"], r"--data\.limit: got 'x'; expected a whole number"),
        (["--data.path", "a", "--cap"], r"--cap: a value is missing|expected one argument"),
    ],
)  # fmt: skip
def test_wrong_words(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _read(*arguments)


def test_all_problems_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        _read("--data.path", "a", "--cap", "0", "--keep", "all", "--share", "2")
    assert str(caught.value).startswith("3 problems in preftune data thing:")


def test_help_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="preftune data thing")
    add_settings(parser, _Settings, ["data.weight"])
    text = parser.format_help()
    for word in ("--cap", "largest cluster", "default 100", "--data.path", "--judge.votes", "which rows stay"):
        assert word in text
    assert "--data.weight" not in text
