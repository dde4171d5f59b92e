"""Counting the values of a tensor batch by batch, without knowing their bounds beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.core.arrays import Array

BINS = 2048
_SIDE = 2 * BINS
_SIDE_BITS = _SIDE.bit_length() - 1
_FINEST = int(np.finfo(np.float32).minexp)  # 2^-FINEST is still a float32
# Values worked on together: their bins, 8 bytes each, stay in the second-level cache.
_CHUNK = 2**15
# ReLU leaves zeros in rows, and a counter that was just written is slow to read again: neighbours count in
# turn in tables of their own. (7 million values of EfficientNet-Lite0: 11.5 instead of 15 ms.)
_LANES = 4
_LANES_FROM = 2**16  # values; their activations take as much memory as these tables


@dataclass(frozen=True)
class Histogram:
    """How often a tensor was seen to hold what.

    Attributes:
        lowest, highest: the smallest and the largest value.
        first: the number of the first bin; bin k holds `width * k <= value < width * (k + 1)`, so that
            zero always lies on an edge.
        width: of a bin, a power of two. Between zero and the value farthest from it lie at least `BINS`
            bins and fewer than twice as many.
        counts: values per bin [bins], from that of `lowest` to that of `highest`.
    """

    lowest: float
    highest: float
    first: int
    width: float
    counts: Array

    def edges(self) -> Array:
        """The bounds of the bins, [bins + 1]."""
        return (self.first + np.arange(len(self.counts) + 1)) * self.width


class Extremes:
    """The smallest and the largest value added.

    Args:
        weight: of each batch in an exponential moving average of the batches' extremes; None to take those
            of all values.

    Attributes:
        lowest, highest: so far.
    """

    def __init__(self, weight: float | None = None) -> None:
        self.lowest, self.highest = np.inf, -np.inf
        self._weight = weight

    def add(self, values: Array) -> None:
        """Take in a batch.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN or infinity has no range")
        if self._weight is not None and self.lowest <= self.highest:
            self.lowest += self._weight * (low - self.lowest)
            self.highest += self._weight * (high - self.highest)
        else:
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)


class GrowingHistogram:
    """Counts of all values added, in memory that does not grow.

    The width of the bins is the smallest power of two with which `_SIDE` bins on either side of zero hold
    every value so far. When a larger one comes, neighbouring bins are merged. Scaling by a power of two
    and merging round nothing, so that the counts do not depend on the order or the cut of the batches.
    """

    def __init__(self) -> None:
        self._extremes = Extremes()
        self._exponent = _FINEST
        self._lanes = np.zeros((1, 2 * _SIDE), np.int64)

    def add(self, values: Array) -> None:
        """Count values, float32 of any shape.

        Raises:
            ValueError: one is NaN or infinite.
        """
        self._extremes.add(values)
        self._grow(max(-self._extremes.lowest, self._extremes.highest))
        flat = values.reshape(-1)
        if flat.size >= _LANES_FROM and len(self._lanes) < _LANES:
            self._lanes = np.concatenate([self._lanes, np.zeros((_LANES - 1, 2 * _SIDE), np.int64)])
        counts, offsets = self._lanes.reshape(-1), _offsets(len(self._lanes))
        scale = np.float32(2.0**-self._exponent)
        position = np.empty(min(flat.size, _CHUNK), np.float32)
        number = np.empty(position.shape, np.int64)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            p, n = position[: part.size], number[: part.size]
            np.multiply(part, scale, out=p)
            np.floor(p, out=p)
            np.add(p, offsets[: part.size], out=p)
            n[:] = p
            # Half the time of numpy.bincount, which looks for the smallest and largest number first.
            np.add.at(counts, n, 1)

    def histogram(self) -> Histogram:
        """What was counted.

        Raises:
            ValueError: nothing was.
        """
        counts = self._lanes.sum(axis=0)
        seen = np.flatnonzero(counts)
        if not len(seen):
            raise ValueError("no values were added")
        first, last = int(seen[0]), int(seen[-1])
        return Histogram(
            self._extremes.lowest,
            self._extremes.highest,
            first - _SIDE,
            2.0**self._exponent,
            counts[first : last + 1],
        )

    def _grow(self, farthest: float) -> None:
        """Widen the bins until `_SIDE` of them reach beyond `farthest`."""
        if farthest < 2.0**self._exponent * _SIDE:
            return
        exponent = int(np.frexp(farthest)[1]) - _SIDE_BITS  # farthest < 2^frexp
        factor = 2 ** min(exponent - self._exponent, _SIDE_BITS)  # a side of one bin merges no further
        merged = self._lanes.reshape(len(self._lanes), -1, factor).sum(axis=2)
        self._lanes = np.zeros_like(self._lanes)
        start = _SIDE - merged.shape[1] // 2
        self._lanes[:, start : start + merged.shape[1]] = merged
        self._exponent = exponent


@cache
def _offsets(lanes: int) -> Array:
    """Where the numbers of bins start for each value of a chunk, float32 and exact, [_CHUNK]."""
    return np.tile(np.arange(lanes, dtype=np.float32) * (2 * _SIDE) + _SIDE, _CHUNK // lanes)
