"""Leave some calibration samples out, to judge an int8 model on samples that it was not calibrated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.arrays import Array
from exporter.sources.splits import Samples

# With fewer samples, all of them are needed for the ranges.
_ENOUGH = 64
_SHARE, _LEAST, _MOST = 8, 16, 32
_READ_TOGETHER = 16


@dataclass(frozen=True)
class Without:
    """Samples without some rows.

    Attributes:
        samples: all samples.
        rows: rows to leave out, in ascending order.
        fixed_batch: the batch size that the model requires; its batches are left out as a whole.
    """

    samples: Samples
    rows: tuple[int, ...]
    fixed_batch: int | None = None

    @property
    def count(self) -> int:
        """The number of samples that are left."""
        return self.samples.count - len(self.rows)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each; the last may have fewer."""
        left: dict[str, Array] = {}
        start = 0
        for feeds in self.samples.batches(size):
            count = len(next(iter(feeds.values())))
            kept = ~np.isin(np.arange(start, start + count), self.rows)
            start += count
            here = {name: array[kept] for name, array in feeds.items()}
            left = {name: np.concatenate([left[name], here[name]]) for name in left} or here
            if len(next(iter(left.values()))) >= size:
                yield {name: array[:size] for name, array in left.items()}
                left = {name: array[size:] for name, array in left.items()}
        if len(next(iter(left.values()), ())):
            yield left


def take_rows(samples: Samples, rows: Sequence[int]) -> dict[str, Array]:
    """Feeds of some rows, given in ascending order; the others are read but not stored."""
    wanted, start = np.asarray(rows), 0
    parts: list[dict[str, Array]] = []
    for feeds in samples.batches(_READ_TOGETHER):
        count = len(next(iter(feeds.values())))
        here = wanted[(wanted >= start) & (wanted < start + count)] - start
        if here.size:
            parts.append({name: array[here] for name, array in feeds.items()})
        start += count
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_to_hold_out(
    count: int, fixed_batch: int | None = None, groups: Array | None = None
) -> tuple[int, ...]:
    """Rows of a sample set that judge an int8 model and do not calibrate it.

    An eighth of the samples, 16 to 32, spread over the set, which may be sorted by class. If groups are
    known (speakers, cameras), whole groups are held out: samples of the same group resemble each other, so
    the judgement would be too good.

    Args:
        count: number of samples.
        fixed_batch: the batch size that the model requires. Then whole batches are held out.
        groups: group of each sample [count], or None. They are not used with fixed batches.

    Returns:
        Rows in ascending order; empty if there are fewer than 64 samples, or all are of one group.
    """
    unit = fixed_batch or 1
    wanted = min(_MOST, max(_LEAST, count // _SHARE)) // unit * unit or unit
    if count < _ENOUGH or count - wanted < count // 2:
        return ()
    if groups is not None and fixed_batch is None:
        return _whole_groups(groups, wanted)
    return _spread(count, wanted, unit)


def rows_that_judge(held: Sequence[int]) -> tuple[int, ...]:
    """At most 32 of the held-out rows: whole groups may have more."""
    return tuple(held[place] for place in rows_to_judge(len(held)))


def rows_to_judge(count: int, fixed_batch: int | None = None) -> tuple[int, ...]:
    """Rows that judge an int8 model if none are held out: at most 32, or one fixed batch."""
    return _spread(count, min(count, fixed_batch or _MOST), fixed_batch or 1)


def _spread(count: int, wanted: int, unit: int) -> tuple[int, ...]:
    """`wanted` of `count` rows in whole batches of `unit`, spread over the set."""
    units = max(wanted // unit, 1)
    firsts = [index * (count // unit) // units * unit for index in range(units)]
    return tuple(row for first in firsts for row in range(first, min(first + unit, count)))


def _whole_groups(groups: Array, wanted: int) -> tuple[int, ...]:
    """Rows of the smallest groups that have `wanted` rows together, or less than half of all rows."""
    names, sizes = np.unique(groups, return_counts=True)
    chosen: list[object] = []
    total = 0
    for place in np.argsort(sizes, kind="stable"):
        if total >= wanted or 2 * (total + sizes[place]) > len(groups):
            break
        chosen.append(names[place])
        total += int(sizes[place])
    return tuple(int(row) for row in np.flatnonzero(np.isin(groups, np.array(chosen, dtype=names.dtype))))
