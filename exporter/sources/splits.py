"""The form of the user's data: three splits of named arrays with labels."""

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


# Label value of training samples that have no label; splits of a data factory must not contain it.
UNLABELLED = -1


class Samples(Protocol):
    """Samples that can be read batch by batch."""

    @property
    def count(self) -> int:
        """The number of samples."""

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each; the last may have fewer."""


@dataclass(frozen=True)
class ArraySamples:
    """Samples in memory: input name -> array [N, ...]."""

    inputs: Mapping[str, Array]

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each; the last may have fewer."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Split:
    """Labelled samples.

    Attributes:
        inputs: input name -> array [N, ...] as the network takes it (normalised, float32).
        labels: class indices [N], integers from 0.
        ids: names of the samples [N], for reports; or None.
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
        """The first `count` samples; all samples if there are fewer."""
        return self.take(np.arange(min(count, self.count)))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each, in order; the last may have fewer."""
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Splits:
    """The return value of a data factory.

    Attributes:
        train: samples to train on; the validation samples are held out from them, never from `evaluation`.
        calibration: samples without augmentation from which activation ranges are computed; they may be
            training samples.
        evaluation: samples on which accuracy is reported; none of them may be in another split.
        augment: function that is applied to every training batch, or None. It receives named tensors and a
            seeded generator, and returns named tensors of the same shapes.
        notes: remarks on how the samples were read, one line each; a build shows them.
    """

    train: Split
    calibration: Split
    evaluation: Split
    augment: Augment | None = None
    notes: tuple[str, ...] = ()


def check_splits(splits: object, place: str) -> Splits:
    """Check the return value of a data factory.

    Args:
        splits: the return value of a data factory.
        place: name of the factory in errors.

    Raises:
        DataError: a split or an array is invalid; the error names it.
    """
    if not isinstance(splits, Splits):
        raise DataError(
            place,
            f"returned {type(splits).__name__}",
            "return exporter.Splits(train, calibration, evaluation)",
        )
    if not isinstance(splits.notes, tuple) or not all(isinstance(note, str) for note in splits.notes):
        raise DataError(f"{place}: notes", f"are {splits.notes!r}", "make them a tuple of texts")
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
                f"{place}: {name}", "contains a single class", "give samples of at least two classes"
            )
    shapes = {
        name: {key: (array.dtype.name, array.shape[1:]) for key, array in split.inputs.items()}
        for name, split in named.items()
    }
    for name in ("calibration", "evaluation"):
        if shapes[name] != shapes["train"]:
            raise DataError(
                f"{place}: {name}",
                f"its inputs {shapes[name]} differ from the inputs of train {shapes['train']}",
                "prepare all splits in the same way",
            )
    seen = _sample_hashes(splits.train) | _sample_hashes(splits.calibration)
    if shared := len(seen & _sample_hashes(splits.evaluation)):
        raise DataError(
            f"{place}: evaluation",
            f"{shared} of its samples are also in train or calibration",
            "remove them, because they would make the accuracy too high",
        )
    return splits


def with_unlabelled(splits: Splits, extra: object, place: str) -> Split:
    """The training samples, followed by samples without labels, whose label is `UNLABELLED`.

    Args:
        splits: the checked splits.
        extra: return value of the factory: input name -> array [N, ...], as in the labelled data.
        place: name of the factory in errors.

    Raises:
        DataError: names, types or shapes of the inputs differ, or samples are also in evaluation.
    """
    if not isinstance(extra, Mapping):
        raise DataError(place, f"returned {type(extra).__name__}", "return input name -> array [N, ...]")
    wanted = splits.train.inputs
    if extra.keys() != wanted.keys():
        raise DataError(place, f"has inputs {sorted(extra)}", f"name them {sorted(wanted)}")
    count = len(next(iter(extra.values()))) if isinstance(next(iter(extra.values())), np.ndarray) else 0
    for name, array in extra.items():
        _check_input(array, count, f"{place}: input {name!r}")
        if (array.dtype, array.shape[1:]) != (wanted[name].dtype, wanted[name].shape[1:]):
            raise DataError(
                f"{place}: input {name!r}",
                f"is {array.dtype} {list(array.shape[1:])}, but in train it is {wanted[name].dtype} "
                f"{list(wanted[name].shape[1:])}",
                "prepare it in the same way as the labelled samples",
            )
    labels = np.full(count, UNLABELLED, np.int64)
    if shared := len(_sample_hashes(Split(extra, labels)) & _sample_hashes(splits.evaluation)):
        raise DataError(place, f"{shared} of its samples are also in evaluation", "remove them")
    return Split(
        {name: np.concatenate([wanted[name], extra[name]]) for name in wanted},
        np.concatenate([splits.train.labels.astype(np.int64), labels]),
    )


def fingerprint(splits: Splits) -> str:
    """SHA-256 of all arrays of the splits: names, types, shapes and content."""
    named = [
        (name, array)
        for split in (splits.train, splits.calibration, splits.evaluation)
        for name, array in (*sorted(split.inputs.items()), ("labels", split.labels), ("ids", split.ids))
        if array is not None
    ]
    return fingerprint_arrays(named)


def fingerprint_arrays(named: Iterable[tuple[str, Array]]) -> str:
    """SHA-256 of the names, types, shapes and content of arrays, in order."""
    digest = hashlib.sha256()
    for name, array in named:
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def stratified_indices(labels: Array, sizes: Mapping[str, int], seed: int, place: str) -> dict[str, Array]:
    """Draw disjoint sets of samples in which the classes have the same proportions as in all samples.

    Args:
        labels: class indices [N].
        sizes: name of each set -> number of samples to draw.
        seed: seed of the draw.
        place: name of the data in errors.

    Returns:
        Name of each set -> sorted indices of its samples.

    Raises:
        DataError: the sets need more samples than there are.

    Examples:
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
            f"{wanted} samples are needed ({dict(sizes)}), but there are only {len(labels)}",
            "ask for fewer samples, or give more",
        )
    generator = np.random.default_rng(seed)
    # Spread the samples of each class evenly over [0, 1), sort all samples by position, and cut the
    # sequence into the sets. If a class has a fraction p of the samples, and there are C classes, its
    # number in each set differs from the proportional number by at most 1 + p (C - 2). If all classes have
    # the same size, it differs by at most one. (In an interval of length t, the number of samples of a
    # class differs from t times the size of the class by at most one.)
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
        raise DataError(place, f"is a {type(split).__name__}", "make it an exporter.Split")
    labels = split.labels
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            place,
            f"labels are {_describe(labels)}",
            "give an array [N] with one integer class index per sample",
        )
    if not len(labels):
        raise DataError(place, "contains no samples", "give at least one sample")
    if labels.min() < 0:
        raise DataError(place, f"label {labels.min()} is negative", "number classes from 0")
    if not isinstance(split.inputs, Mapping) or not split.inputs:
        raise DataError(place, "contains no inputs", "give one array per model input")
    for name, array in split.inputs.items():
        _check_input(array, len(labels), f"{place}: input {name!r}")
    if split.ids is not None:
        _check_ids(split.ids, len(labels), f"{place}: ids")


def _check_ids(ids: object, count: int, place: str) -> None:
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise DataError(place, f"are {_describe(ids)}", "give an array [N] of texts or integers")
    if len(ids) != count:
        raise DataError(place, f"there are {len(ids)} for {count} samples", "give one id per sample")


def _check_input(array: object, count: int, place: str) -> None:
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.dtype.kind not in "fiu":
        raise DataError(place, f"is {_describe(array)}", "give a numeric array [N, ...]")
    if array.dtype == np.float64:
        raise DataError(place, "is float64", "convert it to float32")
    if len(array) != count:
        raise DataError(place, f"has {len(array)} rows for {count} samples", "give one row per sample")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))[0])
        raise DataError(place, f"sample {bad} contains NaN or infinity", "correct or remove such samples")


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
