"""The ratio of paired times: its interval contains the true ratio as often as it states."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.core.paired_ratio import ratio_interval


def drawn(generator, count, *, ratio, outliers=0.0):
    """Times of two models in blocks on a machine that gets slower and sometimes interrupts one of them."""
    slowness = np.exp(np.cumsum(generator.normal(0, 0.02, count)))
    noise = generator.normal(0, 0.01, (2, count))
    times = np.exp(noise) * slowness * 1e6
    times *= np.where(generator.random((2, count)) < outliers, 5.0, 1.0)
    return times[0] * ratio, times[1]


@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("count", [11, 45])
def test_the_interval_contains_the_true_ratio(count, outliers):
    generator = np.random.default_rng(0)
    tries = 1000
    missed = 0
    for _ in range(tries):
        found = ratio_interval(*drawn(generator, count, ratio=1.2, outliers=outliers))
        missed += not found.lower <= 1.2 <= found.upper
    assert missed / tries <= 0.018  # 1 % and three standard deviations for 1000 tries


def test_bounds_are_narrow_despite_outliers():
    found = ratio_interval(*drawn(np.random.default_rng(1), 45, ratio=1.05, outliers=0.05))
    assert 1.03 < found.lower < found.estimate < found.upper < 1.07


def test_few_pairs_have_no_bounds():
    found = ratio_interval(np.full(7, 2.0), np.full(7, 1.0))
    assert (found.lower, found.upper) == (0.0, math.inf)
    assert found.estimate == pytest.approx(2.0)
