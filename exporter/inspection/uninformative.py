"""Warn of samples and outputs that say little about a model. Each has a valid use, so none is an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard

import numpy as np

from bench.core.arrays import Array
from exporter.inspection.same_outputs import Answer
from exporter.sources.splits import Samples

_BATCH = 64
# An output with fewer values can have two values by chance.
_FEW_VALUES = 8


def sample_warnings(samples: Samples) -> Iterator[str]:
    """Warn of identical samples, and of float inputs that have one value. Most samples are not read."""
    if samples.count < 2:
        return
    first: dict[str, Array] = {}
    differing, filled = set[str](), set[str]()
    for batch in samples.batches(_BATCH):
        first = first or {name: array[:1].copy() for name, array in batch.items()}
        for name, array in batch.items():
            if name not in differing and (array != first[name]).any():
                differing.add(name)
            if array.dtype.kind != "f" or (name not in filled and (array != first[name].flat[0]).any()):
                filled.add(name)
        if differing and filled == first.keys():
            return
    if not differing:
        yield f"all {samples.count} samples are identical: the ranges hold for this sample only"
        return
    for name in sorted(first.keys() - filled):
        yield f"input {name!r} is {first[name].flat[0]:g} in all samples: its range holds for this value"


def output_warnings(answers: Sequence[Answer]) -> Iterator[str]:
    """Warn of float outputs that do not depend on the samples, or that have only two values.

    Args:
        answers: outputs of the float model for different samples.
    """
    for name in answers[0].outputs if answers else ():
        values = [value for one in answers if _is_float(value := one.outputs.get(name))]
        if len(values) < len(answers):
            continue
        if _is_constant(values, answers):
            yield (
                f"output {name!r} is the same for all samples that were compared, in float already: "
                "its SQNR says nothing; check that the samples are scaled as in training"
            )
        elif _is_saturated(values):
            yield (
                f"output {name!r} has only two values on the samples that were compared, in float already, "
                "as if it were saturated; check that the samples are scaled as in training"
            )


def _is_float(value: object) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0


def _is_constant(values: Sequence[Array], answers: Sequence[Answer]) -> bool:
    """Whether an output with one row for each sample has equal rows for more than one sample."""
    counts = [len(next(iter(answer.feeds.values()))) for answer in answers]
    rows = [value for value, count in zip(values, counts, strict=True) if value.shape[:1] == (count,)]
    shapes = {row.shape[1:] for row in rows}
    return (
        len(rows) == len(values)
        and len(shapes) == 1
        and max(counts) > 1
        and all(np.array_equal(row, np.broadcast_to(rows[0][:1], row.shape)) for row in rows)
    )


def _is_saturated(values: Sequence[Array]) -> bool:
    found = np.unique(np.concatenate([value.reshape(-1) for value in values]))
    return len(found) == 2 and max(value.size for value in values) >= _FEW_VALUES
