"""preftune's side with long prompts: ours_fixed.py or ours_grpo.py as they are, under two changes.

    python benchmarks/gpu/ours.py PROMPT_TOKENS ours_fixed.py MODEL DATA [that script's flags]

Prompts may have PROMPT_TOKENS tokens (the recipe's limit is 1,024, and longer rows would be left out), and the clock of
each stage waits for the GPU, which works on after a call has returned.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def wait_for_gpu() -> None:
    """Make preftune's stage clock wait for the GPU before it is read."""
    import torch

    from preftune.train.draw import Clock

    if not torch.cuda.is_available():
        return

    def waiting(read: Any) -> Any:
        def waited(self: Clock, name: str) -> None:
            torch.cuda.synchronize()
            read(self, name)

        return waited

    for name in ("lap", "total"):
        setattr(Clock, name, waiting(getattr(Clock, name)))


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    longest, script = int(sys.argv[1]), Path(__file__).resolve().parents[1] / sys.argv[2]
    sys.argv = [str(script), *sys.argv[3:]]
    from preftune import api

    plain = api.train

    def train(method: str, **settings: Any) -> Any:
        limits = {"max_prompt_tokens": longest, "on_too_long": "error"}
        return plain(method, **{**settings, "tokens": {**settings.get("tokens", {}), **limits}})

    api.train = train
    wait_for_gpu()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
