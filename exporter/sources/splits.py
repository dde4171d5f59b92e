"""The contract between a user's data and edgeproof: three splits of named arrays with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError

if TYPE_CHECKING:
    import torch

    Augment = Callable[[dict[str, torch.Tensor], torch.Generator], dict[str, torch.Tensor]]


# The label of a training sample that has none; no split that a data factory returns holds it.
UNLABELLED = -1


class Samples(Protocol):
    """Samples that can be read batch by batch."""

    @property
    def count(self) -> int:
        """The number of samples."""

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each, the last of fewer."""


@dataclass(frozen=True)
class ArraySamples:
    """Samples in memory: input name -> array [N, ...]."""

    inputs: Mapping[str, Array]

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each, the last of fewer."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Split:
    """Labelled samples.

    Attributes:
        inputs: model input name -> array [N, ...], as the network takes it (normalised, float32).
        labels: class indices [N], integers from 0.
        ids: sample names [N], or None; they name samples in reports.
    """

    inputs: Mapping[str, Array]
    labels: Array
    ids: Array | None = None

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def take(self, indices: Array) -> Split:
        """The samples at `indices`, in that order."""
        return Split(
            {name: array[indices] for name, array in self.inputs.items()},
            self.labels[indices],
            None if self.ids is None else self.ids[indices],
        )

    def first(self, count: int) -> Split:
        """The first samples, at most that many."""
        return self.take(np.arange(min(count, self.count)))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of at most `size` samples, in order."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Splits:
    """What a data factory returns.

    Attributes:
        train: what weights are fitted on; a validation share is cut from it, never from `evaluation`.
        calibration: unaltered samples that activation ranges are collected on; may come from `train`.
        evaluation: what accuracy is reported on; shares no sample with the others.
        augment: applied to every training batch, or None. It gets named tensors and a seeded
            generator, and returns named tensors of the same shapes.
        notes: what a person should know of how the samples were read, a line each; a build says them.
    """

    train: Split
    calibration: Split
    evaluation: Split
    augment: Augment | None = None
    notes: tuple[str, ...] = ()


def check_splits(splits: object, place: str) -> Splits:
    """Make sure that what a data factory returned can be used.

    Args:
        splits: its return value.
        place: what to name in errors.

    Raises:
        DataError: with the split and the array that is wrong.
    """
    if not isinstance(splits, Splits):
        raise DataError(
            place,
            f"returned {type(splits).__name__}",
            "return exporter.Splits(train, calibration, evaluation)",
        )
    if not isinstance(splits.notes, tuple) or not all(isinstance(note, str) for note in splits.notes):
        raise DataError(f"{place}: notes", f"are {splits.notes!r}", "give a tuple of texts")
    named = {
        "train": splits.train,
        "calibration": splits.calibration,
        "evaluation": splits.evaluation,
    }
    for name, split in named.items():
        _check_split(split, f"{place}: {name}")
    for name in ("train", "evaluation"):
        if len(np.unique(named[name].labels)) < 2:
            raise DataError(
                f"{place}: {name}", "holds a single class", "give samples of at least two classes"
            )
    shapes = {
        name: {key: (array.dtype.name, array.shape[1:]) for key, array in split.inputs.items()}
        for name, split in named.items()
    }
    for name in ("calibration", "evaluation"):
        if shapes[name] != shapes["train"]:
            raise DataError(
                f"{place}: {name}",
                f"its inputs {shapes[name]} differ from those of train {shapes['train']}",
                "prepare all splits alike",
            )
    seen = _sample_hashes(splits.train) | _sample_hashes(splits.calibration)
    if shared := len(seen & _sample_hashes(splits.evaluation)):
        raise DataError(
            f"{place}: evaluation",
            f"{shared} of its samples are in train or calibration too",
            "keep evaluation apart, or its accuracy means nothing",
        )
    return splits


def with_unlabelled(splits: Splits, extra: object, place: str) -> Split:
    """The training samples and more without labels, whose label is `UNLABELLED`.

    Args:
        splits: checked.
        extra: what a factory returned: input name -> array [N, ...], as in the labelled data.
        place: what to name in errors.

    Raises:
        DataError: inputs of other names, types or shapes, or samples that are in evaluation too.
    """
    if not isinstance(extra, Mapping):
        raise DataError(place, f"returned a {type(extra).__name__}", "return input name -> array [N, ...]")
    wanted = splits.train.inputs
    if extra.keys() != wanted.keys():
        raise DataError(place, f"has inputs {sorted(extra)}", f"name them {sorted(wanted)}")
    count = len(next(iter(extra.values()))) if isinstance(next(iter(extra.values())), np.ndarray) else 0
    for name, array in extra.items():
        _check_input(array, count, f"{place}: input {name!r}")
        if (array.dtype, array.shape[1:]) != (wanted[name].dtype, wanted[name].shape[1:]):
            raise DataError(
                f"{place}: input {name!r}",
                f"is {array.dtype} {list(array.shape[1:])}, in train {wanted[name].dtype} "
                f"{list(wanted[name].shape[1:])}",
                "prepare it as the labelled samples",
            )
    labels = np.full(count, UNLABELLED, np.int64)
    if shared := len(_sample_hashes(Split(extra, labels)) & _sample_hashes(splits.evaluation)):
        raise DataError(place, f"{shared} of its samples are in evaluation too", "keep evaluation apart")
    return Split(
        {name: np.concatenate([wanted[name], extra[name]]) for name in wanted},
        np.concatenate([splits.train.labels.astype(np.int64), labels]),
    )


def fingerprint(splits: Splits) -> str:
    """A SHA-256 over all arrays: names, types, shapes and content."""
    named = [
        (name, array)
        for split in (splits.train, splits.calibration, splits.evaluation)
        for name, array in (*sorted(split.inputs.items()), ("labels", split.labels), ("ids", split.ids))
        if array is not None
    ]
    return fingerprint_arrays(named)


def fingerprint_arrays(named: Iterable[tuple[str, Array]]) -> str:
    """A SHA-256 over names, types, shapes and content, in order."""
    digest = hashlib.sha256()
    for name, array in named:
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def stratified_indices(labels: Array, sizes: Mapping[str, int], seed: int, place: str) -> dict[str, Array]:
    """Draw disjoint sets of samples that each hold the classes in the proportions of the whole.

    Args:
        labels: class indices [N].
        sizes: name of each set -> number of samples wanted.
        seed: of the draw.
        place: what to name in errors.

    Raises:
        DataError: more samples are asked for than there are.

    Example:
        >>> import exporter
        >>> import numpy as np
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> drawn = exporter.stratified_indices(labels, {"train": 3, "test": 3}, seed=0, place="data")
        >>> [labels[drawn[name]].tolist() for name in ("train", "test")]
        [[0, 0, 1], [0, 0, 1]]
    """
    if (wanted := sum(sizes.values())) > len(labels):
        raise DataError(
            place,
            f"{wanted} samples are asked for ({dict(sizes)}), {len(labels)} are there",
            "ask for fewer",
        )
    generator = np.random.default_rng(seed)
    # Spread each class evenly over [0, 1), then cut the line: any piece between two cuts holds a class of
    # share p among C classes in proportion, to within 1 + p (C - 2) samples, and to within one where all
    # classes are of one size. (In a piece of length t, each count is within one of its size times t.)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + generator.random()) / len(members)
    order = np.argsort(position, kind="stable")
    drawn, start = {}, 0
    for name, size in sizes.items():
        drawn[name] = np.sort(order[start : start + size])
        start += size
    return drawn


def _check_split(split: object, place: str) -> None:
    if not isinstance(split, Split):
        raise DataError(place, f"is {type(split).__name__}", "make it an exporter.Split")
    labels = split.labels
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            place,
            f"labels are {_describe(labels)}",
            "give one integer class index per sample",
        )
    if not len(labels):
        raise DataError(place, "holds no samples", "give some")
    if labels.min() < 0:
        raise DataError(place, f"label {labels.min()} is negative", "number classes from 0")
    if not isinstance(split.inputs, Mapping) or not split.inputs:
        raise DataError(place, "holds no inputs", "name one array per model input")
    for name, array in split.inputs.items():
        _check_input(array, len(labels), f"{place}: input {name!r}")
    if split.ids is not None:
        _check_ids(split.ids, len(labels), f"{place}: ids")


def _check_ids(ids: object, count: int, place: str) -> None:
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise DataError(place, f"are {_describe(ids)}", "give an array [N] of texts or integers")
    if len(ids) != count:
        raise DataError(place, f"there are {len(ids)} for {count} samples", "give one each")


def _check_input(array: object, count: int, place: str) -> None:
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.dtype.kind not in "fiu":
        raise DataError(place, f"is {_describe(array)}", "give a numeric array [N, ...]")
    if array.dtype == np.float64:
        raise DataError(place, "is float64", "networks take float32: convert it")
    if len(array) != count:
        raise DataError(place, f"has {len(array)} rows for {count} labels", "give one per label")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))[0])
        raise DataError(place, f"sample {bad} holds NaN or infinity", "clean the data")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _sample_hashes(split: Split) -> set[bytes]:
    arrays = [np.ascontiguousarray(array) for _, array in sorted(split.inputs.items())]
    return {
        hashlib.blake2b(b"".join(array[i].tobytes() for array in arrays), digest_size=16).digest()
        for i in range(split.count)
    }
