"""Streaming over calibration data: what the quantizer needs to know of each tensor, and nothing else.

ONNX Runtime's own calibrators keep every activation of every sample, and add a node per tensor in a way
whose cost grows with the square of the graph. Here the graph gets the wanted tensors as further outputs
in one step, runs batch by batch, and each batch is reduced before the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnxruntime

from bench.arrays import Array
from bench.errors import DataError
from bench.progress import Progress, Task
from exporter.calibration.histogram import Histogram
from exporter.calibration.methods import Range, entropy_range, mse_range, percentile_range
from exporter.choices import CalibrationMethod
from exporter.inference import session_with_outputs

PERCENTILE = 99.99
MOVING_AVERAGE = 0.05

# Gives the same feeds, batch by batch, each time it is called.
Feeds = Callable[[], Iterable[dict[str, Array]]]


def collect_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    batches: int,
    method: CalibrationMethod,
    progress: Progress,
) -> dict[str, Range]:
    """Activation ranges of `tensors`.

    The data are run once for `minmax` and `moving_average`; the histogram methods run them a second time,
    when the bounds are known.

    Args:
        model: the float model.
        tensors: names of its float tensors, inputs included.
        feeds: the calibration samples.
        batches: how many batches they give.
        method: how a range is chosen.
        progress: told of every batch.

    Raises:
        DataError: there are no samples, or a tensor holds NaN or infinity on one.
    """
    session = session_with_outputs(model, tensors)
    passes = 1 if method in {"minmax", "moving_average"} else 2
    with progress.task("calibration", passes * batches) as task:
        bounds = _bounds(session, tensors, feeds, task, average=method == "moving_average")
        if passes == 1:
            return bounds
        histograms = {name: Histogram(r.lowest, r.highest) for name, r in bounds.items()}
        for values in _run(session, tensors, feeds, task):
            for name, value in values.items():
                histograms[name].add(value)
    choose = {"entropy": entropy_range, "mse": mse_range}.get(method, _usual_percentile)
    return {
        # A constant tensor has no histogram to speak of.
        name: choose(histogram) if bounds[name].lowest < bounds[name].highest else bounds[name]
        for name, histogram in histograms.items()
    }


def _usual_percentile(histogram: Histogram) -> Range:
    return percentile_range(histogram, PERCENTILE)


def _bounds(
    session: onnxruntime.InferenceSession,
    tensors: Sequence[str],
    feeds: Feeds,
    task: Task,
    *,
    average: bool,
) -> dict[str, Range]:
    """Smallest and largest value of each tensor; of all batches, or their exponential moving average."""
    bounds: dict[str, tuple[float, float]] = {}
    for values in _run(session, tensors, feeds, task):
        for name, value in values.items():
            low, high = float(value.min()), float(value.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(
                    f"tensor {name}", "holds NaN or infinity on a calibration sample", "clean the data"
                )
            if name in bounds and average:
                before = bounds[name]
                low = before[0] + MOVING_AVERAGE * (low - before[0])
                high = before[1] + MOVING_AVERAGE * (high - before[1])
            elif name in bounds:
                low, high = min(low, bounds[name][0]), max(high, bounds[name][1])
            bounds[name] = low, high
    if tensors and not bounds:
        raise DataError("calibration", "there are no samples", "give some")
    return {name: Range(*pair) for name, pair in bounds.items()}


def _run(
    session: onnxruntime.InferenceSession, tensors: Sequence[str], feeds: Feeds, task: Task
) -> Iterable[dict[str, Array]]:
    names = [name for name in tensors if name in {output.name for output in session.get_outputs()}]
    for batch in feeds():
        values = dict(zip(names, session.run(names, batch), strict=True)) if names else {}
        values.update({name: batch[name] for name in tensors if name in batch})
        yield values
        task.advance()
