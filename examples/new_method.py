"""A method of your own, added from outside the package: train on the best completion of each group.

    python examples/new_method.py Qwen/Qwen3-0.6B-Base

The policy answers each prompt several times, rewards score the answers, and the likelihood of the best one is raised
(rejection sampling, with a fresh batch at every step). Two small functions and one row of the table: sampling, packing,
certificate, checkpoints, resume and report come with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import preftune
from preftune.losses import Additive, Denominators, LossOutput, TokenBatch, aggregate
from preftune.methods import Evidence, Method, register
from preftune.records import Group
from preftune.train import RunResult

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(2, 9) for b in range(2, 9)]


def best_of_group(groups: Sequence[Group], recipe: preftune.Recipe, evidence: Evidence) -> Tensor:
    """The signal: 1 for the first best completion of each group, 0 for the others; 0 for all where all are equal.

    `evidence` has what a signal may read besides scores (log-probs, values, …); this one needs nothing of it."""
    weights: list[float] = []
    for group in groups:
        scores = group.scores
        best = scores.index(max(scores))
        spread = max(scores) > min(scores)
        weights += [float(spread and i == best) for i in range(len(scores))]
    return torch.tensor(weights)


def weighted_nll(batch: TokenBatch, denominators: Denominators, recipe: preftune.Recipe) -> LossOutput:
    """The loss: −Σ weight · log π per token of the whole batch. `aggregate` divides by totals of the whole optimizer
    batch, so that the split into micro-batches changes nothing."""
    assert batch.advantages_S is not None
    loss_T = -batch.logprobs_T * batch.advantages_S[batch.sequence_T]
    loss = aggregate(loss_T, batch.sequence_T, batch.num_sequences, "token-mean", denominators, batch.weights_S)
    ones_T = torch.ones_like(batch.logprobs_T)
    return LossOutput(loss, {"nll": Additive.mean(-batch.logprobs_T, ones_T)})


register(
    Method(
        name="best-of-group",
        summary="raise the likelihood of each group's best completion",
        completions="policy",
        scored=True,
        signal=best_of_group,
        loss=weighted_nll,
    )
)


def train(model: str, output: Path, *, steps: int, learning_rate: float = 1e-5) -> RunResult:
    """Run it like any other method."""
    return preftune.train(
        "best-of-group",
        model=model,
        data=ROWS,
        rewards=[{"name": "regex", "args": {"pattern": r"^\d"}}],
        output=output,
        sampling={"group_size": 4, "max_tokens": 6},
        train={"steps": steps, "batch_size": 8, "learning_rate": learning_rate},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A method of your own.")
    parser.add_argument("model", help="a model folder or hub id")
    parser.add_argument("--output", type=Path, default=Path("runs/best-of-group"), help="run folder, a new one")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    print(train(given.model, given.output, steps=given.steps).report)


if __name__ == "__main__":
    main()
