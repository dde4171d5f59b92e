"""Collect activation ranges in one pass over the calibration data.

ONNX Runtime's own calibrators keep every activation of every sample. They also add a node for each tensor,
at a cost that grows with the square of the graph. Here all wanted tensors become outputs of the graph in
one step. The graph runs batch by batch, and each batch is reduced while the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.core.progress import Progress
from exporter.graphs.index import GraphIndex
from exporter.graphs.observed import Observed, extremes_model, sample_errors
from exporter.graphs.ranges import Range
from exporter.options import CalibrationMethod
from exporter.quantization.calibration.histogram import Extremes, GrowingHistogram, Histogram
from exporter.quantization.calibration.methods import entropy_range, mse_range, percentile_range

PERCENTILE = 99.99
MOVING_AVERAGE = 0.05


_END_OF_BATCH: dict[str, Array] = {}


class _Observer(Protocol):
    def add(self, values: Array) -> None:
        """Record the values of one batch."""


def collect_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Iterable[dict[str, Array]],
    *,
    batches: int,
    method: CalibrationMethod,
    progress: Progress,
) -> dict[str, Range]:
    """Return the activation ranges of `tensors`. Each method reads the data once.

    `minmax` runs the graph without optimization, so its ranges equal those of ONNX Runtime's calibrator to
    the last bit. The other methods let ONNX Runtime optimize the graph, which takes about half the time.

    Args:
        model: the float model.
        tensors: names of float tensors of the model; inputs are allowed.
        feeds: the calibration samples, batch by batch.
        batches: the number of batches in `feeds`.
        method: how to choose a range.
        progress: advances with every batch.

    Raises:
        DataError: there are no samples, all their values are equal, the model fails on a sample, or a
            tensor holds NaN or infinity on a sample.
    """
    if method in {"minmax", "moving_average"}:
        weight = MOVING_AVERAGE if method == "moving_average" else None
        extremes = {name: Extremes(weight) for name in tensors}
        _observe(
            extremes,
            model,
            feeds,
            batches=batches,
            optimized=weight is not None,
            extremes=True,
            progress=progress,
        )
        return {name: Range(seen.lowest, seen.highest) for name, seen in extremes.items()}
    growing = {name: GrowingHistogram() for name in tensors}
    _observe(growing, model, feeds, batches=batches, optimized=True, extremes=False, progress=progress)
    choose = {"entropy": entropy_range, "mse": mse_range}.get(method, _usual_percentile)
    return {name: _chosen(choose, histogram.histogram()) for name, histogram in growing.items()}


def _usual_percentile(histogram: Histogram) -> Range:
    return percentile_range(histogram, PERCENTILE)


def _chosen(choose: Callable[[Histogram], Range], histogram: Histogram) -> Range:
    if histogram.lowest == histogram.highest:  # a constant has no tail to cut off
        return Range(histogram.lowest, histogram.highest)
    return choose(histogram)


def _observe(
    observers: dict[str, _Observer] | dict[str, Extremes] | dict[str, GrowingHistogram],
    model: onnx.ModelProto,
    feeds: Iterable[dict[str, Array]],
    *,
    batches: int,
    optimized: bool,
    extremes: bool,
    progress: Progress,
) -> None:
    """Pass the values of each tensor to its observer, batch by batch.

    With `extremes`, the observers need only the extremes, so the graph may compute them.
    """
    source = _Source(model, list(observers), optimized=optimized, extremes=extremes)
    spread = _Spread()

    def values() -> Iterator[dict[str, Array]]:
        for batch in feeds:
            spread.add(batch)
            yield from source.parts(batch)
            yield _END_OF_BATCH

    seen = False
    with progress.task("calibration", batches) as task, closing(_ahead(values())) as found_ahead:
        for found in found_ahead:
            for name, array in found.items():
                if not array.size:
                    raise DataError(
                        f"tensor {name}",
                        "is empty on a calibration sample",
                        "leave out the samples that make it empty",
                    )
                try:
                    observers[name].add(array)
                except ValueError as error:
                    raise _no_range(name, model) from error
            if found is _END_OF_BATCH:
                seen = True
                task.advance()
    if observers and not seen:
        raise DataError("calibration", "there are no samples", "provide at least one sample")
    if observers and spread.constant is not None:
        raise DataError(
            "calibration",
            f"every value of every sample is {spread.constant:g}",
            "provide samples like those that the model receives in use",
        )


class _Source:
    """The values of tensors on batches, in parts of bounded size.

    If the tensors of a batch take more than `HELD_BYTES` and only their extremes are needed, the graph
    computes the extremes, as ONNX Runtime's own calibrator does. (For smaller batches, this takes 1.6 times
    as long as reducing the values here: EfficientNet-Lite0 at 96 px.)
    """

    def __init__(
        self, model: onnx.ModelProto, tensors: Sequence[str], *, optimized: bool, extremes: bool
    ) -> None:
        self._model, self._optimized, self._extremes = model, optimized, extremes
        with sample_errors():
            self._source: Observed | _Reduced = Observed(model, tensors, optimized=optimized)

    def parts(self, batch: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """The values of all tensors, or three values of each that have the same extremes."""
        with sample_errors():
            source = self._source
            if self._extremes and isinstance(source, Observed) and source.exceeds(batch):
                self._source = _Reduced(self._model, source, optimized=self._optimized)
            yield from self._source.parts(batch)


class _Reduced:
    """The extremes of tensors on batches, computed by the graph; see `extremes_model`."""

    def __init__(self, model: onnx.ModelProto, observed: Observed, *, optimized: bool) -> None:
        computed = observed.computed
        reduced, outputs = extremes_model(model, computed)
        self._given = [name for name in observed.tensors if name not in computed]
        self._outputs = dict(zip(computed, outputs, strict=True))
        self._session = Observed(reduced, outputs, optimized=optimized)

    def parts(self, batch: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """The inputs, and then three values of each computed tensor."""
        yield {name: batch[name] for name in self._given}
        found = self._session.fetch(list(self._outputs.values()), batch)
        yield {name: found[output] for name, output in self._outputs.items()}


class _Spread:
    """Detects samples whose values are all equal."""

    def __init__(self) -> None:
        self._values: set[float] = set()

    def add(self, batch: Mapping[str, Array]) -> None:
        if len(self._values) < 2:
            for array in batch.values():
                if array.dtype.kind in "biuf" and array.size:
                    self._values |= {float(array.min()), float(array.max())}

    @property
    def constant(self) -> float | None:
        """The value that all samples consist of, or None if they hold several values."""
        return next(iter(self._values)) if len(self._values) == 1 else None


def _no_range(tensor: str, model: onnx.ModelProto) -> DataError:
    """The error for a tensor that is not finite although the feeds are."""
    index = GraphIndex.of(model.graph)
    touching = [node.name for node in (index.maker(tensor), *index.readers(tensor)) if node and node.name]
    fix = f"leave {', '.join(touching[:4])} in float, or clean the data" if touching else "clean the data"
    return DataError(f"tensor {tensor}", "holds NaN or infinity on a calibration sample", fix)


def _ahead(items: Iterator[dict[str, Array]]) -> Generator[dict[str, Array], None, None]:
    """Yield the items; a thread computes the next one while the caller processes the current one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
