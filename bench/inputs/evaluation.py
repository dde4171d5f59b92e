"""Labelled samples in `evaluation.npz`: one array per model input, `labels`, and optionally `ids`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.arrays import Array, ArraySpec, NpzRows, open_rows, read_npz, write_npz
from bench.core.errors import DataError

LABELS = "labels"
IDS = "ids"
_MASK_BYTES = 2**20


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


@dataclass(frozen=True)
class SampleRows:
    """The feeds of an evaluation set that stays in its file.

    Attributes:
        feeds: what the array of each model input is.
        count: the number of samples.
    """

    feeds: Mapping[str, ArraySpec]
    count: int
    _rows: NpzRows

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each, the last of fewer, in memory that does not grow with their number.

        Raises:
            DataError: the file is damaged, or a feed holds NaN or infinity.
        """
        for batch in self._rows.blocks(list(self.feeds), size):
            for name, array in batch.items():
                _check_finite(self._rows.path, name, array)
            yield batch


def open_samples(path: Path) -> SampleRows:
    """Look at an evaluation set; labels are not read.

    Raises:
        DataError: the file cannot be used: no samples, unequal lengths, labels that are not classes.
    """
    rows = open_rows(path)
    count = _check_arrays(path, rows.specs)
    feeds = {name: spec for name, spec in rows.specs.items() if name not in {LABELS, IDS}}
    return SampleRows(feeds, count, rows)


def read_evaluation(path: Path, *, rows: int | None = None, spread: bool = False) -> EvaluationSet:
    """Read an evaluation set, or some `rows` samples: its first, or `spread` over all, which may be sorted.

    Raises:
        DataError: the file cannot be used: no samples, unequal lengths, NaN, labels that are not classes.
    """
    arrays = read_npz(path, rows=rows, spread=spread)
    _check_arrays(path, arrays)
    labels, ids = arrays.pop(LABELS, None), arrays.pop(IDS, None)
    for name, array in arrays.items():
        _check_finite(path, name, array)
    if labels is not None and labels.min() < 0:
        raise _bad_labels(path, labels)
    if ids is not None:
        _check_text(path, ids)
    return EvaluationSet(arrays, labels, ids)


def _check_arrays(path: Path, arrays: Mapping[str, Array | ArraySpec]) -> int:
    """Make sure that arrays belong together, sample by sample; return the number of samples."""
    if not arrays.keys() - {LABELS, IDS}:
        raise DataError(path, "holds labels but no feeds", "add one array per model input")
    # Feeds first, as they are told of first in an error.
    order = sorted(arrays, key=lambda name: (name == IDS, name == LABELS))
    lengths = {name: arrays[name].shape[0] if arrays[name].shape else 0 for name in order}
    if len(set(lengths.values())) != 1:
        raise DataError(path, f"its arrays differ in length: {lengths}", "give one row per sample")
    count: int = next(iter(lengths.values()))
    if not count:
        raise DataError(path, "holds no samples", "add some")
    for name in arrays.keys() - {LABELS, IDS}:
        if not math.prod(arrays[name].shape):
            raise DataError(path, f"feed {name!r} has shape {list(arrays[name].shape)}", "give it values")
    labels = arrays.get(LABELS)
    if labels is not None and (len(labels.shape) != 1 or labels.dtype.kind not in "iu"):
        raise _bad_labels(path, labels)
    return count


def _check_finite(path: Path, name: str, array: Array) -> None:
    """Look for NaN and infinity, some rows at a time: a mask of all takes a quarter of their memory."""
    if array.dtype.kind != "f":
        return
    rows = max(1, _MASK_BYTES * len(array) // max(array.size, 1))
    for start in range(0, len(array), rows):
        if not np.isfinite(array[start : start + rows]).all():
            raise DataError(path, f"feed {name!r} holds NaN or infinity", "clean the data")


def _check_text(path: Path, ids: Array) -> None:
    """Look for ids that no text file can hold: halves of surrogate pairs, codes that are not characters."""
    if ids.dtype.kind != "U" or not ids.dtype.itemsize:
        return
    letters = np.ascontiguousarray(ids).view(np.uint32).reshape(len(ids), -1)
    wrong = ((letters >= 0xD800) & (letters <= 0xDFFF)) | (letters > sys.maxunicode)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            path,
            f"{IDS!r} row {row} holds the code {letters[row, column]:#x}, which is not a character",
            "write the ids as Unicode text",
        )


def _bad_labels(path: Path, labels: Array | ArraySpec) -> DataError:
    return DataError(
        path,
        f"{LABELS!r} has dtype {labels.dtype} and shape {list(labels.shape)}",
        "give one non-negative class index per sample",
    )


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


def predictions(outputs: Array) -> Array:
    """The class of each sample, [N]: the index of its largest score, or the first of its classes.

    Scores are [N, classes] (or [N, ...], flattened per sample), classes [N] or [N, k], the likeliest first.
    """
    rows: Array = outputs.reshape(len(outputs), -1)
    return rows[:, 0] if are_classes(outputs) else rows.argmax(axis=1)


def are_classes(outputs: Array) -> bool:
    """Whether a graph ends in an argmax or a top-k, which give wide integers; quantized scores are not."""
    return outputs.dtype in {np.dtype(np.int32), np.dtype(np.int64)}
