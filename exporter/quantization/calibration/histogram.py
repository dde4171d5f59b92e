"""Histograms of a tensor's values, filled batch by batch without knowing the bounds beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.core.arrays import Array

BINS = 2048
_SIDE = 2 * BINS
_SIDE_BITS = _SIDE.bit_length() - 1
_FINEST = int(np.finfo(np.float32).minexp)  # 2^-_FINEST, the scale, still fits in float32
# Values processed together. Their bin numbers, 8 bytes each, fit in the L2 cache.
_CHUNK = 2**15
# ReLU produces runs of zeros, and a counter that was just written is slow to read again. Neighbouring
# values are therefore counted in separate tables. (7 million values of EfficientNet-Lite0: 11.5 instead of
# 15 ms.)
_LANES = 4
_LANES_FROM = 2**16  # values; an activation of this size takes as much memory as the tables


@dataclass(frozen=True)
class Histogram:
    """The distribution of a tensor's observed values.

    Attributes:
        lowest, highest: the smallest and the largest value.
        first: the number of the first bin. Bin k holds `width * k <= value < width * (k + 1)`, so zero is
            always on an edge.
        width: the width of a bin, a power of two. There are at least `BINS` and fewer than 2 x `BINS` bins
            between zero and the value farthest from it.
        counts: values per bin [bins], from the bin of `lowest` to the bin of `highest`.
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
        weight: the weight of each batch in an exponential moving average of the batches' extremes; None for
            the extremes of all values.

    Attributes:
        lowest, highest: the smallest and the largest value so far.
    """

    def __init__(self, weight: float | None = None) -> None:
        self.lowest, self.highest = np.inf, -np.inf
        self._weight = weight

    def add(self, values: Array) -> None:
        """Record the extremes of a batch.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("the values contain NaN or infinity")
        if self._weight is not None and self.lowest <= self.highest:
            self.lowest += self._weight * (low - self.lowest)
            self.highest += self._weight * (high - self.highest)
        else:
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)


class GrowingHistogram:
    """Counts all added values in memory that does not grow.

    The width of the bins is the smallest power of two for which `_SIDE` bins on either side of zero cover
    every value so far. If a larger value arrives, neighbouring bins are merged. Scaling by a power of two
    is exact, and so is merging. The counts therefore do not depend on the order or the size of the batches.
    """

    def __init__(self) -> None:
        self._extremes = Extremes()
        self._exponent = _FINEST
        self._lanes = np.zeros((1, 2 * _SIDE), np.int64)

    def add(self, values: Array) -> None:
        """Count values, float32 of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
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
            # numpy.bincount takes twice the time, because it first finds the smallest and largest number.
            np.add.at(counts, n, 1)

    def histogram(self) -> Histogram:
        """Return the histogram of all values so far.

        Raises:
            ValueError: no values were added.
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
        """Widen the bins until `_SIDE` bins on one side cover `farthest`."""
        if farthest < 2.0**self._exponent * _SIDE:
            return
        exponent = int(np.frexp(farthest)[1]) - _SIDE_BITS  # farthest < 2^frexp
        factor = 2 ** min(exponent - self._exponent, _SIDE_BITS)  # at least one bin per side remains
        merged = self._lanes.reshape(len(self._lanes), -1, factor).sum(axis=2)
        self._lanes = np.zeros_like(self._lanes)
        start = _SIDE - merged.shape[1] // 2
        self._lanes[:, start : start + merged.shape[1]] = merged
        self._exponent = exponent


@cache
def _offsets(lanes: int) -> Array:
    """For each value of a chunk, the index of bin 0 in the table for it; exact in float32, [_CHUNK]."""
    return np.tile(np.arange(lanes, dtype=np.float32) * (2 * _SIDE) + _SIDE, _CHUNK // lanes)
