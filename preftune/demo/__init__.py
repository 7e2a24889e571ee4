"""Built-in tasks: a tiny base model made on the spot, tuned, and measured before and after."""

from __future__ import annotations

from pathlib import Path

from preftune.errors import UsageError

__all__ = ["METHODS", "run_demo"]

METHODS = ("grpo", "dpo", "kto", "reward", "ppo", "iterative-dpo", "gmpo", "competition", "alignment")
"""Methods that have a demo, the competition, which is trained by GRPO, and all of it from raw answers on."""


def run_demo(method: str = "grpo", *, output: Path, seed: int = 0, quick: bool = False) -> int:
    """Run the demo of a method: sums in words for grpo and gmpo, contests about sums for competition,
    the chat task for the others, with alignment for all of it: tiers, pairs, balance, debias, reward model, rounds.

    Args:
        output: folder for everything; it must not exist.
        seed: of weights, data and training.
        quick: a few steps of each, to see that all parts work; nothing is learnt.

    Returns:
        0.

    Raises:
        UsageError: no demo of that method, or `output` exists.
    """
    if method == "grpo":
        from preftune.demo.grpo import run

        return run(output=output, seed=seed, quick=quick)
    if method == "gmpo":
        from preftune.demo import gmpo

        return gmpo.run(output=output, seed=seed, quick=quick)
    if method == "competition":
        from preftune.demo import competition

        return competition.run(output=output, seed=seed, quick=quick)
    if method == "alignment":
        from preftune.demo import alignment

        return alignment.run(output=output, seed=seed, quick=quick)
    from preftune.demo import acting, preferences

    for acts in acting.METHODS:
        if method == acts:
            return acting.run(acts, output=output, seed=seed, quick=quick)
    for known in preferences.METHODS:
        if method == known:
            return preferences.run(known, output=output, seed=seed, quick=quick)
    raise UsageError(f"there is no demo for {method}; there are demos for {', '.join(METHODS)}")
