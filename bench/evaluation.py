"""Labelled samples in `evaluation.npz`: one array per model input, `labels`, and optionally `ids`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.arrays import Array, read_npz, write_npz
from bench.errors import DataError

LABELS = "labels"
IDS = "ids"


@dataclass(frozen=True)
class EvaluationSet:
    """Feeds and labels that belong together, sample by sample.

    Attributes:
        feeds: input name -> array [N, ...].
        labels: class indices [N], or None where the set has none.
        ids: sample names [N], or None; flips are reported by them.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    ids: Array | None

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.feeds.values())))


def read_evaluation(path: Path, *, rows: int | None = None) -> EvaluationSet:
    """Read an evaluation set, or its first `rows` samples.

    Raises:
        DataError: the file cannot be used: no samples, unequal lengths, NaN, labels that are no classes.
    """
    arrays = read_npz(path, rows=rows)
    labels, ids = arrays.pop(LABELS, None), arrays.pop(IDS, None)
    if not arrays:
        raise DataError(path, "holds labels but no feeds", "add one array per model input")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    for name, array in ((LABELS, labels), (IDS, ids)):
        if array is not None:
            lengths[name] = len(array) if array.ndim else 0
    if len(set(lengths.values())) != 1:
        raise DataError(path, f"its arrays differ in length: {lengths}", "give one row per sample")
    if not next(iter(lengths.values())):
        raise DataError(path, "holds no samples", "add some")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(path, f"feed {name!r} holds NaN or infinity", "clean the data")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise DataError(
            path,
            f"{LABELS!r} has dtype {labels.dtype} and shape {list(labels.shape)}",
            "give one non-negative class index per sample",
        )
    return EvaluationSet(arrays, labels, ids)


def write_evaluation(path: Path, evaluation: EvaluationSet) -> None:
    """Write what `read_evaluation` reads."""
    for reserved in (LABELS, IDS):
        if reserved in evaluation.feeds:
            raise DataError(path, f"a model input is called {reserved!r}", "rename the input")
    arrays = dict(evaluation.feeds)
    if evaluation.labels is not None:
        arrays[LABELS] = evaluation.labels
    if evaluation.ids is not None:
        arrays[IDS] = evaluation.ids
    write_npz(path, arrays)
