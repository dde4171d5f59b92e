"""A table of measured kernel times at several widths, with interpolation between them."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import product
from pathlib import Path

from bench.core.files import write_json
from exporter.training.shrinking.layer_costs import Kernel, Layer

# Fractions of its width at which a layer is measured, rounded up to multiples of GRID_MULTIPLE; times
# between them are interpolated. Depthwise layers are measured at every requested width: their int8 kernel
# takes 3 to 4 times as long if the width is not a multiple of 16 (measured: 32 x 32, 3 x 3, 96 channels
# 22 us, 100 channels 82 us, 104 channels 71 us), so interpolation would be wrong.
GRID = (1.0, 0.75, 0.5, 0.25, 0.125)
GRID_MULTIPLE = 16

# (kernels) -> nanoseconds of one call of each kernel
Timer = Callable[[Sequence[Kernel]], list[float]]
Grid = tuple[int, ...]


class KernelTable:
    """Times of kernels in ms, measured once and stored in a file.

    Args:
        timer: function that measures kernels.
        path: path of the file, or None to store nothing. The caller derives its name from host, versions
            and setting.
    """

    def __init__(self, timer: Timer, path: Path | None = None) -> None:
        self._timer, self._path = timer, path
        self._ns = {} if path is None else _read(path)
        self._grids: dict[Kernel, tuple[Grid, Grid]] = {}

    def prepare(self, layers: Sequence[Layer], widths: Mapping[str, Sequence[int]]) -> int:
        """Measure the kernels of the layers that the table lacks, and return how many were timed.

        Args:
            layers: layers of the network.
            widths: group name -> the numbers of units that it may keep, descending from all units.
        """
        wanted: dict[str, Kernel] = {}
        for layer in layers:
            kernel = layer.kernel
            old = self._grids.get(_family(kernel), ((), ()))
            into = sorted({*old[0], *_grid(kernel.inputs, layer.inputs, kernel, widths)})
            out = sorted({*old[1], *_grid(kernel.outputs, layer.outputs, kernel, widths)})
            self._grids[_family(kernel)] = tuple(into), tuple(out)
            for corner in _corners(kernel, into, out):
                if _key(corner) not in self._ns:
                    wanted[_key(corner)] = corner
        if wanted:
            times = self._timer(list(wanted.values()))
            self._ns |= dict(zip(wanted, times, strict=True))
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._ns)
        return len(wanted)

    def __call__(self, kernel: Kernel) -> float:
        """The time of a kernel in ms, bilinear between the widths that were measured."""
        into, out = self._grids[_family(kernel)]
        lines = [_between(out, kernel.outputs)]
        if not kernel.depthwise:
            lines.insert(0, _between(into, kernel.inputs))
        ns = sum(
            math.prod(share for _, share in corner)
            * self._ns[_key(kernel.with_channels(corner[0][0], corner[-1][0]))]
            for corner in product(*lines)
        )
        return ns / 1e6


def _read(path: Path) -> dict[str, float]:
    """The times stored in a file; empty if the file is missing or damaged."""
    try:
        kept = {str(key): float(ns) for key, ns in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {key: ns for key, ns in kept.items() if 0 < ns < math.inf}


def _grid(
    channels: int, side: Mapping[str, int], kernel: Kernel, widths: Mapping[str, Sequence[int]]
) -> Grid:
    """The widths at which one side of a layer is measured."""
    if not side:
        return (channels,)
    if kernel.depthwise and len(side) == 1:
        ((name, each),) = side.items()
        return tuple(channels - (widths[name][0] - width) * each for width in widths[name])
    multiple = math.lcm(GRID_MULTIPLE, kernel.groups or 1)
    return tuple(min(channels, math.ceil(channels * share / multiple) * multiple) for share in GRID)


def _corners(kernel: Kernel, into: Sequence[int], out: Sequence[int]) -> Iterator[Kernel]:
    for inputs, outputs in [(width, width) for width in out] if kernel.depthwise else product(into, out):
        yield kernel.with_channels(inputs, outputs)


def _family(kernel: Kernel) -> Kernel:
    """The kernel with its channel counts set to 0; layers of one family share a grid."""
    return kernel.with_channels(0, 0)


def _between(grid: Grid, width: int) -> list[tuple[int, float]]:
    """The two measured widths around a width, with their weights; outside the grid, extrapolate."""
    if width in grid:
        return [(width, 1.0)]
    if len(grid) == 1:  # scale in proportion to the width
        return [(grid[0], width / grid[0])]
    index = min(max(bisect_left(grid, width), 1), len(grid) - 1)
    low, high = grid[index - 1], grid[index]
    share = (width - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _key(kernel: Kernel) -> str:
    """All fields of a kernel as JSON text, its key in the table."""
    return json.dumps(astuple(kernel))
