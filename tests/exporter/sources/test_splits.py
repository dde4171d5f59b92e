"""Return values of data factories: an invalid one is refused, and the error names the array."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import DataError
from exporter import Split, Splits
from exporter.sources.splits import check_splits, fingerprint, stratified_indices


def with_split(splits, name, **changes):
    return replace(splits, **{name: replace(getattr(splits, name), **changes)})


def with_image(splits, name, change):
    return with_split(splits, name, inputs={"image": change(getattr(splits, name).inputs["image"])})


def spoilt(sample, value):
    def change(image):
        image = image.copy()
        image[sample, 0, 2, 3] = value
        return image

    return change


def refusal(splits):
    with pytest.raises(DataError) as caught:
        check_splits(splits, "data")
    return caught.value


def test_valid_splits_are_returned_unchanged(splits):
    assert check_splits(splits, "data") is splits


@pytest.mark.parametrize("value", [None, ({}, {}, {}), {"train": 1}])
def test_a_return_value_of_another_type_is_refused(value):
    error = refusal(value)
    assert (error.place, error.cause) == ("data", f"returned {type(value).__name__}")
    assert "exporter.Splits" in error.fix


@pytest.mark.parametrize("name", ["train", "calibration", "evaluation"])
@pytest.mark.parametrize(
    ("change", "place", "cause"),
    [
        (
            lambda s, n: with_image(s, n, spoilt(5, np.nan)),
            ": input 'image'",
            "sample 5 contains NaN or infinity",
        ),
        (
            lambda s, n: with_image(s, n, spoilt(7, np.inf)),
            ": input 'image'",
            "sample 7 contains NaN or infinity",
        ),
        (lambda s, n: with_image(s, n, lambda a: a.astype(np.float64)), ": input 'image'", "is float64"),
        (lambda s, n: with_image(s, n, lambda a: a[:-1]), ": input 'image'", None),
        (lambda s, n: with_image(s, n, lambda a: a.astype(str)), ": input 'image'", None),
        (lambda s, n: with_image(s, n, lambda a: a.astype(bool)), ": input 'image'", None),
        (lambda s, n: with_image(s, n, lambda a: a[:, 0, 0, 0]), ": input 'image'", None),
        (lambda s, n: with_image(s, n, lambda a: a.tolist()), ": input 'image'", "is a list"),
        (lambda s, n: with_split(s, n, inputs={}), "", "contains no inputs"),
        (lambda s, n: with_split(s, n, inputs=np.zeros((9, 1), np.float32)), "", "contains no inputs"),
        (lambda s, n: with_split(s, n, labels=[0, 1]), "", "labels are a list"),
        (lambda s, n: with_split(s, n, labels=np.eye(3)), "", "labels are an array of float64 [3, 3]"),
        (lambda s, n: with_split(s, n, labels=np.zeros(3)), "", "labels are an array of float64 [3]"),
        (lambda s, n: with_split(s, n, labels=np.zeros(0, int)), "", "contains no samples"),
        (lambda s, n: with_split(s, n, labels=np.array([0, -2])), "", "label -2 is negative"),
        (lambda s, n: with_split(s, n, ids=np.arange(3)), ": ids", None),
        (lambda s, n: with_split(s, n, ids=["a"]), ": ids", "are a list"),
        (lambda s, n: with_split(s, n, ids=np.array([None, "a"])), ": ids", "are an array of object [2]"),
        (lambda s, n: replace(s, **{n: (1, 2)}), "", "is a tuple"),
    ],
)
def test_a_bad_split_is_named_with_its_array(splits, name, change, place, cause):
    error = refusal(change(splits, name))
    assert error.place == f"data: {name}{place}"
    if cause is not None:
        assert error.cause == cause


def test_different_lengths_are_reported(splits):
    error = refusal(with_image(splits, "train", lambda a: a[:-1]))
    assert error.cause == "has 59 rows for 60 samples"
    error = refusal(with_split(splits, "train", ids=np.arange(3)))
    assert error.cause == "there are 3 for 60 samples"


@pytest.mark.parametrize("name", ["train", "evaluation"])
def test_a_single_class_is_refused(splits, name):
    count = getattr(splits, name).count
    error = refusal(with_split(splits, name, labels=np.ones(count, int)))
    assert (error.place, error.cause) == (f"data: {name}", "contains a single class")


def test_calibration_needs_no_second_class(splits):
    chosen = with_split(splits, "calibration", labels=np.zeros(24, int))
    assert check_splits(chosen, "data") is chosen


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
@pytest.mark.parametrize(
    "change", [lambda a: a[:, :, 1:], lambda a: np.repeat(a, 3, axis=1), lambda a: a.astype(np.float16)]
)
def test_inputs_of_all_splits_must_have_the_same_form(splits, name, change):
    error = refusal(with_image(splits, name, change))
    assert error.place == f"data: {name}"
    assert "differ from the inputs of train" in error.cause


@pytest.mark.parametrize("name", ["train", "calibration"])
def test_evaluation_shares_no_sample(splits, name):
    def steal(image):
        stolen = getattr(splits, name).inputs["image"]
        return np.concatenate([image[:-2], stolen[3:5]])

    error = refusal(with_image(splits, "evaluation", steal))
    assert error.place == "data: evaluation"
    assert error.cause == "2 of its samples are also in train or calibration"


def test_calibration_may_come_from_train(splits):
    shared = replace(splits, calibration=splits.train.take(np.arange(10)))
    assert check_splits(shared, "data") is shared


def test_a_split_is_taken_and_cut(tiny):
    split = replace(tiny.draw(7, np.random.default_rng(0)), ids=np.array(list("abcdefg")))
    taken = split.take(np.array([4, 1]))
    assert (taken.count, taken.ids.tolist(), taken.labels.tolist()) == (2, ["e", "b"], [1, 1])
    assert np.array_equal(taken.inputs["image"][0], split.inputs["image"][4])
    assert [len(feeds["image"]) for feeds in split.batches(3)] == [3, 3, 1]


CHANGES = {
    "sample": lambda s: with_image(s, "train", lambda a: np.concatenate([a[:-1], a[:1]])),
    "last bit": lambda s: with_image(s, "evaluation", lambda a: np.nextafter(a, np.float32(9))),
    "order": lambda s: replace(s, train=s.train.take(np.arange(60)[::-1])),
    "label": lambda s: with_split(s, "train", labels=(s.train.labels + 1) % 3),
    "type of labels": lambda s: with_split(s, "train", labels=s.train.labels.astype(np.int32)),
    "name": lambda s: with_split(s, "train", inputs={"picture": s.train.inputs["image"]}),
    "shape": lambda s: with_image(s, "train", lambda a: a.reshape(60, 8, 1, 8)),
    "ids": lambda s: with_split(s, "evaluation", ids=np.arange(120)),
    "text ids": lambda s: with_split(s, "evaluation", ids=np.array(["x"] * 120)),
    "split": lambda s: replace(s, calibration=s.train),
}


def test_the_fingerprint_depends_on_the_content_only(splits, tiny):
    prints = {name: fingerprint(change(splits)) for name, change in CHANGES.items()}
    assert len({*prints.values(), fingerprint(splits)}) == len(CHANGES) + 1
    assert fingerprint(splits) == fingerprint(tiny.splits())


def test_the_fingerprint_does_not_depend_on_the_memory_layout(splits):
    turned = with_image(splits, "train", np.asfortranarray)
    assert fingerprint(turned) == fingerprint(splits)


@st.composite
def draws(draw):
    """Labels with random numbers of samples per class, and set sizes that fit."""
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    labels = draw(st.permutations(np.repeat(np.arange(len(counts)), counts).tolist()))
    first = draw(st.integers(0, len(labels)))
    second = draw(st.integers(0, len(labels) - first))
    return np.array(labels), {"first": first, "second": second}


@given(draws(), st.integers(0, 2**31))
def test_drawn_sets_are_disjoint_of_exact_size_and_repeatable(drawn, seed):
    labels, sizes = drawn
    sets = stratified_indices(labels, sizes, seed, "data")
    assert {name: len(indices) for name, indices in sets.items()} == sizes
    everything = np.concatenate(list(sets.values()))
    assert len(np.unique(everything)) == len(everything)
    assert np.isin(everything, np.arange(len(labels))).all()
    again = stratified_indices(labels, sizes, seed, "data")
    assert all(np.array_equal(sets[name], again[name]) for name in sets)


@given(draws(), st.integers(0, 2**31))
def test_drawn_sets_keep_the_proportions(drawn, seed):
    labels, sizes = drawn
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts / len(labels)
    for name, indices in stratified_indices(labels, sizes, seed, "data").items():
        held = np.array([(labels[indices] == label).sum() for label in classes])
        # With two classes, within one sample. Many small classes and a large one may add up to a few.
        allowed = 1 + shares * max(0, len(classes) - 2)
        assert (np.abs(held - shares * sizes[name]) <= allowed + 1e-9).all()


@given(st.integers(2, 8), st.integers(1, 20), st.data())
def test_equal_classes_stay_equal_to_within_one_sample(classes, each, data):
    labels = np.arange(classes * each) % classes
    first = data.draw(st.integers(0, len(labels)))
    second = data.draw(st.integers(0, len(labels) - first))
    sets = stratified_indices(labels, {"a": first, "b": second}, data.draw(st.integers(0, 99)), "data")
    for indices in sets.values():
        held = np.bincount(labels[indices], minlength=classes)
        assert held.max() - held.min() <= 1


def test_the_seed_decides(tiny):
    labels = tiny.draw(60, np.random.default_rng(0)).labels
    one, other = (stratified_indices(labels, {"a": 20}, seed, "data")["a"] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_more_samples_than_there_are():
    with pytest.raises(
        DataError, match=r"data: 5 samples are needed .*, but there are only 4; ask for fewer"
    ):
        stratified_indices(np.zeros(4, int), {"a": 3, "b": 2}, 0, "data")


def test_splits_carry_no_augmentation_by_default(splits):
    assert splits.augment is None
    assert Splits(splits.train, splits.train, splits.train, augment=print).augment is print
    assert Split({}, np.zeros(2)).ids is None
