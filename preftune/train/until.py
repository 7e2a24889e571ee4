"""`train.until`: a stage that ends once a metric has a value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from statistics import fmean

from preftune.config import UntilConfig
from preftune.errors import PreftuneError

SPLITS = ("validation", "test")


class Goal:
    """Watches one metric. `recent` is all that it remembers: its values of the last steps, for a checkpoint."""

    def __init__(self, config: UntilConfig | None) -> None:
        self._config = config
        self.recent: list[float] = []

    def after_step(self, metrics: Mapping[str, float]) -> str:
        """Take in a step's training metrics.

        Returns:
            Why the run ends, "" when it goes on.

        Raises:
            PreftuneError: no such metric.
        """
        config = self._config
        if config is None or _split(config.metric):
            return ""
        if config.metric not in metrics:
            if self.recent:  # a reward that did not apply to any row of this batch
                return ""
            raise PreftuneError(_unknown(config.metric, metrics))
        self.recent = [*self.recent, float(metrics[config.metric])][-config.window :]
        if len(self.recent) < config.window:
            return ""
        return self._reached(fmean(self.recent), f" over the last {config.window} steps" if config.window > 1 else "")

    def after_measuring(self, split: str, values: Mapping[str, float]) -> str:
        """Take in a measurement of a split; returns and raises as `after_step`."""
        config = self._config
        if config is None or _split(config.metric) != split:
            return ""
        name = config.metric.removeprefix(f"{split}/")
        if name not in values:
            raise PreftuneError(_unknown(config.metric, {f"{split}/{known}": 0.0 for known in values}))
        return self._reached(values[name], "")

    def _reached(self, value: float, where: str) -> str:
        config = self._config
        assert config is not None
        if config.at_least is not None:
            reached, bound = value >= config.at_least, f"at least {config.at_least:g}"
        else:
            assert config.at_most is not None
            reached, bound = value <= config.at_most, f"at most {config.at_most:g}"
        return f"{config.metric} is {value:.4g}{where}, {bound} as train.until asks" if reached else ""


def _split(metric: str) -> str:
    return next((split for split in SPLITS if metric.startswith(f"{split}/")), "")


def _unknown(metric: str, known: Mapping[str, float]) -> str:
    near = difflib.get_close_matches(metric, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    return f"train.until.metric is {metric!r}, which this run does not measure; {hint}"
