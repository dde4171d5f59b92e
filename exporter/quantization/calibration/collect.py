"""Streaming over calibration data: what the quantizer needs to know of each tensor, and nothing else.

ONNX Runtime's own calibrators keep every activation of every sample, and add a node per tensor in a way
whose cost grows with the square of the graph. Here the graph gets the wanted tensors as further outputs
at once, runs batch by batch, and each batch is reduced while the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.core.progress import Progress
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import session_with_outputs
from exporter.graphs.ranges import Range
from exporter.options import CalibrationMethod
from exporter.quantization.calibration.histogram import Extremes, GrowingHistogram, Histogram
from exporter.quantization.calibration.methods import entropy_range, mse_range, percentile_range

PERCENTILE = 99.99
MOVING_AVERAGE = 0.05


class _Observer(Protocol):
    def add(self, values: Array) -> None:
        """Take in the values of one batch."""


def collect_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Iterable[dict[str, Array]],
    *,
    batches: int,
    method: CalibrationMethod,
    progress: Progress,
) -> dict[str, Range]:
    """Activation ranges of `tensors`; the data are run once, whatever the method.

    `minmax` runs the graph as it is written, so that its ranges are those of ONNX Runtime's calibrator to
    the last bit; the other methods let ONNX Runtime optimize it, at about half the time.

    Args:
        model: the float model.
        tensors: names of its float tensors, inputs included.
        feeds: the calibration samples, batch by batch.
        batches: how many batches they give.
        method: how a range is chosen.
        progress: told of every batch.

    Raises:
        DataError: there are no samples, all their values are the same, the model cannot be run on one, or
            a tensor holds NaN or infinity on one.
    """
    if method in {"minmax", "moving_average"}:
        weight = MOVING_AVERAGE if method == "moving_average" else None
        extremes = {name: Extremes(weight) for name in tensors}
        _observe(extremes, model, feeds, batches=batches, optimized=weight is not None, progress=progress)
        return {name: Range(seen.lowest, seen.highest) for name, seen in extremes.items()}
    growing = {name: GrowingHistogram() for name in tensors}
    _observe(growing, model, feeds, batches=batches, optimized=True, progress=progress)
    choose = {"entropy": entropy_range, "mse": mse_range}.get(method, _usual_percentile)
    return {name: _chosen(choose, histogram.histogram()) for name, histogram in growing.items()}


def _usual_percentile(histogram: Histogram) -> Range:
    return percentile_range(histogram, PERCENTILE)


def _chosen(choose: Callable[[Histogram], Range], histogram: Histogram) -> Range:
    if histogram.lowest == histogram.highest:  # nothing can be cut off from a constant
        return Range(histogram.lowest, histogram.highest)
    return choose(histogram)


def _observe(
    observers: dict[str, _Observer] | dict[str, Extremes] | dict[str, GrowingHistogram],
    model: onnx.ModelProto,
    feeds: Iterable[dict[str, Array]],
    *,
    batches: int,
    optimized: bool,
    progress: Progress,
) -> None:
    """Show every tensor's observer the tensor's values, batch by batch."""
    session = session_with_outputs(model, list(observers), optimized=optimized)
    computed = {output.name for output in session.get_outputs()}
    names = [name for name in observers if name in computed]  # in graph order: errors name the first
    spread = _Spread()

    def run(batch: Mapping[str, Array]) -> dict[str, Array]:
        if not names:
            return {}
        try:
            found = session.run(names, {n: np.ascontiguousarray(a) for n, a in batch.items()})
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise DataError(
                "calibration",
                f"the model fails on a sample ({error})",
                "check the samples against the model",
            ) from error
        return dict(zip(names, found, strict=True))

    def values() -> Iterator[dict[str, Array]]:
        for batch in feeds:
            spread.add(batch)
            yield {name: array for name, array in batch.items() if name in observers} | run(batch)

    seen = False
    with progress.task("calibration", batches) as task, closing(_ahead(values())) as found_ahead:
        for found in found_ahead:
            for name, array in found.items():
                if not array.size:
                    raise DataError(f"tensor {name}", "is empty on a calibration sample", "leave it out")
                try:
                    observers[name].add(array)
                except ValueError as error:
                    raise _no_range(name, model) from error
            seen = True
            task.advance()
    if observers and not seen:
        raise DataError("calibration", "there are no samples", "give some")
    if observers and spread.constant is not None:
        raise DataError(
            "calibration",
            f"every value of every sample is {spread.constant:g}",
            "give samples such as the model will meet",
        )


class _Spread:
    """Whether the samples differ in anything."""

    def __init__(self) -> None:
        self._values: set[float] = set()

    def add(self, batch: Mapping[str, Array]) -> None:
        if len(self._values) < 2:
            for array in batch.values():
                if array.dtype.kind in "biuf" and array.size:
                    self._values |= {float(array.min()), float(array.max())}

    @property
    def constant(self) -> float | None:
        """The one value that there is, or None."""
        return next(iter(self._values)) if len(self._values) == 1 else None


def _no_range(tensor: str, model: onnx.ModelProto) -> DataError:
    """For a tensor that is not finite, though the feeds are."""
    index = GraphIndex.of(model.graph)
    touching = [node.name for node in (index.maker(tensor), *index.readers(tensor)) if node and node.name]
    fix = f"leave {', '.join(touching[:4])} in float, or clean the data" if touching else "clean the data"
    return DataError(f"tensor {tensor}", "holds NaN or infinity on a calibration sample", fix)


def _ahead(items: Iterator[dict[str, Array]]) -> Generator[dict[str, Array], None, None]:
    """The items, each of which a thread makes while the one before it is worked on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
