"""What several benchmarks share: processes of their own, their memory, a tokenizer, lines through points, the page."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
IMAGES = PAGE.parent / "images"
MIB = 2**20
PLAIN, SAVED, INK, FAINT = "#c2410c", "#2563a8", "#1f2933", "#d9dee4"
"""Colours of the plots: of their two series, of text, of the grid."""


# --- processes and their memory ---------------------------------------------------------------------------------------


def in_own_process(script: str, *flags: str, environment: Mapping[str, str] | None = None) -> Any:
    """The last line that `script` prints, read as JSON; where it fails, this process ends with its message."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *flags], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(f"{Path(script).name} {' '.join(flags)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """Resident size of this process now, MiB."""
    import psutil

    return float(psutil.Process().memory_info().rss / MIB)


# --- what is measured -------------------------------------------------------------------------------------------------


def word_tokenizer(vocabulary: int) -> Any:
    """Three special tokens and the words " w3", " w4", …: one token each, `vocabulary` in all."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<eos>", "<unk>", *(f" w{i}" for i in range(3, vocabulary))]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" w\d+"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@dataclass(frozen=True, slots=True)
class Line:
    """The least-squares line a + b·n through measured points."""

    a: float
    b: float
    worst: float

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Line:
        """Weighted by 1/n², so that relative errors count alike. `worst`: largest |residual| / value."""
        weights = [1 / n**2 for n, _ in points]
        total = sum(weights)
        mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
        mean_m = sum(w * m for w, (_, m) in zip(weights, points, strict=True)) / total
        spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
        shared = sum(w * (n - mean_n) * (m - mean_m) for w, (n, m) in zip(weights, points, strict=True))
        b = shared / spread
        a = mean_m - b * mean_n
        return cls(a, b, max(abs(m - a - b * n) / m for n, m in points))


# --- the page ---------------------------------------------------------------------------------------------------------


def machine(threads: int | None = None) -> str:
    """The machine in one sentence; `threads` is how many of its cores were in use."""
    from preftune.train.folder import hardware

    facts = hardware()
    cores = facts["cores"] if threads is None else f"{threads} of {facts['cores']}"
    return f"Machine: {facts['processor']}, {cores} cores, {facts.get('memory_gib', '?')} GiB."


def put(page: Path, mark: str, text: str) -> None:
    """Put `text` between the two marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(mark)
    _, closed, after = rest.partition(mark)
    if not closed:
        sys.exit(f"{page} lacks the two marks {mark}: add a section with them")
    page.write_text(f"{before}{mark}\n{text}{mark}{after}", encoding="utf-8")
