"""The control's reward: a coin, thrown anew for every answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any


def coin(prompts: Sequence[str], completions: Sequence[str], trainer_state: Any, **columns: Any) -> list[float]:
    """1 or 0 with equal chance, from a hash of step, place and text: random, and the same again on a resumed run."""
    scores = []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        key = f"{trainer_state.global_step}/{place}/{prompt}/{completion}".encode()
        scores.append(float(hashlib.sha256(key).digest()[0] & 1))
    return scores
