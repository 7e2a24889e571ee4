"""Learning rates by hand, AdamW's groups, clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preftune.config import TrainConfig
from preftune.train.optim import learning_rate, make_optimizer

RATES = {
    # 10 steps, 2 of warm-up, peak 1: then 8 steps from 1 down, the last not yet 0
    "linear": [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
    "constant": [0.5] + [1.0] * 9,
    # half a cosine: (1 + cos(π k/8)) / 2
    "cosine": [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
}


@pytest.mark.parametrize("schedule", RATES)
def test_schedules(schedule: str) -> None:
    config = TrainConfig(schedule=schedule, warmup=0.2, learning_rate=1.0)
    assert [learning_rate(config, step, 10) for step in range(1, 11)] == pytest.approx(RATES[schedule], abs=1e-6)


def test_edges_of_the_schedule() -> None:
    linear = TrainConfig(schedule="linear", warmup=0.0, learning_rate=2.0)
    assert [learning_rate(linear, s, 2) for s in (1, 2)] == [2.0, 1.0]
    assert learning_rate(linear, 1, 1) == 2.0
    all_warm = TrainConfig(warmup=1.0, learning_rate=4.0)
    assert [learning_rate(all_warm, s, 4) for s in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 4.0]


def test_decay_is_for_matrices_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    parameters = list(model.named_parameters())
    optimizer = make_optimizer(
        parameters, TrainConfig(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_eps=1e-5)
    )
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.1), (3, 0.0)]
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.95), 1e-5, True)


def test_one_step_of_adamw_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = make_optimizer([("w", weight)], TrainConfig(learning_rate=0.1, weight_decay=0.5))
    weight.grad = torch.tensor([[3.0]])
    optimizer.step()
    # decay first: 2 − 0.1·0.5·2 = 1.9; then the first Adam step is one learning rate against the sign
    assert weight.item() == pytest.approx(1.8, abs=1e-6)


def test_every_field_of_train_is_heard(sft, tmp_path) -> None:
    """One changed field at a time changes the weights after two steps."""
    from safetensors.torch import load_file

    from preftune.train.loop import run

    def weights(name: str, **changes) -> torch.Tensor:
        # rate and clip are such that every step is clipped
        train = {"steps": 3, "warmup": 0.0, "max_grad_norm": 0.5, "learning_rate": 1e-2, **changes}
        run(sft(train=train), tmp_path / name)
        return torch.cat([t.flatten() for t in load_file(tmp_path / name / "final" / "model.safetensors").values()])

    plain = weights("plain")
    for field, value in {
        "learning_rate": 2e-2, "schedule": "cosine", "warmup": 0.7, "weight_decay": 0.5, "adam_beta1": 0.5,
        "adam_beta2": 0.9, "adam_eps": 1e-2, "batch_size": 3, "steps": 4, "updates_per_batch": 2,
        "max_grad_norm": 0.05, "precision": "bf16",
    }.items():  # fmt: skip
        assert not torch.equal(plain, weights(field, **{field: value})), field
