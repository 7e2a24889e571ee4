"""Texts as vectors of a model: any sentence-transformers model, or a plain transformers encoder, mean-pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preftune.curation.embeddings import Floats, unit
from preftune.errors import ModelError

INSTALL = "pip install 'preftune[embed]'"


class Encoder:
    """A model as an Embedder.

    With the library sentence-transformers the model is loaded by it, pooling and all. Without it a plain encoder is
    loaded by transformers, and its last hidden states are averaged over the text's tokens, which is what the library
    does with such a model. A model that says itself how it is pooled (`modules.json`) needs the library.

    Args:
        path: hub id or folder.
        device: auto, cpu or cuda.
        batch_size: texts of one forward pass.
        prefix: put before every text.
        trust_remote_code: run code that ships with the model.

    Raises:
        ModelError: it can't be loaded.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        batch_size: int = 64,
        prefix: str = "",
        trust_remote_code: bool = False,
    ) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError("device is cuda, but this machine has no CUDA device; use cpu or auto")
        best = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = best if device == "auto" else device
        self._path, self._batch, self._prefix = path, batch_size, prefix
        self._library: Any = None
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            self._load_plain(trust_remote_code)
        else:
            try:
                self._library = SentenceTransformer(path, device=self._device, trust_remote_code=trust_remote_code)
            except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
                raise _unloadable(path, error) from error
            self._library.float().eval()
            self._tokenizer, self._longest = self._library.tokenizer, self._library.max_seq_length
        self.dimensions = 0
        self.limit = f"{self._longest} tokens" if self._longest else ""
        self.cut = 0

    def _load_plain(self, trust_remote_code: bool) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.hub import cached_file

        options = {"trust_remote_code": trust_remote_code}
        try:
            # A path that looks like a folder and is none would be asked for at the hub.
            if not Path(self._path).is_dir() and (self._path.count("/") > 1 or self._path.startswith((".", "/", "~"))):
                raise OSError("no such folder")
            pooled = cached_file(
                self._path, "modules.json",
                _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
            if pooled is not None:
                raise ModelError(f"{self._path} is a sentence-transformers model, which needs its library: {INSTALL}")
            self._tokenizer = AutoTokenizer.from_pretrained(self._path, **options)
            model = AutoModel.from_pretrained(self._path, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise _unloadable(self._path, error) from error
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if self._tokenizer.pad_token is None:
            if self._tokenizer.eos_token is None:
                raise ModelError(f"{self._path}: its tokenizer has neither a padding nor an end token")
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        limits = (self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._longest = min((n for n in limits if n and n < 10**6), default=None)
        self._model = model.float().eval().to(self._device)

    def fit(self, texts: Sequence[str], others: Sequence[str]) -> None:
        """Nothing is learned; the model says how many dimensions it has."""
        self.dimensions = len(self._run(["text"])[0])
        self.cut = 0

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n] texts → [n, d]; a text of white space alone gives zeros. Raises ModelError when numbers overflow."""
        out = np.zeros((len(texts), self.dimensions), np.float32)
        filled = [place for place, text in enumerate(texts) if text.strip()]
        if filled:
            # A lone half of a surrogate pair has no UTF-8 form, which tokenizers need.
            plain = [texts[place].encode("utf-8", "replace").decode("utf-8") for place in filled]
            out[filled] = self._run([self._prefix + text for text in plain])
        if not np.isfinite(out).all():
            raise ModelError(f"{self._path}: gives vectors that are no numbers; is it a whole model?")
        return unit(out)

    def _run(self, texts: Sequence[str]) -> Floats:
        lengths = [len(ids) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]
        self.cut += sum(length > (self._longest or length) for length in lengths)
        if self._library is not None:
            vectors: Floats = self._library.encode(list(texts), batch_size=self._batch, show_progress_bar=False)
            return vectors.astype(np.float32)
        import torch

        out = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        order = sorted((n for n, length in enumerate(lengths) if length), key=lengths.__getitem__)  # less padding
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            batch = self._tokenizer(
                [texts[n] for n in some], padding=True, truncation=self._longest is not None, max_length=self._longest,
                return_tensors="pt",
            ).to(self._device)  # fmt: skip
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                states = self._model(**given).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            out[some] = ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu().numpy()
        return out


def _unloadable(path: str, error: Exception) -> ModelError:
    text = str(error).strip()
    said = text.splitlines()[0][:300] if text else type(error).__name__
    if "trust_remote_code" in text:
        said = "it brings code of its own; if you trust that, set trust_remote_code: true"
    return ModelError(
        f"{path}: can't be loaded as an encoder: {said}. Give a sentence-transformers model or a plain encoder (hub "
        "id or folder), or use the builtin embedder, which needs no model"
    )
