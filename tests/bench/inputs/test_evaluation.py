"""Labelled samples, and the errors of bad files."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core.arrays import write_npz
from bench.core.errors import DataError
from bench.inputs.evaluation import EvaluationSet, open_samples, read_evaluation, write_evaluation

FEEDS = np.arange(12, dtype=np.float32).reshape(6, 2)
LABELS = np.arange(6)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluation.npz"


@pytest.mark.parametrize(
    ("labels", "ids"), [(None, None), (LABELS, None), (LABELS, np.array(list("abcdef")))]
)
def test_a_written_set_is_read_back(path, labels, ids):
    write_evaluation(path, EvaluationSet({"x": FEEDS}, labels, ids))
    read = read_evaluation(path)
    assert read.count == 6
    assert list(read.feeds) == ["x"]
    np.testing.assert_array_equal(read.feeds["x"], FEEDS)
    for got, want in ((read.labels, labels), (read.ids, ids)):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(got, want)


def test_the_first_rows_of_all_arrays_are_read(path):
    write_evaluation(path, EvaluationSet({"x": FEEDS}, LABELS, None))
    read = read_evaluation(path, rows=4)
    assert read.count == 4
    np.testing.assert_array_equal(read.feeds["x"], FEEDS[:4])
    np.testing.assert_array_equal(read.labels, LABELS[:4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_feeds_must_be_finite(path, bad):
    feeds = FEEDS.copy()
    feeds[3, 1] = bad
    write_npz(path, {"x": feeds})
    with pytest.raises(DataError, match="feed 'x' holds NaN or infinity; clean the data"):
        read_evaluation(path)
    batches = open_samples(path).batches(2)
    next(batches)
    with pytest.raises(DataError, match="feed 'x' holds NaN or infinity; clean the data"):
        next(batches)


def test_a_last_value_that_is_not_finite_is_found(path, monkeypatch):
    monkeypatch.setattr("bench.inputs.evaluation._MASK_BYTES", 4)  # two rows at a time
    feeds = FEEDS.copy()
    feeds[-1, -1] = np.nan
    write_npz(path, {"x": np.asfortranarray(feeds)})
    with pytest.raises(DataError, match="NaN or infinity"):
        read_evaluation(path)


def test_samples_can_be_read_in_batches_several_times(path):
    write_evaluation(path, EvaluationSet({"x": FEEDS, "z": FEEDS[:, 0]}, LABELS, np.array(list("abcdef"))))
    samples = open_samples(path)
    assert (samples.count, samples.feeds["x"].shape, samples.feeds["x"].dtype) == (6, (6, 2), np.float32)
    for _ in range(2):
        batches = list(samples.batches(4))
        assert [sorted(batch) for batch in batches] == [["x", "z"]] * 2
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), FEEDS)
        np.testing.assert_array_equal(batches[1]["z"], FEEDS[4:, 0])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": LABELS}, "contains no feeds"),
        ({"x": FEEDS, "labels": LABELS[:5]}, "differ in length: {'x': 6, 'labels': 5}"),
        ({"x": FEEDS, "z": FEEDS[:2]}, "differ in length"),
        ({"x": FEEDS, "ids": np.array(["a"])}, "differ in length"),
        ({"x": FEEDS, "labels": np.array(3)}, "differ in length"),
        ({"x": FEEDS[:0]}, "contains no samples"),
        ({"x": np.float32(1)}, "contains no samples"),
        (
            {"x": np.zeros((6, 0), np.float32)},
            r"feed 'x' is empty \(shape \[6, 0\]\); store at least one value",
        ),
        ({"x": FEEDS, "labels": LABELS - 1}, "'labels' has dtype int64"),
        ({"x": FEEDS, "labels": LABELS.astype(float)}, "'labels' has dtype float64"),
        ({"x": FEEDS, "labels": LABELS > 2}, "'labels' has dtype bool"),
        ({"x": FEEDS, "labels": LABELS.reshape(6, 1)}, r"shape \[6, 1\]"),
    ],
)
def test_sets_that_cannot_be_used(path, arrays, words):
    write_npz(path, arrays)
    with pytest.raises(DataError, match=words.replace("{", r"\{")):
        read_evaluation(path)
    if words != "'labels' has dtype int64":  # the case of a negative label, which is not checked here
        with pytest.raises(DataError, match=words.replace("{", r"\{")):
            open_samples(path)


@pytest.mark.parametrize("name", ["labels", "ids"])
def test_an_input_must_not_have_a_reserved_name(path, name):
    with pytest.raises(DataError, match=f"a model input has the reserved name '{name}'; rename the input"):
        write_evaluation(path, EvaluationSet({name: FEEDS}, None, None))
    assert not path.exists()


@pytest.mark.parametrize("code", [0xD800, 0xDC80, 0xDFFF, 0x110000])
def test_ids_must_be_text(path, code):
    ids = np.array(["a", "bc", "def", "g", "h", "é😀"])
    ids.view(np.uint32).reshape(6, -1)[2, 1] = code
    write_npz(path, {"x": FEEDS, "ids": ids})
    with pytest.raises(
        DataError, match=f"'ids' row 2 contains the code {code:#x}, which is not a character; write"
    ):
        read_evaluation(path)


@pytest.mark.parametrize(
    "ids", [np.arange(6), np.array([b"a"] * 6), np.array([""] * 6), np.array(["é😀"] * 6)]
)
def test_other_ids_are_read(path, ids):
    write_npz(path, {"x": FEEDS, "ids": ids})
    np.testing.assert_array_equal(read_evaluation(path).ids, ids)
