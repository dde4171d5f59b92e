"""Confidence interval of a mean over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.core.statistics import Interval


def mean_interval(values: Sequence[float], alpha: float) -> Interval:
    """Mean of at least two values, with one-sided (1 - alpha) bounds from Student's t distribution.

    Each value is a mean over many samples, so its distribution is close to normal. With as few as three
    seeds, a rank method would give no useful bounds. (Student, "The probable error of a mean", 1908.)
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, not {len(values)}")
    numbers = np.asarray(values, dtype=np.float64)
    half = (
        student_quantile(1 - alpha, len(numbers) - 1) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    )
    mean = float(numbers.mean())
    return Interval(mean, mean - half, mean + half)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with `freedom` degrees of freedom.

    Args:
        probability: at least 0.5.
        freedom: degrees of freedom.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + _within(middle, freedom)) / 2 < probability else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < tan(angle) * sqrt(freedom)): Abramowitz & Stegun (1964), 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
