"""What grows in `growth.py`: its axes, with what each measures, and the model."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, INNER, WORDS, POSITIONS = 256, 6, 4, 2, 64, 768, 4096, 16384
ROW_WORDS, BATCH = 16, 8
STARTS = ("first", "later")
"""Of the rows' axis: with an empty cache folder, and once more with what the first start left there."""

Row = dict[str, float]
"""One point: `x` is the axis's value; the other names are those of `Axis.columns` and a few that no table shows."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that grows.

    Attributes:
        key: what `--only` looks in.
        setting: the name of the setting that takes each of `values`.
        fixed: the other settings of the update.
        quick: how many of the values `--quick` measures.
    """

    key: str
    title: str
    setting: str
    values: tuple[int, ...]
    fixed: dict[str, int]
    note: str
    quick: int

    @property
    def columns(self) -> dict[str, str]:
        """Of the table: name of a measurement → heading, the value itself first."""
        if self.setting == "rows":
            measured = {"ready": "s to the first step", "ready_mib": "MiB by then",
                        "seconds": "s of the whole command", "mib": "MiB of the whole run"}  # fmt: skip
            both = {f"{start}_{n}": f"{start} start: {told}" for start in STARTS for n, told in measured.items()}
            return {"x": self.setting, **both}
        shared = {"own_rate": "tokens/s, each completion with its own prompt"}
        return {"x": self.setting, "seconds": "s of one update", "rate": "packed tokens/s",
                **(shared if self.shares else {}), "mib": "MiB"}  # fmt: skip

    @property
    def shares(self) -> bool:
        """Whether a prompt stands before several completions."""
        return self.setting not in ("completion", "rows")


GROUP = {"prompt": 512, "completion": 128, "group": 8, "vocabulary": WORDS, "layers": LAYERS, "checkpointing": 0}
LENGTHS = (128, 512, 1024, 2048, 4096)
ALONE = {**GROUP, "prompt": 64, "group": 1}
AXES = (
    Axis("prompt", "Length of the prompt", "prompt", (64, 256, 1024, 2048, 4096), GROUP,
         "8 completions of 128 tokens", 3),
    Axis("group", "Size of the group", "group", (1, 2, 4, 8, 16, 32), GROUP,
         "prompt of 512, completions of 128 tokens", 4),
    Axis("vocabulary", "Vocabulary", "vocabulary", (4096, 16384, 32768, 65536, 131072), GROUP,
         "prompt of 512, 8 completions of 128 tokens; embedding and head are one matrix", 3),
    Axis("depth", "Depth", "layers", (2, 4, 8, 16, 24), GROUP, "prompt of 512, 8 completions of 128 tokens", 3),
    Axis("completion", "Length of the completion", "completion", LENGTHS, ALONE,
         "one completion behind a prompt of 64 tokens", 3),
    Axis("completion, checkpointing", "Length of the completion, with gradient checkpointing", "completion",
         LENGTHS, {**ALONE, "checkpointing": 1}, "one completion behind a prompt of 64 tokens", 3),
    Axis("rows", "Rows of data", "rows", (1000, 10_000, 100_000, 1_000_000), {},
         f"DPO, one step on {BATCH} rows; prompts of {ROW_WORDS + 2} tokens, answers of {ROW_WORDS}. Each point is two "
         "runs with one cache folder, empty at first: the first start prepares and stores the rows, the later one "
         "finds them there. The aim is that neither time nor memory of a later start grows: exponents of 0", 3),
)  # fmt: skip
PANELS = (("prompt",), ("group",), ("vocabulary",), ("depth",), ("completion", "completion, checkpointing"), ("rows",))
"""Axes that share their two panels of the plot."""
