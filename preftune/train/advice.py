"""Watches a run's metrics and says in words what goes wrong, at which step, and which setting to change.

Each rule looks at the numbers of a step, together with the means of the last WINDOW steps and of the first ones
(the baseline), and either holds or doesn't. It speaks once when it has held for its `patience` steps in a row, and
again only after it has been clear for CLEAR steps. A step that lacks a rule's metrics leaves that rule untouched,
so every method uses the same table. The rules are in `advice_rules` (all methods, and those that sample), in
`advice_policy` (PPO, dynamic sampling, GMPO) and in `advice_fixed` (fixed data: preferences, labels, reward models).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from preftune.train.advice_fixed import FIXED
from preftune.train.advice_policy import POLICY
from preftune.train.advice_rules import COLLAPSE_STOP, GENERAL, WINDOW, Rule

KEPT = 21
"""Values remembered per metric: the current one and the 20 before it, for spikes."""
CLEAR = 10

RULES: tuple[Rule, ...] = (*GENERAL, *POLICY, *FIXED)

WATCHED = (
    "loss", "nll", "grad_norm", "reward/mean", "reward/std", "reward/dead_groups", "length/mean", "length/truncated",
    "entropy", "kl", "clip/low", "clip/high", "ratio/max", "sampler/kl", "sampler/max_diff", "diversity/distinct_2",
    "diversity/shared_substring", "diversity/repetition", "logprobs/chosen", "logprobs/rejected", "length/chosen",
    "length/rejected", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy",
    "rewards/accuracy_longer", "rewards/accuracy_shorter", "kl/raw", "value/explained_variance", "value/clipped",
    "value/loss", "kl/sequence", "reward/penalty", "resample/missing", "critic/parsed", "critic/agreement",
    "critic/loss", "gmpo/effective", "gmpo/skipped_groups", "gmpo/temperature", "grad_norm/value", "grad_norm/critic",
)  # fmt: skip
"""The metrics whose history rules read. One that is not a finite number is a cause by itself."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, at which step, and what to change. One line of advice.jsonl."""

    step: int
    saw: str
    change: str


@dataclass(slots=True)
class _Peak:
    """Where the smoothed reward was best, and how long completions were then."""

    step: int
    reward: float
    length: float | None


class Watch:
    """Feed it every train step's metrics, in order. Its state is JSON, so that a resumed run says the same."""

    def __init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._first: dict[str, list[float]] = {}
        self._peak: _Peak | None = None
        self.broken: list[str] = []
        self._held: dict[str, int] = {}
        self._clear: dict[str, int] = {}
        self._active: list[str] = []

    @property
    def collapsed(self) -> bool:
        """True while all prompts have been getting the same text for COLLAPSE_STOP steps; one that is free of it takes
        one back.

        A step counts when both hold, as short answers share text such as "The answer is 7" in health too:

        - the longest text shared by completions of different prompts has at least SHARED_CHARS characters and at
          least SHARED_SHARE of the mean completion's length (`length/chars`, else CHARS_PER_TOKEN × `length/mean`);
        - distinct bigrams across prompts are at most DISTINCT_DROP of what they were in the first EARLY steps, or in
          the first WINDOW ones, whichever is more.

        One text for B prompts has 1/B of distinct bigrams, so the second needs about four prompts per step. A policy
        that was so from the beginning isn't called collapsed: a learned boilerplate looks the same.
        """
        return self._held.get("one-text", 0) >= COLLAPSE_STOP

    def update(self, step: int, metrics: Mapping[str, float]) -> list[Advice]:
        """Take in one step's train metrics; return what there is to say about it, usually nothing."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self.broken = [name for name in metrics if name in WATCHED and name not in finite]
        for name in WATCHED:
            if name in finite:
                first = self._first.setdefault(name, [])
                if len(first) < WINDOW:
                    first.append(finite[name])
                recent = self._recent.setdefault(name, [])
                recent.append(finite[name])
                del recent[:-KEPT]
        self._track_peak(step, finite)
        out = []
        for rule in RULES:
            if any(name not in finite for name in rule.needs):
                continue
            found = rule.check(self, finite)
            if found is None:
                self._held[rule.name] = 0 if rule.forgets else max(0, self._held.get(rule.name, 0) - 1)
                self._clear[rule.name] = self._clear.get(rule.name, 0) + 1
                if self._clear[rule.name] >= CLEAR and rule.name in self._active:
                    self._active.remove(rule.name)
                continue
            self._clear[rule.name] = 0
            self._held[rule.name] = self._held.get(rule.name, 0) + 1
            if self._held[rule.name] >= rule.patience and rule.name not in self._active and not rule.silent:
                self._active.append(rule.name)
                out.append(Advice(step, *found))
        return out

    def state_dict(self) -> dict[str, Any]:
        """Everything the watch remembers, as JSON types."""
        peak = self._peak
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "first": {name: list(values) for name, values in self._first.items()},
            "peak": None if peak is None else {"step": peak.step, "reward": peak.reward, "length": peak.length},
            "held": dict(self._held),
            "clear": dict(self._clear),
            "active": list(self._active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises KeyError when it is not one."""
        self._recent = {name: list(values) for name, values in state["recent"].items()}
        self._first = {name: list(values) for name, values in state["first"].items()}
        self._peak = None if state["peak"] is None else _Peak(**state["peak"])
        self._held, self._clear = dict(state["held"]), dict(state["clear"])
        self._active = list(state["active"])

    def now(self, name: str) -> float | None:
        """Mean of the last WINDOW values, or None before there are as many."""
        values = self._recent.get(name, ())
        return fmean(values[-WINDOW:]) if len(values) >= WINDOW else None

    def baseline(self, name: str) -> float | None:
        """Mean of the first WINDOW values, or None before there are as many."""
        values = self._first.get(name, ())
        return fmean(values) if len(values) >= WINDOW else None

    def last(self, name: str) -> list[float]:
        """The last WINDOW values, or fewer."""
        return self._recent.get(name, [])[-WINDOW:]

    def first(self, name: str) -> list[float]:
        """The first WINDOW values, or fewer."""
        return list(self._first.get(name, ()))

    def before(self, name: str) -> list[float]:
        """Up to 20 values before the current one."""
        return self._recent.get(name, [])[:-1]

    @property
    def peak(self) -> _Peak | None:
        return self._peak

    def _track_peak(self, step: int, metrics: Mapping[str, float]) -> None:
        reward = self.now("reward/mean")
        if reward is None or "reward/mean" not in metrics:
            return
        # A tenth of the spread inside groups: less than that is noise, not a new peak.
        margin = 0.1 * (self.now("reward/std") or 0.0)
        if self._peak is None or reward > self._peak.reward + margin:
            self._peak = _Peak(step, reward, self.now("length/mean"))
