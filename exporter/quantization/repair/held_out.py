"""Samples that repairs are fitted on, and others, which nothing was fitted to, that judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError

# A share of one sample in 64 is the least drop that can be told from none.
MIN_HELD_OUT, MAX_HELD_OUT = 64, 512
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class RepairSamples:
    """Two disjoint sets of samples.

    Attributes:
        fitted: give activation ranges and are what repairs are fitted on, input name -> array [N, ...].
        held_out: judge, input name -> array [M, ...].
        labels: class indices of `held_out` [M], or None.
    """

    fitted: Mapping[str, Array]
    held_out: Mapping[str, Array]
    labels: Array | None

    @property
    def held_out_count(self) -> int:
        """How many samples judge."""
        return len(next(iter(self.held_out.values())))


def hold_out(
    inputs: Mapping[str, Array], labels: Array | None, fixed_batch: int | None = None
) -> RepairSamples:
    """Keep every fourth sample, or as near as the batch size allows, for judging.

    Args:
        inputs: input name -> array [N, ...].
        labels: class indices [N], or None.
        fixed_batch: the batch size that the model insists on, or None.

    Raises:
        DataError: there are too few.
    """
    count = len(next(iter(inputs.values())))
    unit = fixed_batch or 1
    wanted = max(unit, round(min(HELD_OUT_SHARE * count, MAX_HELD_OUT) / unit) * unit)
    if count - wanted < unit or count < 2:
        raise DataError(
            "calibration",
            f"{count} samples are too few to hold some out, on which repairs are judged",
            "give more samples, or ask for no repair",
        )
    chosen = np.zeros(count, dtype=bool)
    chosen[np.linspace(0, count - 1, wanted).astype(int)] = True
    return RepairSamples(
        {name: array[~chosen] for name, array in inputs.items()},
        {name: array[chosen] for name, array in inputs.items()},
        None if labels is None else labels[chosen],
    )
