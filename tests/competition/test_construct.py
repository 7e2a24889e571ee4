"""The construct: from a recipe's section to tags, system prompt and a rendered contest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import preftune.competition
from preftune.competition import Construct, parse
from preftune.competition.construct import built_in
from preftune.competition.words import units
from preftune.config import CompetitionConfig, PersonaConfig
from preftune.errors import UsageError
from preftune.rewards.competition_text import own_voice
from tests.competition.contests import EVERY, PKV

STYLES = get_args(CompetitionConfig.model_fields["style"].annotation)
FOLDER = Path(preftune.competition.__file__).parent


def test_every_style_has_its_file() -> None:
    assert {path.stem for path in (FOLDER / "styles").glob("*.yaml")} == set(STYLES) == set(EVERY)


@pytest.mark.parametrize("style", STYLES)
def test_built_in_constructs_are_whole(style: str) -> None:
    config = built_in(style)
    assert config.root and config.result and config.winner and config.judge and config.answer
    assert 2 <= len(config.personas) <= 5
    construct = EVERY[style]
    for persona in construct.personas:
        assert persona.prompt and len(persona.voice) >= 8
        assert len(own_voice(construct, persona.name).phrases) >= 8
        for words in (persona.voice, persona.reflection):
            assert len({units(word) for word in words}) == len(words) and all(units(word) for word in words)


def test_the_first_style_is_the_default() -> None:
    assert Construct.of() == PKV == Construct.of(CompetitionConfig())
    assert PKV.elements == ("competition", "pirate", "knight", "viking", "result", "winner")
    assert EVERY["court"].elements == ("trial", "prosecutor", "defender", "judge", "verdict")
    assert EVERY["strategies"].elements == ("solutions", "direct", "algebra", "backwards", "comparison", "best")


@pytest.mark.parametrize("style", STYLES)
def test_the_system_prompt_shows_the_form(style: str) -> None:
    construct = EVERY[style]
    prompt = construct.system_prompt
    shown = parse(prompt.partition("\n\n")[2], construct)
    # What it shows is a contest but for the winner's tag, which says what belongs there.
    assert shown.strict and not shown.winner_exact
    assert all(persona.prompt in prompt for persona in construct.personas)
    assert construct.judge in prompt and prompt.endswith(construct.answer)
    for name in construct.names:
        assert f'"{name}"' in prompt


def two(**fields: Any) -> CompetitionConfig:
    personas = [
        PersonaConfig(name="anna", prompt="calm", voice=["well"], reflection=["or rather"]),
        PersonaConfig(name="boris", prompt="loud"),
    ]
    return CompetitionConfig(personas=personas, **fields)


def test_fields_left_empty_come_from_the_style() -> None:
    own = Construct.of(two(root="duel", judge="A referee.", style="court"))
    assert own.elements == ("duel", "anna", "boris", "judge", "verdict")
    assert own.judge == "A referee." and own.answer == EVERY["court"].answer
    assert own.persona("anna").voice == ("well",) and own.persona("anna").reflection == ("or rather",)
    assert '"anna" or "boris"' in own.system_prompt
    assert Construct.of(two(judge="", answer="")).judge == ""


def test_a_system_prompt_of_ones_own() -> None:
    assert Construct.of(two(system="Fight!")).system_prompt == "Fight!"
    assert Construct.of(two(system="")).system_prompt == ""


def test_tags_that_cannot_be_told_apart() -> None:
    for fields in ({"root": "Anna"}, {"winner": "BORIS"}, {"result": "winner"}):
        with pytest.raises(UsageError, match="can't be told apart; rename one"):
            Construct.of(two(**fields))


@pytest.mark.parametrize("name", ["", "1st", "a b", "a>b", "<a>", "-a", "a.b"])
def test_what_is_no_tag(name: str) -> None:
    with pytest.raises(ValidationError, match="can't be a tag"):
        two(root=name)


@pytest.mark.parametrize("count", [1, 6])
def test_two_to_five_personas(count: int) -> None:
    personas = [PersonaConfig(name=f"p{n}", prompt="x") for n in range(count)]
    with pytest.raises(ValidationError, match=f"got {count}; a competition has two to 5"):
        CompetitionConfig(personas=personas)


def test_who_is_not_there() -> None:
    with pytest.raises(UsageError, match="no persona is named 'ninja'; there are pirate, knight, viking"):
        PKV.persona("ninja")
    with pytest.raises(KeyError):
        PKV.render({"pirate": "a"}, "b", "pirate", "c")


def test_the_files_are_read_when_they_are_needed() -> None:
    code = (
        "import sys, preftune.competition as c; assert 'yaml' not in sys.modules and 'torch' not in sys.modules;"
        "assert c.Construct.of().names[0] == 'pirate' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wheel_has_the_files() -> None:
    """Every file that isn't Python stands in the package data."""
    import tomllib

    root = FOLDER.parents[1]
    told = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert f"**/*{path.suffix}" in told["preftune"], path
