"""Numerical agreement of outputs: error, SQNR and equal predictions."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from bench.inputs.evaluation import predictions
from bench.metrics.parity import EXACT_SQNR_DB, decibels, parity, sqnr_db, sqnr_lower_db


def test_equal_outputs_have_no_error():
    scores = np.array([[1.0, 2.0], [3.0, 0.0]])
    outcome = parity(scores, scores)
    assert asdict(outcome) == {
        "max_error": 0.0,
        "sqnr_db": EXACT_SQNR_DB,
        "agreement": 1.0,
        "samples": 2,
    }


def test_different_outputs_are_measured():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]])
    outcome = parity(reference, reference + np.array([[0.0, 0.0], [5.0, 0.0]]))
    assert outcome.max_error == 5.0
    assert outcome.agreement == 0.5
    assert outcome.sqnr_db == pytest.approx(0.0)


@pytest.mark.parametrize(("noise", "decibels"), [(0.1, 20.0), (0.001, 60.0), (10.0, -20.0)])
def test_a_tenth_of_the_noise_adds_twenty_decibels(noise, decibels):
    signal = np.ones((4, 3))
    assert sqnr_db(signal, signal + noise) == pytest.approx(decibels)


def test_sqnr_without_a_signal_is_a_finite_constant():
    assert sqnr_db(np.zeros(3), np.ones(3)) == -EXACT_SQNR_DB
    assert sqnr_db(np.zeros(3), np.zeros(3)) == EXACT_SQNR_DB


def test_samples_of_any_shape_are_flattened():
    images = np.arange(24.0).reshape(2, 3, 2, 2)
    assert parity(images, images[:, ::-1]).samples == 2
    assert parity(images, images[:, ::-1]).agreement == 0.0


def test_integers_do_not_wrap_around():
    assert parity(np.array([[0]], np.uint8), np.array([[255]], np.uint8)).max_error == 255.0


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"shapes differ: \[2, 3\] and \[3, 2\]"):
        parity(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (np.array([[0.0, 2.0], [3.0, 1.0]]), [1, 0]),
        (np.array([4, 2]), [4, 2]),
        (np.array([[4, 2], [1, 9]], np.int32), [4, 1]),
        (np.array([[4, 2], [1, 9]], np.uint8), [0, 1]),  # scores of a quantized output
    ],
)
def test_predictions_of_scores_and_of_classes(outputs, expected):
    assert predictions(outputs).tolist() == expected


def test_only_the_first_of_several_classes_is_compared():
    first = np.array([[900, 1], [7, 3]])
    same = parity(first, np.array([[900, 2], [7, 8]]))  # the second class may differ
    assert (same.agreement, same.sqnr_db) == (1.0, EXACT_SQNR_DB)
    assert parity(first, np.array([[901, 1], [7, 3]])).agreement == 0.5


def test_decibels_without_noise_or_signal_are_constants():
    assert decibels(4.0, 0.0) == EXACT_SQNR_DB
    assert decibels(0.0, 4.0) == -EXACT_SQNR_DB
    assert decibels(100.0, 1.0) == pytest.approx(20.0)


@pytest.mark.parametrize(("spread", "least"), [(0.3, 0.92), (1.0, 0.88)])
def test_the_lower_bound_of_the_sqnr_holds_for_other_samples(spread, least):
    # The bound is 95 %. Where the noise of samples differs by orders of magnitude, it holds less often.
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        bound = sqnr_lower_db(np.full(24, 100.0), rng.lognormal(0, spread, 24))
        held += bound <= 10 * np.log10(100 / np.exp(spread**2 / 2))
    assert least <= held / 400 <= 0.98


@pytest.mark.parametrize(
    ("signal", "noise"), [([1, 1, 1], [1, 1, 1]), ([1, 1, 1, 1], [0, 0, 0, 0]), ([0] * 4, [1] * 4)]
)
def test_without_a_spread_there_is_no_lower_bound(signal, noise):
    assert sqnr_lower_db(np.array(signal, float), np.array(noise, float)) is None


def test_equal_samples_leave_no_doubt():
    assert sqnr_lower_db(np.full(8, 4.0), np.full(8, 0.04)) == pytest.approx(20)
