"""The index of bands finds exactly the signatures that share a band, however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from preftune.curation.bands import BandIndex


@pytest.mark.parametrize(("bands", "rows"), [(1, 4), (21, 6), (16, 1)])
def test_against_every_comparison(bands: int, rows: int) -> None:
    rng = np.random.default_rng(bands)
    # few values, so that bands are shared often, also by chance; more signatures than the first tables hold
    signatures = rng.integers(0, 4 if rows > 1 else 3000, (2500, bands * rows + 2), dtype=np.uint64)
    index = BandIndex(bands, rows)
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    for number, signature in enumerate(signatures):
        if number % 250 == 249 or number < 5:
            shared = (cut[:number] == cut[number]).all(axis=2).any(axis=1)
            assert index.find(signature) == np.flatnonzero(shared).tolist()
        assert index.add(signature) == number
    assert len(index) == 2500


def test_large_values_do_not_overflow_into_each_other() -> None:
    index = BandIndex(2, 2)
    top = np.iinfo(np.uint64).max
    index.add(np.array([top, top, 0, 0], np.uint64))
    assert index.find(np.array([0, 0, top, top], np.uint64)) == []
    assert index.find(np.array([top, top, 5, 5], np.uint64)) == [0]
