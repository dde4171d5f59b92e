"""The distance between calibration and evaluation samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ks_2samp

from exporter.inspection.drift import Drift, drifts

floats = st.floats(-10, 10, width=32)


def images(count, seed, scale=1.0, shift=0.0):
    generator = np.random.default_rng(seed)
    levels = generator.normal(0, 0.3, (count, 1, 1, 1))
    return (scale * (generator.normal(0, 1, (count, 3, 16, 16)) + levels) + shift).astype(np.float32)


@given(arrays(np.float32, (5, 7), elements=floats), arrays(np.float32, (3, 7), elements=floats))
def test_the_distance_equals_scipys_kolmogorov_smirnov_statistic(one, other):
    found = drifts({"x": one}, {"x": other})[0].distance
    assert found == pytest.approx(ks_2samp(one.ravel(), other.ravel()).statistic)


def test_two_draws_from_one_distribution_are_not_far():
    found = drifts({"image": images(64, 0)}, {"image": images(200, 1)})
    assert [drift.name for drift in found] == ["image"]
    assert not found[0].is_far


@pytest.mark.parametrize(("scale", "shift"), [(0.25, 0.0), (1.0, 1.0), (255.0, 0.0)])
def test_another_normalisation_is_far(scale, shift):
    assert drifts({"image": images(64, 0)}, {"image": images(64, 1, scale, shift)})[0].is_far


def test_a_distance_is_not_far_if_calibration_halves_differ_too():
    assert not Drift("x", distance=0.3, own=0.2).is_far
    assert Drift("x", distance=0.3, own=0.05).is_far


def test_a_single_sample_and_token_ids_can_be_compared():
    ids = np.arange(32, dtype=np.int64)[None]
    assert drifts({"ids": ids}, {"ids": ids})[0] == Drift("ids", 0.0, 0.0)
    assert drifts({"ids": ids}, {"ids": ids + 100})[0].distance == 1.0


def test_inputs_that_only_one_side_has_are_ignored():
    assert drifts({"x": images(2, 0)}, {}) == ()
