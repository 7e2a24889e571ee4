"""What a person is shown of the clusters: examples, dots on two axes, the words that set a cluster apart."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.curation.balance.choose import Chosen
from preftune.curation.balance.clusters import Floats
from preftune.curation.balance.texts import Read
from preftune.curation.ngrams import UNSPACED
from preftune.curation.vectors import VectorFile

LARGEST, SMALLEST = 20, 8
"""Clusters with examples: the largest, and small ones from all of their range."""
EXAMPLES = 3
DOTS = 1500
WORDS = 6


@dataclass(slots=True)
class Shown:
    """A row that is shown; the last pass fills in what it says."""

    cluster: int
    where: str = ""
    text: str = ""
    copies: int = 0


@dataclass(slots=True)
class Cloud:
    """Rows drawn from one state of the data: [m] clusters, [m, 2] places."""

    clusters: NDArray[np.int32]
    places: Floats


@dataclass(slots=True)
class Story:
    """Examples by row, and the clouds before and after; both on the axes of the latter, the balanced one."""

    shown: dict[int, Shown] = field(default_factory=dict)
    before: Cloud | None = None
    after: Cloud | None = None

    def examples(self, cluster: int) -> list[Shown]:
        """Those of one cluster, kept ones first."""
        return sorted((one for one in self.shown.values() if one.cluster == cluster), key=lambda one: not one.copies)


def tell(known: Read, labels: NDArray[np.int32], chosen: Chosen, vectors: VectorFile, seed: int) -> Story:
    """Draw the examples and the clouds by the seed."""
    rng = np.random.default_rng([seed, 2])
    story = Story()
    for cluster in shown_clusters(chosen):
        members = rng.permutation(np.flatnonzero(labels == cluster))
        members = members[np.argsort(chosen.copies[members] == 0, kind="stable")]
        _, first = np.unique(known.texts[members], return_index=True)
        for row in members[np.sort(first)][:EXAMPLES]:
            story.shown[int(row)] = Shown(int(cluster))
    count = len(labels)
    before = np.sort(rng.choice(count, min(count, DOTS), replace=False))
    ends = np.cumsum(chosen.weights)
    dots = max(1, min(DOTS, round(ends[-1])))
    after = np.searchsorted(
        ends, (np.arange(dots) + rng.random()) * ends[-1] / dots, side="right"
    )  # evenly, so no line twice
    after = np.minimum(after, count - 1)
    there, here = vectors[known.texts[after]], vectors[known.texts[before]]
    middle = there.mean(axis=0)
    _, _, right = np.linalg.svd(there - middle, full_matrices=False)
    axes = np.zeros((2, vectors.dimensions), np.float32)
    axes[: min(2, len(right))] = right[:2]
    axes *= np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # a singular vector's sign is nobody's choice
    story.before = Cloud(labels[before], (here - middle) @ axes.T)
    story.after = Cloud(labels[after], (there - middle) @ axes.T)
    return story


def shown_clusters(chosen: Chosen) -> list[int]:
    """The largest clusters, and some of the others: raised ones first, from the whole range of their sizes."""
    largest = list(range(min(LARGEST, len(chosen.before))))
    rest = np.arange(len(largest), len(chosen.before))
    raised = rest[chosen.after[rest] > chosen.before[rest]]
    pool = raised if len(raised) else rest
    places = np.unique(np.linspace(0, max(len(pool) - 1, 0), SMALLEST).round().astype(int))
    return largest + [int(pool[place]) for place in places if len(pool)]


_LETTERS = re.compile(r"[^\W\d_]+")
_RUNS = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")


def tokens(text: str) -> set[str]:
    """The words of a text for people: two letters at least; pairs of characters where no spaces are written."""
    out: set[str] = set()
    for run in (run for letters in _LETTERS.findall(text.lower()) for run in _RUNS.findall(letters)):
        if re.match(f"[{UNSPACED}]", run):
            out.update(run[at : at + 2] for at in range(len(run) - 1))
        elif len(run) > 1:
            out.add(run)
    return out


def characteristic(texts: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    """Cluster → the words that set it apart, the strongest first.

    A word's strength is p · ln(p / q), with p the share of the cluster's texts that have it and q that of all texts; in
    a cluster of all texts it is 0 for all, and p alone decides.

    Args:
        texts: (cluster, text), a sample.
    """
    total: Counter[str] = Counter()
    inside: dict[int, Counter[str]] = defaultdict(Counter)
    sizes: Counter[int] = Counter()
    for cluster, text in texts:
        found = tokens(text)
        total.update(found)
        inside[cluster].update(found)
        sizes[cluster] += 1
    count = sum(sizes.values())

    def strength(cluster: int, word: str) -> Any:
        share = inside[cluster][word] / sizes[cluster]
        return -(share * math.log(share * count / total[word]) + 1e-6 * share), word

    return {
        cluster: sorted(words, key=lambda word: strength(cluster, word))[:WORDS] for cluster, words in inside.items()
    }
