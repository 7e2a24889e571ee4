"""docs/data.md is true: its rows load, its YAML is valid, its worked example gives what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.config import SourceConfig, TokensConfig
from preftune.data import load_examples
from preftune.tokens import TokenContract

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def settings() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks("yaml")]


@pytest.mark.parametrize("rows", [block for block in blocks("jsonl") if "####" not in block])
def test_example_rows_load(rows: str, tmp_path: Path) -> None:
    for n, row in enumerate(rows.splitlines()):
        file = tmp_path / f"{n}.jsonl"
        file.write_text(row, encoding="utf-8")
        assert len(load_examples([SourceConfig(path=str(file))], seed=0).examples) == 1


def test_settings_are_valid() -> None:
    sections = [name for block in settings() for name in block]
    assert sorted(sections) == ["data", "data", "tokens", "tokens"]
    for block in settings():
        for source in block.get("data", []):
            SourceConfig(**source)
        TokensConfig(**block.get("tokens", {}))


def test_worked_example_gives_what_the_page_says(tmp_path: Path) -> None:
    (row,) = [block for block in blocks("jsonl") if "####" in block]
    (source,) = next(block["data"] for block in settings() if "columns" in str(block))
    file = tmp_path / "worked.jsonl"
    file.write_text(row, encoding="utf-8")
    config = SourceConfig(path=str(file), columns=source["columns"], chat=True)
    (example,) = load_examples([config], seed=0).examples
    prompt, answer = json.loads(row)["question"], example.columns["answer"]
    assert f"prompt `{prompt}`, answer `{answer}`" in " ".join(PAGE.split())

    template = next(block["tokens"] for block in settings() if "chat_template" in str(block))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: n for n, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    contract = TokenContract(tokenizer, TokensConfig(**template))
    group = contract.group(example)
    assert group.prompt.text == f"{prompt}<eos><start_working_out>"
    assert f"`{group.completions[0].text}`" in PAGE
    assert group.completions[0].ids[-1] == tokenizer.eos_token_id
    assert contract.prepare([example], with_completions=True)[1].eos_invented == 0
