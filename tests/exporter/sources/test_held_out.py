"""Samples that are left out of calibration."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.sources.held_out import (
    Without,
    rows_that_judge,
    rows_to_hold_out,
    rows_to_judge,
    take_rows,
)
from exporter.sources.splits import ArraySamples


def samples(count):
    return ArraySamples({"x": np.arange(count), "y": -np.arange(count)})


@pytest.mark.parametrize(("count", "held"), [(63, 0), (64, 16), (128, 16), (200, 25), (1000, 32)])
def test_an_eighth_is_held_out_if_there_are_enough(count, held):
    rows = rows_to_hold_out(count)
    assert len(rows) == len(set(rows)) == held
    assert list(rows) == sorted(rows)
    assert all(0 <= row < count for row in rows)


def test_the_rows_are_spread_over_the_set():
    assert rows_to_hold_out(64) == tuple(range(0, 64, 4))


@pytest.mark.parametrize(("count", "batch", "held"), [(64, 4, 16), (66, 6, 12), (64, 64, 0), (128, 64, 64)])
def test_whole_fixed_batches_are_held_out(count, batch, held):
    rows = rows_to_hold_out(count, batch)
    assert len(rows) == held
    assert [row % batch for row in rows] == list(range(batch)) * (held // batch)


def test_whole_groups_are_held_out():
    groups = np.repeat(["a", "b", "c", "d"], [30, 40, 20, 10])
    rows = rows_to_hold_out(100, groups=groups)
    assert set(groups[list(rows)]) == {"c", "d"}
    assert len(rows) == 30


def test_with_one_large_group_nothing_is_held_out():
    assert rows_to_hold_out(100, groups=np.array(["a"] * 100)) == ()


@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_the_other_samples_come_in_full_batches(size):
    left = Without(samples(50), (0, 10, 49))
    found = list(left.batches(size))
    sizes = [len(feeds["x"]) for feeds in found]
    assert left.count == sum(sizes) == 47
    assert all(one == size for one in sizes[:-1])
    values = np.concatenate([feeds["x"] for feeds in found])
    np.testing.assert_array_equal(values, np.setdiff1d(np.arange(50), [0, 10, 49]))
    np.testing.assert_array_equal(values, -np.concatenate([feeds["y"] for feeds in found]))


def test_all_samples_may_be_left_out():
    assert list(Without(samples(3), (0, 1, 2)).batches(2)) == []


def test_rows_are_taken_from_all_batches():
    np.testing.assert_array_equal(take_rows(samples(50), (0, 15, 16, 49))["x"], [0, 15, 16, 49])


@pytest.mark.parametrize(
    ("count", "batch", "rows"), [(5, None, 5), (100, None, 32), (12, 4, 4), (3, 4, 3), (1, None, 1)]
)
def test_without_held_out_samples_some_judge_again(count, batch, rows):
    found = rows_to_judge(count, batch)
    assert len(set(found)) == rows
    assert max(found) < count


def test_at_most_32_rows_of_whole_groups_judge():
    assert rows_that_judge(range(100, 110)) == tuple(range(100, 110))
    found = rows_that_judge(range(100, 200))
    assert (len(found), found[0]) == (32, 100)
    assert rows_that_judge(()) == ()
