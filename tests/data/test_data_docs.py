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
    assert sorted(sections) == ["data", "data", "data", "data", "tokens", "tokens"]
    for block in settings():
        for source in block.get("data", []):
            SourceConfig(**source)
        TokensConfig(**block.get("tokens", {}))


def test_worked_example_gives_what_the_page_says(tmp_path: Path) -> None:
    (row,) = [block for block in blocks("jsonl") if "####" in block]
    (source,) = next(block["data"] for block in settings() if "working" in str(block))
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


def test_responses_by_mapping_give_what_the_page_says(tmp_path: Path) -> None:
    (row,) = blocks("json")
    (source,) = next(block["data"] for block in settings() if "also" in str(block))
    file = tmp_path / "solutions.jsonl"
    file.write_text(row, encoding="utf-8")
    (example,) = load_examples([SourceConfig(**{**source, "path": str(file)})], seed=0).examples
    assert (example.prompt, example.completions) == ("Half of 8?", ("A: 3", "A: 4", "8 / 2 = 4\nA: 4"))
    assert "scores 0, 1 and 1 and the sources `small`, `large` and `human`" in PAGE
    assert (example.scores, example.sources) == ((0.0, 1.0, 1.0), ("small", "large", "human"))


def test_rows_have_the_formats_under_which_they_stand(tmp_path: Path) -> None:
    section = PAGE.partition("## Preferences")[2].partition("## Columns")[0]
    lengths = []
    for rows in re.findall(r"```jsonl\n(.*?)```", section, re.S):
        file = tmp_path / "rows.jsonl"
        for row in rows.splitlines():
            file.write_text(row, encoding="utf-8")
            (example,) = load_examples([SourceConfig(path=str(file))], seed=0).examples
            lengths.append(len(example.scores))
    assert lengths == [2, 2, 3, 2, 2, 1, 1, 3, 2, 2, 2, 2, 2, 2]
    assert (example.prompt, *example.completions) == ("The capital of Peru is", " Lima.", " Cusco.")
    assert "split into `The capital of Peru is` and ` Lima.` or ` Cusco.`" in section


def test_labels_from_words_are_mapped_as_the_page_says(tmp_path: Path) -> None:
    (rule,) = re.findall(r"`(label: \{from: .*?\})`", PAGE)
    file = tmp_path / "marks.jsonl"
    rows = [{"prompt": "P", "completion": "a", "mark": mark} for mark in ("good", "bad")]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = SourceConfig.model_validate({"path": str(file), "columns": yaml.safe_load(rule)})
    assert [one.scores for one in load_examples([source], seed=0).examples] == [(1.0,), (0.0,)]
