"""The activation ranges for a quantizer, read from the store or collected from samples."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from bench.core.progress import Progress
from exporter.caching.cache import content_key
from exporter.caching.provenance import library_versions, own_code
from exporter.graphs.onnx_files import content_hash
from exporter.graphs.ranges import Range
from exporter.options import CalibrationMethod
from exporter.quantization.calibration.collect import collect_ranges
from exporter.quantization.calibration.store import RangeStore
from exporter.sources.splits import Samples


def activation_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    samples: Samples,
    *,
    batch_size: int,
    method: CalibrationMethod,
    progress: Progress,
    store: RangeStore | None = None,
) -> dict[str, Range]:
    """Return the ranges of at least `tensors`.

    If a range is not stored, the samples are read once, batch by batch.

    Args:
        model: the float model with inferred shapes.
        tensors: names of float tensors of the model; inputs are allowed.
        samples: calibration samples.
        batch_size: samples per run.
        method: how to choose a range.
        progress: advances with every batch.
        store: stored ranges of earlier builds; None to collect all ranges.

    Raises:
        DataError: for the same reasons as `collect_ranges`.
    """
    key = "" if store is None else _key(model, store.data, method, batch_size)
    ranges = {} if store is None else store.find(key)
    if missing := [name for name in tensors if name not in ranges]:
        ranges |= collect_ranges(
            model,
            missing,
            samples.batches(batch_size),
            batches=-(-samples.count // batch_size),
            method=method,
            progress=progress,
        )
        if store is not None:
            store.keep(key, ranges)
    return ranges


def _key(model: onnx.ModelProto, data: str, method: CalibrationMethod, batch_size: int) -> str:
    """A hash of everything that determines a tensor's range."""
    return content_key(
        {
            "model": content_hash(model),
            "data": data,
            "method": method,
            # Only this method's ranges depend on how the samples are cut into batches.
            "batch": batch_size if method == "moving_average" else None,
            "code": own_code(),
            "libraries": library_versions(),
        }
    )
