"""Intervals of means over seeds, compared with scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from exporter.training.stages.seed_interval import mean_interval, student_quantile


@given(st.integers(1, 200), st.floats(0.5, 0.9999))
def test_quantiles(freedom, probability):
    expected = stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_intervals(values):
    found = mean_interval(values, 0.025)
    mean, half = stats.tmean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    assert found.estimate == pytest.approx(mean, abs=1e-9)
    assert (found.lower, found.upper) == pytest.approx((mean - half, mean + half), abs=1e-9)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="an interval needs at least 2 values, not 1"):
        mean_interval([0.5], 0.025)
