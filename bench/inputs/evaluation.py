"""Labelled samples in `evaluation.npz`: an array per input, `labels`, and optionally `ids` and `groups`."""

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
# Who or what a sample comes from (speaker, camera), integers or texts.
GROUPS = "groups"
_NO_FEEDS = frozenset({LABELS, IDS, GROUPS})
_MASK_BYTES = 2**20
_GROUPS_TOGETHER = 4096


@dataclass(frozen=True)
class EvaluationSet:
    """Feeds with their labels, one row per sample.

    Attributes:
        feeds: input name -> array [N, ...].
        labels: class indices [N], or None if the set has no labels.
        ids: sample names [N], or None. Reports name a flipped prediction by its sample name.
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
    """The feeds of an evaluation set, read from the file in batches.

    Attributes:
        feeds: input name -> dtype and shape of its array.
        count: number of samples.
    """

    feeds: Mapping[str, ArraySpec]
    count: int
    _rows: NpzRows

    def groups(self) -> Array | None:
        """The group of each sample [N], or None if the file does not state groups.

        Raises:
            DataError: the file is damaged, or groups are neither integers nor texts.
        """
        spec = self._rows.specs.get(GROUPS)
        if spec is None:
            return None
        if len(spec.shape) != 1 or spec.dtype.kind not in "iuU":
            raise DataError(
                self._rows.path,
                f"{GROUPS!r} has type {spec.dtype} and shape {list(spec.shape)}",
                "store one integer or text for each sample",
            )
        return np.concatenate([block[GROUPS] for block in self._rows.blocks([GROUPS], _GROUPS_TOGETHER)])

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield feeds of `size` samples each; the last batch may be smaller. Memory use is constant.

        Raises:
            DataError: the file is damaged, or a feed contains NaN or infinity.
        """
        for batch in self._rows.blocks(list(self.feeds), size):
            for name, array in batch.items():
                _check_finite(self._rows.path, name, array)
            yield batch


def open_samples(path: Path) -> SampleRows:
    """Open an evaluation set to read its feeds in batches; the values of labels are not checked.

    Raises:
        DataError: the file cannot be used: no samples, unequal lengths, labels that are not classes.
    """
    rows = open_rows(path)
    count = _check_arrays(path, rows.specs)
    feeds = {name: spec for name, spec in rows.specs.items() if name not in _NO_FEEDS}
    return SampleRows(feeds, count, rows)


def read_evaluation(path: Path, *, rows: int | None = None, spread: bool = False) -> EvaluationSet:
    """Read an evaluation set.

    Args:
        path: the .npz file.
        rows: number of samples to read; None reads all.
        spread: read samples at equal distances over the whole set, which may be sorted by class, instead of
            the first ones.

    Raises:
        DataError: the file cannot be used: no samples, unequal lengths, NaN, labels that are not classes.
    """
    arrays = read_npz(path, rows=rows, spread=spread)
    _check_arrays(path, arrays)
    labels, ids = arrays.pop(LABELS, None), arrays.pop(IDS, None)
    arrays.pop(GROUPS, None)
    for name, array in arrays.items():
        _check_finite(path, name, array)
    if labels is not None and labels.min() < 0:
        raise _bad_labels(path, labels)
    if ids is not None:
        _check_text(path, ids)
    return EvaluationSet(arrays, labels, ids)


def _check_arrays(path: Path, arrays: Mapping[str, Array | ArraySpec]) -> int:
    """Check that all arrays have one row per sample; return the number of samples."""
    if not arrays.keys() - _NO_FEEDS:
        raise DataError(path, "contains no feeds", "add one array per model input")
    # An error lists the feeds first.
    order = sorted(arrays, key=lambda name: (name in {GROUPS, IDS}, name == LABELS))
    lengths = {name: arrays[name].shape[0] if arrays[name].shape else 0 for name in order}
    if len(set(lengths.values())) != 1:
        raise DataError(path, f"its arrays differ in length: {lengths}", "store one row per sample")
    count: int = next(iter(lengths.values()))
    if not count:
        raise DataError(path, "contains no samples", "add at least one sample")
    for name in arrays.keys() - _NO_FEEDS:
        if not math.prod(arrays[name].shape):
            raise DataError(
                path,
                f"feed {name!r} is empty (shape {list(arrays[name].shape)})",
                "store at least one value per sample",
            )
    labels = arrays.get(LABELS)
    if labels is not None and (len(labels.shape) != 1 or labels.dtype.kind not in "iu"):
        raise _bad_labels(path, labels)
    return count


def _check_finite(path: Path, name: str, array: Array) -> None:
    """Refuse NaN and infinity, some rows at a time: a mask of all rows takes a quarter of their memory."""
    if array.dtype.kind != "f":
        return
    rows = max(1, _MASK_BYTES * len(array) // max(array.size, 1))
    for start in range(0, len(array), rows):
        if not np.isfinite(array[start : start + rows]).all():
            raise DataError(path, f"feed {name!r} holds NaN or infinity", "clean the data")


def _check_text(path: Path, ids: Array) -> None:
    """Refuse ids that are not valid Unicode text: lone surrogates and codes beyond the last character."""
    if ids.dtype.kind != "U" or not ids.dtype.itemsize:
        return
    letters = np.ascontiguousarray(ids).view(np.uint32).reshape(len(ids), -1)
    wrong = ((letters >= 0xD800) & (letters <= 0xDFFF)) | (letters > sys.maxunicode)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            path,
            f"{IDS!r} row {row} contains the code {letters[row, column]:#x}, which is not a character",
            "write the ids as Unicode text",
        )


def _bad_labels(path: Path, labels: Array | ArraySpec) -> DataError:
    return DataError(
        path,
        f"{LABELS!r} has dtype {labels.dtype} and shape {list(labels.shape)}",
        "store one non-negative class index per sample, as integers of shape [N]",
    )


def write_evaluation(path: Path, evaluation: EvaluationSet) -> None:
    """Write an evaluation set that `read_evaluation` can read.

    Raises:
        DataError: a model input has the reserved name `labels`, `ids` or `groups`.
    """
    for reserved in (LABELS, IDS, GROUPS):
        if reserved in evaluation.feeds:
            raise DataError(path, f"a model input has the reserved name {reserved!r}", "rename the input")
    arrays = dict(evaluation.feeds)
    if evaluation.labels is not None:
        arrays[LABELS] = evaluation.labels
    if evaluation.ids is not None:
        arrays[IDS] = evaluation.ids
    write_npz(path, arrays)


def predictions(outputs: Array) -> Array:
    """Return the predicted class of each sample, [N].

    For scores of shape [N, classes] (or [N, ...], flattened per sample), the class is the index of the
    largest score. For class indices of shape [N] or [N, k] (most likely class first), the class is the
    first index.
    """
    rows: Array = outputs.reshape(len(outputs), -1)
    return rows[:, 0] if are_classes(outputs) else rows.argmax(axis=1)


def are_classes(outputs: Array) -> bool:
    """Whether outputs are class indices: argmax and top-k yield int32 or int64, quantized scores do not."""
    return outputs.dtype in {np.dtype(np.int32), np.dtype(np.int64)}
