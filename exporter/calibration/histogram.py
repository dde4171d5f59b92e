"""A histogram that grows by batches."""

from __future__ import annotations

import numpy as np

from bench.arrays import Array

BINS = 2048


class Histogram:
    """Counts of values in `BINS` equal bins between two bounds that are known beforehand.

    Attributes:
        lowest, highest: the bounds; every value added lies between them.
        counts: values per bin, [BINS].
    """

    def __init__(self, lowest: float, highest: float) -> None:
        if not (np.isfinite(lowest) and np.isfinite(highest) and lowest <= highest):
            raise ValueError(f"no range: {lowest} ... {highest}")
        self.lowest, self.highest = float(lowest), float(highest)
        self.counts = np.zeros(BINS, np.int64)
        span = self.highest - self.lowest
        # Below this, bins are narrower than float32 can number: all values share the first.
        narrow = span < BINS / float(np.finfo(np.float32).max)
        self._scale = np.float32(0) if narrow else np.float32(BINS / span)

    def add(self, values: Array) -> None:
        """Count values.

        One multiplication, one cast and one count per value: `numpy.histogram` searches for the bin edge
        that rounding put on the wrong side, which no range method can see.
        """
        position = np.subtract(values.reshape(-1), np.float32(self.lowest), dtype=np.float32)
        np.multiply(position, self._scale, out=position)
        np.minimum(position, np.float32(BINS - 1), out=position)
        self.counts += np.bincount(position.astype(np.int64), minlength=BINS)

    def edges(self) -> Array:
        """The bounds of the bins, [BINS + 1]."""
        return np.linspace(self.lowest, self.highest, BINS + 1)
