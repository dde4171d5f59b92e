"""Warnings of samples and outputs that say little about a model."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.inspection.same_outputs import Answer
from exporter.inspection.uninformative import output_warnings, sample_warnings
from exporter.sources.splits import ArraySamples

X = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
IDS = np.zeros((100, 4), np.int64)


@pytest.mark.parametrize(
    ("feeds", "texts"),
    [
        ({"x": X}, []),
        ({"x": X[:1]}, []),
        ({"x": np.repeat(X[:1], 100, 0)}, ["all 100 samples are identical"]),
        ({"x": np.repeat(X[:1], 100, 0), "ids": IDS}, ["all 100 samples are identical"]),
        ({"x": X, "ids": IDS}, []),  # a mask or a kind of token may be the same everywhere
        ({"x": np.repeat(X[:1], 100, 0), "ids": np.arange(100)}, []),
        ({"x": X, "state": np.zeros_like(X)}, ["input 'state' is 0 in all samples"]),
        ({"x": X, "a": np.ones_like(X), "b": np.ones_like(X)}, ["input 'a' is 1", "input 'b' is 1"]),
        ({"x": np.concatenate([np.zeros_like(X), X[:1]]), "i": np.arange(101)}, []),  # the last differs
    ],
)
def test_samples(feeds, texts):
    found = list(sample_warnings(ArraySamples(feeds)))
    assert len(found) == len(texts)
    assert all(one.startswith(text) for one, text in zip(found, texts, strict=True))


def answers(*outputs, name="y"):
    return [
        Answer({"x": X[: max(1, value.shape[0] if value.ndim else 1)]}, {name: value}) for value in outputs
    ]


SIGNS = np.sign(X)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (answers(X[:8], X[:1]), None),
        (answers(np.repeat(X[:1], 8, 0), X[:1]), "output 'y' is the same for all samples"),
        (answers(np.repeat(X[:1], 8, 0), X[1:2]), None),
        (answers(X[:1]), None),  # one sample cannot differ
        (answers(np.float32(3.0)), None),
        (answers(SIGNS[:8]), "output 'y' has only two values"),
        (answers(SIGNS[:8].astype(np.int64)), None),  # classes, not scores
        (answers(SIGNS[:2, :2], SIGNS[:1, :2]), None),  # too few values
        (answers(X[:0]), None),
        ([], None),
    ],
)
def test_outputs(given, text):
    found = list(output_warnings(given))
    assert found == [] if text is None else (len(found) == 1 and found[0].startswith(text))
