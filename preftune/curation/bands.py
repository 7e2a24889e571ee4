"""Which signatures share a band, in a few hundred bytes each: the index behind `preftune.curation.near`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FIRST = 1 << 10
_END = -1


class BandIndex:
    """MinHash signatures by their bands of rows (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).

    Every band of a signature is hashed to 32 bits. Signatures whose hash falls into one slot of their band's table are
    chained, the latest first; those of a chain that have the same 32 bits share the band. That two bands differ and
    share them costs a comparison and nothing else.

    Memory: 12 to 24 bytes for each band of each signature.

    Args:
        count: bands of a signature.
        rows: hash values of a band.
    """

    def __init__(self, count: int, rows: int) -> None:
        self._rows, self._bands = rows, np.arange(count)
        self._weights = np.random.default_rng(7).integers(1, 1 << 63, rows, dtype=np.uint64) | np.uint64(1)
        self._size = 0
        self._keys = np.empty((_FIRST, count), np.uint32)
        self._next = np.empty((_FIRST, count), np.int32)
        self._heads = np.full((count, _FIRST), _END, np.int32)

    def __len__(self) -> int:
        return self._size

    def add(self, signature: NDArray[np.uint64]) -> int:
        """Take a signature in, [permutations]. Returns its number, counted from 0."""
        if self._size == len(self._keys):
            self._grow()
        keys, place = self._hashed(signature), self._size
        slots = keys & np.uint32(self._heads.shape[1] - 1)
        self._keys[place] = keys
        self._next[place] = self._heads[self._bands, slots]
        self._heads[self._bands, slots] = place
        self._size += 1
        return place

    def find(self, signature: NDArray[np.uint64]) -> list[int]:
        """Numbers of the signatures that share a band with this one, ascending."""
        keys, bands = self._hashed(signature), self._bands
        places = self._heads[bands, keys & np.uint32(self._heads.shape[1] - 1)]
        found: set[int] = set()
        while (there := places != _END).any():
            places, bands, keys = places[there], bands[there], keys[there]
            found.update(places[self._keys[places, bands] == keys].tolist())
            places = self._next[places, bands]
        return sorted(found)

    def _hashed(self, signature: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """[permutations] → [bands]; what is over is left out."""
        rows = signature[: len(self._bands) * self._rows].reshape(len(self._bands), self._rows)
        mixed = ((rows + np.uint64(1)) * self._weights).sum(axis=1, dtype=np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * self._weights[0]
        keys: NDArray[np.uint32] = (mixed >> np.uint64(32)).astype(np.uint32)
        return keys

    def _grow(self) -> None:
        """Twice as many slots, and half as much room again for signatures; chains are made anew."""
        more = self._size // 2
        self._keys = np.concatenate([self._keys, np.empty((more, len(self._bands)), np.uint32)])
        self._next = np.concatenate([self._next, np.empty((more, len(self._bands)), np.int32)])
        if self._heads.shape[1] > self._size:
            return
        slots = self._heads.shape[1] * 2
        self._heads = np.full((len(self._bands), slots), _END, np.int32)
        for band in self._bands:
            slot = self._keys[: self._size, band] & np.uint32(slots - 1)
            order = np.argsort(slot, kind="stable").astype(np.int32)
            before = np.concatenate([[_END], order[:-1]]).astype(np.int32)
            first = np.concatenate([[True], slot[order][1:] != slot[order][:-1]])
            self._next[order, band] = np.where(first, _END, before)
            self._heads[band, slot] = np.arange(self._size, dtype=np.int32)  # of equal slots the last one stays
