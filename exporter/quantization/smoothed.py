"""Smooth the channels of a network before it is quantized, as a remedy."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np

from bench.core.arrays import Array
from exporter.graphs.onnx_files import is_large
from exporter.quantization.attempts import Attempts
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.repair.base import RepairContext
from exporter.quantization.repair.smooth import smooth, smoothed_tensors
from exporter.sources.splits import Samples

# All samples are used, because rare values stretch the ranges, except if they take more memory than this.
_MOST_BYTES, _BATCH = 64 * 2**20, 8


def smoothed(attempts: Attempts, settings: Int8Settings) -> Attempts | None:
    """Attempts on the smoothed network (`repair.smooth`); None if there is nothing to smooth.

    Args:
        attempts: attempts on the network, which is not smoothed yet.
        settings: how it is quantized.
    """
    if is_large(attempts.model) or not smoothed_tensors(attempts.model):
        return None
    size = settings.fixed_batch or _BATCH
    context = RepairContext(
        inputs=_kept(attempts.samples, size),
        batch_size=size,
        reference=attempts.model,
        qdq_model=lambda model: model,
        per_channel=settings.target.per_channel,
        progress=attempts.progress,
    )
    model, figures = smooth(attempts.model, context)
    if not figures.smoothed:
        return None
    folder = attempts.folder / "smoothed"
    folder.mkdir(exist_ok=True)
    return replace(attempts, model=model, folder=folder, levels={}, smoothed=True)


def _kept(samples: Samples, size: int) -> dict[str, Array]:
    """Batches of samples in memory, spread evenly over all samples."""
    first = next(iter(samples.batches(size)))
    most = max(1, _MOST_BYTES // sum(array.nbytes for array in first.values()))
    step = math.ceil(math.ceil(samples.count / size) / most)
    batches = list(islice(samples.batches(size), 0, None, step))
    return {name: np.concatenate([feeds[name] for feeds in batches]) for name in first}
