"""Openings that mark nothing as long as clearer ones are there, and would once those are gone.

"Sure," begins most better answers, "Well," some of those that don't begin with "Sure,", on either side alike. Take
"Sure," off, and "Well," is left on one better answer for six worse ones: it marks the worse side as "Sure," marked the
better one. What stood behind a stripped opening ("I'd be happy to") may come to light as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from preftune.curation.debias.evidence import Counts, Mark, Thresholds, find_marks, sign_test
from preftune.curation.debias.openings import Words

HIDDEN = 0.05
"""An opening whose p-value among pairs without the stripped ones is under this marked its side before."""


def find_leftovers(
    before: Counts, after: Counts, gone: Iterable[Words], known: Collection[Words], thresholds: Thresholds
) -> list[Mark]:
    """Those that mark a side after stripping, and did not before.

    Args:
        before, after: of the rows as they came and of the stripped ones.
        gone: openings that were stripped.
        known: openings that were judged already.

    Returns:
        Marks of the stripped rows; `left` is what they won and lost before, in pairs without a stripped opening.
    """
    table = before.table
    taken = np.zeros(table.answers, bool)
    for words in gone:
        node = table.tree.find(words)
        if node:
            taken |= before.begins(node)
    won, lost = before.decided(table.pairs.where(~(taken[table.pairs.better] | taken[table.pairs.worse])))
    out = []
    for mark in find_marks(after, thresholds)[0]:
        if mark.frequency.words in known:
            continue
        node = table.tree.find(mark.frequency.words)
        left = (int(won[node]), int(lost[node])) if node else (0, 0)
        own = sign_test(*left) <= HIDDEN and (left[0] > left[1]) == (mark.side == "better")
        if not own:
            out.append(replace(mark, left=left))
    return out
