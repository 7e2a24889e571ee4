"""Optimisation, measuring, logging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from preftune.config.base import Strict
from preftune.config.benchmarks import BenchmarkConfig
from preftune.config.data import SourceConfig


class UntilConfig(Strict):
    """A metric that ends a stage once it is reached."""

    metric: str = Field(
        description="a training metric (reward/competition-structure), or one of a split (validation/reward/accuracy)"
    )
    at_least: float | None = Field(None, description="reached when it is this or more")
    at_most: float | None = Field(None, description="reached when it is this or less")
    window: int = Field(5, ge=1, description="training metrics: steps that it is averaged over")

    @model_validator(mode="after")
    def _one_bound(self) -> UntilConfig:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self


class TrainConfig(Strict):
    """Optimisation."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; give steps or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; give steps or epochs")
    until: UntilConfig | None = Field(
        None, description="end before the last step once a metric has a value: the stages of a curriculum"
    )
    batch_size: int = Field(8, ge=1, description="prompts (groups) per optimizer step")
    updates_per_batch: int = Field(1, ge=1, description="passes over each sampled batch")
    minibatches: int = Field(
        1, ge=1, description="optimizer updates of one pass: the batch's prompts are split into this many parts"
    )
    learning_rate: float = Field(1e-5, ge=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="after warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps with rising learning rate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay (matrices only)")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW β₁")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW β₂")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW ε")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this")
    max_tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="tokens of one packed forward pass; default: 8192 on a GPU, on a CPU what the largest group needs, "
        "from 2048 to 8192",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="autocast; auto: bf16 on CUDA, fp32 on CPU")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's choice)")
    reference_logprobs: Literal["cached", "live"] = Field(
        "cached",
        description="on a fixed data set: compute the reference's log-probs once, before training, and keep them on "
        "disk, or compute them at every step (full fine-tuning then holds a frozen copy)",
    )
    reference_cache: str | None = Field(
        None, description="folder for the reference's log-probs of fixed data (default: ~/.cache/preftune/reference)"
    )
    normalize: bool = Field(
        False,
        description="reward models: record mean and deviation of the training scores in the model; preftune applies "
        "them wherever it reads that model",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either train.steps or train.epochs, not both")
        return self


class EvalConfig(Strict):
    """Measuring on rows that are never trained on."""

    data: list[SourceConfig] = Field(default_factory=list, description="validation rows (choose the best checkpoint)")
    test: list[SourceConfig] = Field(default_factory=list, description="held-out rows, measured before and after only")
    benchmarks: list[BenchmarkConfig] = Field(
        default_factory=list, description="tasks measured before and after training only: instructions, multiple choice"
    )
    holdout: int = Field(0, ge=0, description="without data: take this many rows out of the training data")
    every: int | None = Field(None, ge=1, description="steps between measurements on validation rows")
    best: str | None = Field(None, description="metric that picks the best checkpoint, e.g. reward/accuracy")
    higher_is_better: bool = Field(True, description="direction of `best`")
    patience: int | None = Field(None, ge=1, description="stop after this many measurements without a new best")
    limit: int | None = Field(None, ge=1, description="use at most this many rows of each (benchmarks have their own)")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    max_tokens: int | None = Field(None, ge=1, description="longest completion (default: sampling.max_tokens)")


class LogConfig(Strict):
    """What is written down during a run."""

    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        ["tensorboard"], description="besides metrics.jsonl, which is always written"
    )
    samples_every: int = Field(10, ge=1, description="steps between samples written to samples.jsonl")
    samples: int = Field(8, ge=1, description="prompts whose completions are written each time")
    stop_on_collapse: bool = Field(
        True, description="stop when all prompts get the same text, keeping the last good checkpoint"
    )
