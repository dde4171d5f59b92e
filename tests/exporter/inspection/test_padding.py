"""Positions of padding, as the inputs state them."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.inspection.padding import real_positions, without_padding

RIGHT = np.array([[1, 1, 0], [1, 1, 1]])
IDS = np.array([[5, 6, 0], [7, 8, 9]])


@pytest.mark.parametrize("mask", [RIGHT, RIGHT[:, ::-1], np.array([[1, 1, 0], [0, 0, 0]])])
@pytest.mark.parametrize("kind", [np.int64, np.float32, bool])
@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "AttentionMask"])
def test_a_mask_of_padding_is_recognised(mask, kind, name):
    found = real_positions({"input_ids": IDS, name: mask.astype(kind)})
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask.astype(bool))


@pytest.mark.parametrize(
    "feeds",
    [
        {"input_ids": RIGHT},
        {"mask": np.array([[1, 0, 1], [1, 1, 1]])},
        {"mask": RIGHT, "other_mask": RIGHT},
        {"mask": RIGHT * 2},
        {"mask": RIGHT[0]},
        {"mask": np.ones((2, 1, 3, 3))},
        {"mask": np.zeros((2, 3), int)},
        {"mask": np.zeros((0, 3), int)},
        {"mask": np.array([["a", "b"]])},
    ],
)
def test_other_inputs_state_no_padding(feeds):
    assert real_positions(feeds) is None


def test_only_outputs_with_these_positions_are_cleared():
    real, states = RIGHT.astype(bool), np.arange(12.0).reshape(2, 3, 2)
    cleared = without_padding(states, real)
    assert not cleared[0, 2].any()
    np.testing.assert_array_equal(cleared[real], states[real])
    assert states[0, 2].any()
    assert without_padding(states, None) is states
    pooled = np.ones((2, 4))
    assert without_padding(pooled, real) is pooled
