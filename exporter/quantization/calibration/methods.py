"""Choose the range that 8 bits cover from the histogram of a tensor.

A narrower range rounds more finely and clips more values. The methods differ in how they weigh these two
errors. All keep zero inside the range, because ONNX represents zero exactly.
"""

from __future__ import annotations

import math

import numpy as np

from bench.core.arrays import Array
from exporter.graphs.ranges import Range
from exporter.quantization.calibration.histogram import Histogram

LEVELS = 256
_CANDIDATES = 64


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Clip (100 - percentile) / 2 percent of the values at each end of the range that is not zero."""
    tail = (1 - percentile / 100) / 2
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = histogram.edges()
    first = int(np.searchsorted(share, tail, side="right"))
    last = min(int(np.searchsorted(share, 1 - tail, side="left")), len(share) - 1)
    return _within(histogram, edges[first], edges[last + 1]).with_zero()


def mse_range(histogram: Histogram) -> Range:
    """The range with the lowest mean squared error, over a grid of lower and upper ends.

    The distance of two levels is d = (highest - lowest) / 255. The mean squared rounding error of a value
    inside the range is d^2 / 12 (uniform between levels: Widrow & Kollar, "Quantization Noise", 2008,
    section 1). The error of a value outside is its distance to the range.
    """
    counts, edges = histogram.counts.astype(np.float64), histogram.edges()
    centres = (edges[:-1] + edges[1:]) / 2
    lows = np.linspace(min(histogram.lowest, 0.0), 0.0, _CANDIDATES, endpoint=False)
    highs = np.linspace(max(histogram.highest, 0.0), 0.0, _CANDIDATES, endpoint=False)
    below = np.square(np.minimum(centres[None, :] - lows[:, None], 0.0)) @ counts
    above = np.square(np.maximum(centres[None, :] - highs[:, None], 0.0)) @ counts
    distance = (highs[None, :] - lows[:, None]) / (LEVELS - 1)
    error = below[:, None] + above[None, :] + distance**2 / 12 * counts.sum()
    error[distance <= 0] = np.inf
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return Range(float(lows[low]), float(highs[high]))


def entropy_range(histogram: Histogram) -> Range:
    """The range whose 256 levels keep the most information (least Kullback-Leibler divergence).

    The method is from Migacz, "8-bit inference with TensorRT" (GTC 2017). For each candidate range:

    - P is the distribution inside the range, with the clipped mass added to the outermost bins.
    - Q is the distribution inside the range without the clipped mass, merged into 256 levels and spread
      again over the bins that are not empty.

    The candidates are |x| <= t with a decreasing threshold t, and no end exceeds the data.

    The count of the bin at zero is replaced by the mean of its neighbours. Zero is represented exactly in
    every range, and the peak that ReLU creates there would otherwise favour the narrowest range, in which
    it is spread least.
    """
    edges = histogram.edges()
    divergences = Divergences(_without_peak_at_zero(histogram))
    limit = max(abs(edges[0]), abs(edges[-1]))
    best, best_divergence = Range(histogram.lowest, histogram.highest), np.inf
    for share in np.linspace(1.0, 1.0 / 8, 2 * _CANDIDATES):
        first = int(np.searchsorted(edges, -share * limit, side="left"))
        last = int(np.searchsorted(edges, share * limit, side="right")) - 1
        if last - first < LEVELS:
            break
        divergence = divergences.of(first, last)
        if divergence < best_divergence:
            best, best_divergence = _within(histogram, edges[first], edges[last]), divergence
    return best.with_zero()


def _within(histogram: Histogram, low: float, high: float) -> Range:
    """The range between two bin edges, limited to the data; an edge may be slightly beyond them."""
    return Range(max(float(low), histogram.lowest), min(float(high), histogram.highest))


def _without_peak_at_zero(histogram: Histogram) -> Array:
    """The counts, except that the bin that begins at zero gets the mean of its neighbours."""
    counts = histogram.counts.astype(np.float64)
    zero = -histogram.first
    if 0 <= zero < len(counts):
        neighbours = counts[[i for i in (zero - 1, zero + 1) if 0 <= i < len(counts)]]
        counts[zero] = neighbours.mean() if len(neighbours) else counts[zero]
    return counts


class Divergences:
    """KL(P || Q) for many candidate ranges of one histogram.

    The time for each candidate depends only on the number of levels. Let n be the mass of a bin of P, N the
    sum of P, and M the sum of Q. Let q be the mass of the bin's level in Q, divided by the level's number
    of filled bins. The divergence is the sum over bins of n/N log((n/N) / (q/M)). It splits into sums over
    bins of n log n and sums over levels of n. Both are differences of running sums. The two outermost bins,
    which hold the clipped mass, are added separately.
    """

    _FLOOR = 1e-12  # lowest value of Q; keeps the cost finite if mass is clipped onto a bin that is empty

    def __init__(self, counts: Array) -> None:
        self._counts = counts
        self._mass = _running(counts)
        self._filled = _running(counts > 0)
        self._information = _running(_x_log_x(counts))

    def of(self, first: int, last: int) -> float:
        """The divergence if bins first ... last - 1 are kept; these must be at least `LEVELS` bins."""
        # Bin i belongs to level i * LEVELS // size; a level begins at bin ceil(level * size / LEVELS).
        bounds = first - (-np.arange(LEVELS + 1) * (last - first) // LEVELS)
        mass = np.diff(self._mass[bounds])
        total, kept = self._mass[-1], mass.sum()
        if kept == 0:
            return math.inf
        log_q = np.log(np.maximum(mass / np.maximum(np.diff(self._filled[bounds]), 1) / kept, self._FLOOR))
        information = self._information[last] - self._information[first]
        cross = mass @ log_q
        for bin_, level, cut_off in (
            (first, 0, self._mass[first]),
            (last - 1, LEVELS - 1, total - self._mass[last]),
        ):
            inside = self._counts[bin_]
            information += _x_log_x(inside + cut_off) - _x_log_x(inside)
            cross += cut_off * (log_q[level] if inside > 0 else math.log(self._FLOOR))
        return float(information / total - math.log(total) - cross / total)


def _running(values: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(values: Array) -> Array:
    """Compute x log x of each value, with 0 log 0 = 0."""
    return values * np.log(np.maximum(values, np.finfo(np.float64).tiny))
