"""How well one can tell the better answer by its opening alone, or by its length alone: cross-validated by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.curation.debias.table import Floats, Ints, Table
from preftune.intervals import Interval, auc_interval, mean_interval

RARE = 5
"""Openings of fewer answers are no feature."""
MOST = 50_000
"""Answers that models are fitted on; of more, whole prompts are drawn."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a model that sees one thing of an answer makes of it, on prompts that it was not fitted on.

    Attributes:
        auc: chance that a better answer gets a higher score than a worse one, over all prompts; ½ is chance.
        accuracy: share of pairs in the right order, a tie counts ½; mean over prompts.
    """

    auc: Interval
    accuracy: Interval

    def to_json(self) -> dict[str, Any]:
        return {"auc": self.auc.to_json(), "accuracy": self.accuracy.to_json()}


def predict(table: Table, *, folds: int, seed: int) -> dict[str, Predicted]:
    """`opening` and `length`: logistic regressions of the side on openings of all lengths, and on log length.

    Empty where there are fewer than `folds` prompts with a better and a worse answer.
    """
    chosen, fold = _rows(table, folds, seed)
    if not len(chosen):
        return {}
    label = table.sides[chosen] > 0
    features: Mapping[str, Callable[[], Any]] = {
        "opening": lambda: _openings(table, chosen),
        "length": lambda: _scaled(np.log1p(table.lengths[chosen].astype(np.float64)))[:, None],
    }
    out = {}
    for name, make in features.items():
        scores = _scores(make(), label, fold, folds)
        auc = auc_interval(scores, label, table.prompts[chosen])
        out[name] = Predicted(auc, _accuracy(table, chosen, scores))
    return out


def _rows(table: Table, folds: int, seed: int) -> tuple[Ints, Ints]:
    """Answers of a side, of at most MOST of them whole prompts, and the part that each prompt is in."""
    sided = np.flatnonzero(np.abs(table.sides) > 1e-9)
    prompts = np.unique(table.prompts[sided])
    if len(prompts) < folds:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.random.default_rng(seed).permutation(prompts)
    counts = np.bincount(table.prompts[sided], minlength=int(prompts.max()) + 1)[order]
    order = order[: max(folds, int(np.searchsorted(np.cumsum(counts), MOST)) + 1)]
    part = np.full(int(prompts.max()) + 1, -1, np.int64)
    part[order] = np.arange(len(order)) % folds
    chosen = sided[part[table.prompts[sided]] >= 0]
    return chosen, part[table.prompts[chosen]]


def _openings(table: Table, chosen: Ints) -> Any:
    """[n, openings] of 0 and 1: an answer has the opening of each of its lengths."""
    from scipy.sparse import csr_matrix

    rows, columns = [], []
    for depth in range(1, table.words + 1):
        nodes = table.tree.ancestors(table.nodes[chosen], depth)
        frequent = np.bincount(nodes[nodes >= 0], minlength=len(table.tree)) >= RARE
        there = np.flatnonzero((nodes >= 0) & frequent[nodes])
        rows.append(there)
        columns.append(nodes[there])
    row, column = np.concatenate(rows), np.concatenate(columns)
    names, place = np.unique(column, return_inverse=True)
    shape = (len(chosen), max(len(names), 1))
    return csr_matrix((np.ones(len(row)), (row, place)), shape=shape)


def _scaled(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))


def _scores(features: Any, label: NDArray[np.bool_], fold: Ints, folds: int) -> Floats:
    """Log-odds of being the better answer, by a model fitted on the other parts."""
    from sklearn.linear_model import LogisticRegression

    out = np.zeros(len(label))
    for part in range(folds):
        inside = fold == part
        if not inside.any() or len(np.unique(label[~inside])) < 2:
            continue
        model = LogisticRegression(max_iter=1000).fit(features[~inside], label[~inside])
        # Rounded: a score must not tell two answers of one opening apart by the order of a sum.
        out[inside] = np.round(model.decision_function(features[inside]), 9)
    return out


def _accuracy(table: Table, chosen: Ints, scores: Floats) -> Interval:
    by_answer = np.full(table.answers, np.nan)
    by_answer[chosen] = scores
    better, worse = by_answer[table.pairs.better], by_answer[table.pairs.worse]
    known = ~(np.isnan(better) | np.isnan(worse))
    right = np.where(better > worse, 1.0, np.where(better == worse, 0.5, 0.0))[known]
    prompt = table.pairs.prompt[known]
    place = np.unique(prompt, return_inverse=True)[1]
    means = np.bincount(place, right) / np.bincount(place)
    return share_interval(means)


def share_interval(values: Any) -> Interval:
    """The mean of values from 0 to 1; the ends of a t interval may lie outside and are cut."""
    found = mean_interval(values)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if found.is_bounded else found
