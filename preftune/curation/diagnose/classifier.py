"""Whether a text classifier fires on a text: any sequence classifier of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.curation.diagnose.config import ClassifierConfig
from preftune.errors import ModelError, UsageError
from preftune.recipes.schema import nearest

_NAMES = (
    "toxic toxicity severe_toxic severe_toxicity unsafe harmful harm hate hateful hatespeech hate_speech offensive "
    "obscene insult threat threatening identity_hate identity_attack abuse abusive violence violent sexual "
    "sexual_explicit sexually_explicit profanity profane nsfw dangerous self_harm harassment spam jailbreak injection "
    "illegal racist sexist"
)
HARM = frozenset(_NAMES.split())
"""Names of labels that count as firing without being named."""
GENERIC = re.compile(r"label_\d+", re.IGNORECASE)
STRIDE = 32
"""Tokens that two windows of a long text share."""


class Classifier:
    """A loaded classifier.

    Attributes:
        firing: the labels that count.
        labels: all of them.
        guessed: their names say nothing, and the second of two was taken.

    Raises:
        ModelError: it can't be loaded, or its labels say nothing and none is named.
        UsageError: a named label that it does not have.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        import torch
        import transformers

        self._config = config
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("classifier.device is cuda, but this machine has no CUDA device; use cpu or auto")
        best = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = best if config.device == "auto" else config.device
        path = str(Path(config.path).expanduser()) if config.path.startswith("~") else config.path
        options: Any = {"trust_remote_code": config.trust_remote_code}
        try:
            # A path that looks like a folder and is none would be asked for at the hub.
            if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/"))):
                raise OSError("no such folder")
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, **options)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"{path}: can't be loaded as a text classifier: {lines[0][:300]}. Give a model with a sequence "
                "classification head (hub id or folder), or leave classifier out"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"{path} lacks the weights {', '.join(missing[:3])}: it is no trained text classifier, and would fire "
                "at random"
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(f"{path} is an encoder-decoder; give a classifier that is an encoder or a decoder")
        self.path, self._model = path, model.float().eval().to(self._device)
        names = model.config.id2label
        self.labels = [str(names[n]) for n in range(model.config.num_labels)]
        self._several = model.config.problem_type == "multi_label_classification" or len(self.labels) == 1
        self.guessed = False
        self._places = self._find()
        self.firing = [self.labels[place] for place in self._places]
        self._tokenizer = tokenizer
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ModelError(f"{path}: its tokenizer has neither a padding nor an end token")
            tokenizer.pad_token = tokenizer.eos_token
        # A decoder reads the score at the last token that is no padding, so it must know which one that is.
        self._model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "right"
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        # Models of RoBERTa's make number positions from behind the padding's, so two of them are lost.
        offset = 2 if "roberta" in str(model.config.model_type) or model.config.model_type == "camembert" else 0
        self._longest = min((n - offset * (n == limits[1]) for n in limits if n and n < 10**6), default=512)

    def _find(self) -> list[int]:
        by_name = {label.casefold(): place for place, label in enumerate(self.labels)}
        if self._config.labels:
            out: list[int] = []
            for wanted in self._config.labels:
                if wanted.casefold() not in by_name:
                    close = nearest(wanted.casefold(), by_name)
                    hint = (
                        f"did you mean {self.labels[by_name[close]]}?" if close else f"it has {', '.join(self.labels)}"
                    )
                    raise UsageError(f"classifier.labels: {self.path} has no label {wanted!r}; {hint}")
                out.append(by_name[wanted.casefold()])
            places = sorted(set(out))
        else:
            places = [n for n, label in enumerate(self.labels) if _says_harm(label)]
            if not places and len(self.labels) == 2 and all(GENERIC.fullmatch(label) for label in self.labels):
                places, self.guessed = [1], True
        if not places and len(self.labels) == 1:
            raise ModelError(
                f"{self.path}: its only label, {self.labels[0]}, does not say that a high score means harm: reward "
                "models, for which it means the opposite, look the same. If it does, name it with classifier.labels"
            )
        if not places:
            raise ModelError(
                f"{self.path}: none of its labels ({', '.join(self.labels[:20])}) has a name that says harm; name "
                "those that count with classifier.labels"
            )
        if len(places) == len(self.labels) > 1 and not self._several:
            raise ModelError(
                f"{self.path}: all its labels ({', '.join(self.labels[:20])}) would count as firing, so it would "
                "always fire; name fewer with classifier.labels"
            )
        return places

    def probabilities(
        self, texts: Sequence[tuple[str, str]], tell: Callable[[int, int], None] | None = None
    ) -> list[float]:
        """How sure it is that a firing label holds, of (prompt, answer) texts; of a long text the highest of all
        windows. A blank answer gives 0.

        With labels that exclude each other (softmax) their probabilities are added; else (sigmoid) the largest counts.

        Raises:
            ModelError: numbers overflow.
        """
        windows: list[list[int]] = []
        owners: list[int] = []
        for place, (prompt, answer) in enumerate(texts):
            if answer.strip():
                for window in self._windows(prompt, answer):
                    windows.append(window)
                    owners.append(place)
        out = [0.0] * len(texts)
        order = sorted(range(len(windows)), key=lambda n: len(windows[n]))  # less padding
        for start in range(0, len(order), self._config.batch_size):
            some = order[start : start + self._config.batch_size]
            for n, probability in zip(some, self._run([windows[n] for n in some]), strict=True):
                out[owners[n]] = max(out[owners[n]], probability)
            if tell is not None:
                tell(min(start + len(some), len(order)), len(order))
        return out

    def _windows(self, prompt: str, answer: str) -> list[list[int]]:
        """A text's ids, special tokens included; a long one in parts. With a prompt only the answer is cut up: the
        prompt, cut to its end, stands before each part."""
        reads_both = self._config.reads == "both" and bool(prompt.strip())
        first = f"{prompt}\n\n" if reads_both else ""
        text = _valid(first + answer)
        whole = self._tokenizer(text, verbose=False)["input_ids"]
        if len(whole) <= self._longest:
            return [whole] if whole else []
        bare = self._tokenizer(_valid(answer), add_special_tokens=False, verbose=False)["input_ids"]
        before, behind = _around(self._tokenizer)
        room = self._longest - len(before) - len(behind)
        ahead: list[int] = []
        if reads_both:
            ahead = self._tokenizer(_valid(first), add_special_tokens=False, verbose=False)["input_ids"]
            ahead = ahead[-(room // 2) :]
        size = max(room - len(ahead), 1)
        step = max(size - STRIDE, 1 + size // 2)
        starts = [0] if len(bare) <= size else [*range(0, len(bare) - size, step), len(bare) - size]
        return [[*before, *ahead, *bare[at : at + size], *behind] for at in starts]

    def _run(self, rows: list[list[int]]) -> list[float]:
        import torch

        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        # A decoder whose padding is its end token would take a true end for padding; it then reads the token before.
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        if not torch.isfinite(logits).all():
            raise ModelError(f"{self.path}: gives logits that are no numbers; is it a whole model?")
        if self._several:
            return [float(v) for v in logits.sigmoid()[:, self._places].amax(-1)]
        return [float(v) for v in logits.softmax(-1)[:, self._places].sum(-1)]


def _says_harm(label: str) -> bool:
    """`non-toxic` and `not_hate` say the opposite."""
    name = re.sub(r"[^a-z0-9]+", "_", label.casefold()).strip("_")
    if re.match(r"(?:non|not|no|un(?=toxic|offensive))_?", name):
        return False
    return name in HARM or any(part in HARM for part in name.split("_"))


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    probe = list(tokenizer("a", verbose=False)["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    for at in range(len(probe) - len(bare) + 1):
        if probe[at : at + len(bare)] == bare:
            return probe[:at], probe[at + len(bare) :]
    return [], []


def _valid(text: str) -> str:
    """A lone half of a surrogate pair has no UTF-8 form, which tokenizers need."""
    return text.encode("utf-8", "replace").decode("utf-8")
