"""Samples to fit repairs on, and held-out samples to judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError

# With 64 samples, the smallest measurable drop is 1/64.
MIN_HELD_OUT, MAX_HELD_OUT = 64, 512
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class RepairSamples:
    """Two disjoint sets of samples.

    Attributes:
        fitted: samples for activation ranges and for fitting repairs, input name -> array [N, ...].
        held_out: samples for judging repairs, input name -> array [M, ...].
        labels: class indices of `held_out` [M], or None.
    """

    fitted: Mapping[str, Array]
    held_out: Mapping[str, Array]
    labels: Array | None

    @property
    def held_out_count(self) -> int:
        """The number of held-out samples."""
        return len(next(iter(self.held_out.values())))


def hold_out(
    inputs: Mapping[str, Array], labels: Array | None, fixed_batch: int | None = None
) -> RepairSamples:
    """Hold out every fourth sample, or as close to that as the batch size allows, to judge repairs.

    Args:
        inputs: the samples, input name -> array [N, ...].
        labels: class indices [N], or None.
        fixed_batch: the batch size that the model requires, or None if it is dynamic.

    Raises:
        DataError: there are too few samples.
    """
    count = len(next(iter(inputs.values())))
    unit = fixed_batch or 1
    wanted = max(unit, round(min(HELD_OUT_SHARE * count, MAX_HELD_OUT) / unit) * unit)
    if count - wanted < unit or count < 2:
        raise DataError(
            "calibration",
            f"{count} samples are too few to hold some out for judging repairs",
            "provide more samples, or remove repair and fallback",
        )
    chosen = np.zeros(count, dtype=bool)
    chosen[np.linspace(0, count - 1, wanted).astype(int)] = True
    return RepairSamples(
        {name: array[~chosen] for name, array in inputs.items()},
        {name: array[chosen] for name, array in inputs.items()},
        None if labels is None else labels[chosen],
    )
