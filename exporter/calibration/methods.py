"""From what a tensor was seen to hold to the range that 8 bits shall cover.

A narrower range rounds finer and cuts off more. Each method weighs the two in its own way. All keep zero
inside the range, because ONNX represents zero exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.arrays import Array
from exporter.calibration.histogram import BINS, Histogram

LEVELS = 256
_CANDIDATES = 64


@dataclass(frozen=True)
class Range:
    """The real values that the lowest and the highest integer stand for."""

    lowest: float
    highest: float

    def with_zero(self) -> Range:
        """The range, widened to hold zero."""
        return Range(min(self.lowest, 0.0), max(self.highest, 0.0))


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Cut off (100 - percentile) / 2 percent of the values at each end that is not zero."""
    tail = (1 - percentile / 100) / 2
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = histogram.edges()
    first = int(np.searchsorted(share, tail, side="right"))
    last = min(int(np.searchsorted(share, 1 - tail, side="left")), BINS - 1)
    return Range(float(edges[first]), float(edges[last + 1])).with_zero()


def mse_range(histogram: Histogram) -> Range:
    """The range of least mean squared error, over a grid of lower and upper ends.

    Inside, rounding to steps of d = (highest - lowest) / 255 errs by d^2 / 12 on average (uniform within
    a step: Widrow & Kollar, "Quantization Noise", 2008, section 1); outside, a value errs by its distance
    to the range.
    """
    counts, edges = histogram.counts.astype(np.float64), histogram.edges()
    centres = (edges[:-1] + edges[1:]) / 2
    lows = np.linspace(min(histogram.lowest, 0.0), 0.0, _CANDIDATES, endpoint=False)
    highs = np.linspace(max(histogram.highest, 0.0), 0.0, _CANDIDATES, endpoint=False)
    below = np.square(np.minimum(centres[None, :] - lows[:, None], 0.0)) @ counts
    above = np.square(np.maximum(centres[None, :] - highs[:, None], 0.0)) @ counts
    step = (highs[None, :] - lows[:, None]) / (LEVELS - 1)
    error = below[:, None] + above[None, :] + step**2 / 12 * counts.sum()
    error[step <= 0] = np.inf
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return Range(float(lows[low]), float(highs[high]))


def entropy_range(histogram: Histogram) -> Range:
    """The range whose 256 levels keep most information (least Kullback-Leibler divergence).

    Migacz, "8-bit inference with TensorRT" (GTC 2017): for each candidate, P is the distribution inside
    the range with the cut-off mass put on the outermost bins, Q is the distribution inside the range,
    without that mass, merged into 256 levels and spread again over the bins that are not empty. The
    candidates shrink the threshold |x| <= t, and each end stops where the data do.

    The bin of zero counts as its neighbours do: zero is represented exactly in every range, and the peak
    that ReLU leaves there would otherwise speak for the narrowest range, in which it is spread least.
    """
    edges = histogram.edges()
    counts = _without_peak_at_zero(histogram)
    limit = max(abs(histogram.lowest), abs(histogram.highest))
    best, best_divergence = Range(histogram.lowest, histogram.highest), np.inf
    for share in np.linspace(1.0, 1.0 / 8, 2 * _CANDIDATES):
        threshold = share * limit
        first = int(np.searchsorted(edges, -threshold, side="left"))
        last = int(np.searchsorted(edges, threshold, side="right")) - 1
        if last - first < LEVELS:
            break
        divergence = _divergence(counts, first, last)
        if divergence < best_divergence:
            best, best_divergence = Range(float(edges[first]), float(edges[last])), divergence
    return best.with_zero()


def _without_peak_at_zero(histogram: Histogram) -> Array:
    counts = histogram.counts.astype(np.float64)
    if histogram.lowest <= 0.0 <= histogram.highest:
        span = histogram.highest - histogram.lowest
        zero = min(int(-histogram.lowest / span * BINS), BINS - 1)
        neighbours = counts[[i for i in (zero - 1, zero + 1) if 0 <= i < BINS]]
        counts[zero] = neighbours.mean()
    return counts


def _divergence(counts: Array, first: int, last: int) -> float:
    """KL(P || Q) of keeping bins first ... last - 1."""
    inside = counts[first:last]
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    if not inside.any():
        return float("inf")
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = inside > 0
    mass = np.bincount(level, weights=inside, minlength=LEVELS)
    members = np.bincount(level, weights=filled, minlength=LEVELS)
    spread = np.where(filled, mass[level] / np.maximum(members[level], 1), 0.0)
    p, q = reference / reference.sum(), spread / spread.sum()
    seen = p > 0
    # Mass that was cut off onto a bin that is empty inside would count as infinite; a floor keeps it dear.
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
