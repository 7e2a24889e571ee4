"""Texts as vectors of a model: one with random weights, built on the spot."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from preftune.curation.balance import BalanceConfig, balance
from preftune.curation.encoder import Encoder
from preftune.errors import ModelError

LETTERS = "abcdefghijklmnopqrstuvwxyz :"


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<unk>", "<end>", *LETTERS]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(LETTERS) + 3, max_position_embeddings=40, pad_token_id=0, **shape)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer(pad_token="<pad>", model_max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if sentence-transformers were not installed."""
    real = builtins.__import__

    def refusing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)


def by_hand(folder: Path, text: str) -> Any:
    """Mean of the last hidden states of one text alone, of length 1."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(text, truncation=True, return_tensors="pt")
    with torch.no_grad():
        mean = model(ids["input_ids"], ids["attention_mask"]).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


TEXTS = ["cats sleep", "a", "what is the best way to brew tea for a guest who is late", "cats sleep"]


def check_vectors(folder: Path) -> None:
    encoder = Encoder(str(folder), device="cpu", batch_size=2)
    encoder.fit(["x"], ["x"])
    assert (encoder.dimensions, encoder.limit, encoder.cut) == (24, "32 tokens", 0)
    vectors = encoder.embed([*TEXTS, " ", ""])
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=False):
        np.testing.assert_allclose(vector, by_hand(folder, text), atol=2e-6)
    assert not vectors[4:].any()
    assert encoder.cut == 1
    prefixed = Encoder(str(folder), prefix="query: ")
    prefixed.fit([], [])
    np.testing.assert_allclose(prefixed.embed(["cats"])[0], by_hand(folder, "query: cats"), atol=2e-6)
    assert np.isfinite(prefixed.embed(["\ud800 broken"])).all()


def test_a_plain_encoder_is_averaged_over_its_tokens(model: Path, no_library: None) -> None:
    check_vectors(model)


def test_sentence_transformers_gives_the_same(model: Path) -> None:
    pytest.importorskip("sentence_transformers")
    check_vectors(model)


def test_a_model_that_says_how_it_is_pooled_needs_the_library(model: Path, tmp_path: Path, no_library: None) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match=r"needs its library: pip install 'preftune\[embed\]'"):
        Encoder(str(tmp_path))


def test_pooling_of_a_sentence_transformers_model_is_followed(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    parts = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder = Encoder(str(tmp_path), device="cpu")
    encoder.fit([], [])
    states = BertModel.from_pretrained(model, add_pooling_layer=False).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(model)("cats", return_tensors="pt")
    with torch.no_grad():
        first = states(ids["input_ids"], ids["attention_mask"]).last_hidden_state[0, 0]
    np.testing.assert_allclose(encoder.embed(["cats"])[0], (first / first.norm()).numpy(), atol=2e-6)


def test_an_encoder_with_a_decoder_is_used_without_it(tmp_path: Path, no_library: None) -> None:
    torch.manual_seed(0)
    T5Model(
        T5Config(vocab_size=len(LETTERS) + 3, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    ).save_pretrained(tmp_path)
    tokenizer(eos_token="<end>").save_pretrained(tmp_path)  # no padding token: the end stands in, under the mask
    encoder = Encoder(str(tmp_path))
    encoder.fit([], [])
    one, other = encoder.embed(["cats sleep long"]), encoder.embed(["cats sleep long", "a"])
    assert encoder.dimensions == 16
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)


def test_what_can_not_be_loaded(tmp_path: Path, model: Path, no_library: None) -> None:
    with pytest.raises(ModelError, match=r"no such folder.*use the builtin embedder"):
        Encoder(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="can't be loaded as an encoder"):
        Encoder(str(tmp_path / "empty"))
    for path in model.iterdir():
        (tmp_path / "empty" / path.name).write_bytes(path.read_bytes())
    tokenizer().save_pretrained(tmp_path / "empty")
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        Encoder(str(tmp_path / "empty"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            Encoder(str(model), device="cuda")


def test_code_of_a_model_runs_only_when_allowed(model: Path, tmp_path: Path, no_library: None) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "own_model.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own", "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        Encoder(str(tmp_path))
    encoder = Encoder(str(tmp_path), trust_remote_code=True)
    encoder.fit([], [])
    np.testing.assert_allclose(encoder.embed(["cats"])[0], by_hand(model, "cats"), atol=2e-6)


def test_vectors_that_are_no_numbers_are_refused(model: Path, no_library: None) -> None:
    encoder = Encoder(str(model))
    encoder.fit([], [])
    with torch.no_grad():
        encoder._model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="no numbers"):
        encoder.embed(["cats"])


def test_balance_by_a_model(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ["aaaa aaaa", "aaa aaaaa", "zzzz zzzz", "zzz zzzzz", "zzzzz zzz"] * 4]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = BalanceConfig.model_validate(
        {
            "data": {"path": str(path)},
            "embedder": str(model),
            "device": "cpu",
            "cap": 6,
            "raise_to": 4,
            "threshold": 0.2,
        }
    )
    found = balance(settings, tmp_path / "out")
    assert found.before == (12, 8)
    assert found.after == (6.0, 6.0)
    assert str(model) in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    long = BalanceConfig.model_validate({"data": {"path": str(path)}, "embedder": str(model), "prefix": "a" * 40})
    found = balance(long, tmp_path / "long")
    summary = json.loads((tmp_path / "long" / "summary.json").read_text())
    assert summary["cut_by_model"] == 5
    assert "the model reads 32 tokens" in (tmp_path / "long" / "report.html").read_text(encoding="utf-8")
