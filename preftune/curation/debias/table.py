"""All that the statistics need of the rows: for each answer its opening and length, for each pair who is better.

Whole texts are not kept. A row takes about 30 bytes an answer and 20 a pair; the tree of openings grows with the number
of different ones.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.debias.openings import Words, first_words
from preftune.data.content import as_turns
from preftune.errors import DataError
from preftune.records import Content, Example

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Tree:
    """Openings by their words: node 0 is the empty one, a child has one word more than its parent."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, str], int] = {}
        self._parents = array("q", [0])
        self._words: list[str] = [""]
        self._depths = array("q", [0])

    def __len__(self) -> int:
        return len(self._words)

    def add(self, words: Sequence[str]) -> int:
        """The node of an opening."""
        node = 0
        for word in words:
            child = self._children.get((node, word))
            if child is None:
                child = len(self._words)
                self._children[node, word] = child
                self._parents.append(node)
                self._words.append(word)
                self._depths.append(self._depths[node] + 1)
            node = child
        return node

    def find(self, words: Sequence[str]) -> int | None:
        """The node of an opening, None where no answer begins so."""
        node: int | None = 0
        for word in words:
            node = None if node is None else self._children.get((node, word))
        return node

    def words(self, node: int) -> Words:
        """An opening's words."""
        out: list[str] = []
        while node:
            out.append(self._words[node])
            node = self._parents[node]
        return tuple(reversed(out))

    def parent(self, node: int) -> int:
        return self._parents[node]

    def depth(self, node: int) -> int:
        return self._depths[node]

    def ancestors(self, nodes: Ints, depth: int) -> Ints:
        """For each node, its ancestor (or itself) of this depth, -1 where it is not that deep."""
        parents, depths = np.frombuffer(self._parents, np.int64), np.frombuffer(self._depths, np.int64)
        out = nodes.copy()
        while True:
            deeper = depths[out] > depth
            if not deeper.any():
                break
            out[deeper] = parents[out[deeper]]
        out[depths[out] < depth] = -1
        return out


@dataclass(slots=True)
class Pairs:
    """(better, worse) answers of one row each, as their places in the table. `weight`: 1 / pairs of the row."""

    better: Ints
    worse: Ints
    weight: Floats
    prompt: Ints

    def __len__(self) -> int:
        return len(self.better)

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Some of them."""
        return Pairs(self.better[chosen], self.worse[chosen], self.weight[chosen], self.prompt[chosen])


@dataclass
class Table:
    """The answers of all rows that were read.

    Attributes:
        tree: of their openings.
        words: words of an opening at most.
        rows: with a better and a worse answer; ties: rows whose answers are all of one score.
    """

    words: int
    fold: bool = False
    tree: Tree = field(default_factory=Tree)
    rows: int = 0
    ties: int = 0
    _nodes: array[int] = field(default_factory=lambda: array("q"))
    _lengths: array[int] = field(default_factory=lambda: array("i"))
    _prompts: array[int] = field(default_factory=lambda: array("Q"))
    _better: array[int] = field(default_factory=lambda: array("q"))
    _worse: array[int] = field(default_factory=lambda: array("q"))
    _weights: array[float] = field(default_factory=lambda: array("f"))

    def add(self, example: Example) -> None:
        """One row.

        Raises:
            DataError: it has a single answer, or answers without scores.
        """
        if len(example.completions) < 2 or not example.scores:
            raise DataError(
                f"{example.where}: the row has no two answers of which one is better; give pairs (chosen, rejected) or "
                "ranked responses"
            )
        first = len(self._nodes)
        digest = hashlib.blake2b(repr(example.prompt).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for completion in example.completions:
            text = answer_text(completion)
            self._nodes.append(self.tree.add([word for word, _ in first_words(text, self.words, fold=self.fold)]))
            self._lengths.append(len(text))
            self._prompts.append(int.from_bytes(digest, "little"))
        pairs = list(pairs_of(example.scores))
        for better, worse in pairs:
            self._better.append(first + better)
            self._worse.append(first + worse)
            self._weights.append(1 / len(pairs))
        self.rows += bool(pairs)
        self.ties += not pairs

    @property
    def answers(self) -> int:
        return len(self._nodes)

    @cached_property
    def nodes(self) -> Ints:
        """The longest opening of each answer."""
        return np.array(self._nodes, np.int64)

    @cached_property
    def lengths(self) -> Ints:
        """Characters of each answer."""
        return np.array(self._lengths, np.int64)

    @cached_property
    def prompts(self) -> Ints:
        """A number for each answer, the same for those to one prompt."""
        return np.asarray(np.unique(np.array(self._prompts, np.uint64), return_inverse=True)[1], np.int64)

    @cached_property
    def pairs(self) -> Pairs:
        better = np.array(self._better, np.int64)
        weights = np.array(self._weights, np.float64)
        return Pairs(better, np.array(self._worse, np.int64), weights, self.prompts[better])

    @cached_property
    def sides(self) -> Floats:
        """Of each answer, its wins less its losses as a share of the row's pairs: above 0 it is a better one, under 0 a
        worse one."""
        out = np.zeros(self.answers)
        np.add.at(out, self.pairs.better, self.pairs.weight)
        np.add.at(out, self.pairs.worse, -self.pairs.weight)
        return out


def answer_text(content: Content) -> str:
    """The text that an answer begins with: of a conversation its first turn by the assistant."""
    return content if isinstance(content, str) else as_turns(content)[0].content


def pairs_of(scores: Sequence[float]) -> Iterator[tuple[int, int]]:
    """(better, worse), by their scores."""
    for i, better in enumerate(scores):
        for j, worse in enumerate(scores):
            if better > worse:
                yield i, j
