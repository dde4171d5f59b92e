"""Static int8 through ONNX Runtime's own quantizer, told what the target CPU needs.

Calibration is ours (`exporter.quantization.calibration`); the graph is ONNX Runtime's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.core.progress import Progress
from exporter.graphs.index import GraphIndex
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.graphs.rewrites.first_convolution import fold_stem
from exporter.graphs.targets import Target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.saturation import (
    NO_OVERRIDES,
    NO_REDUCTION,
    Overrides,
    Reduction,
    known_reduction,
    without_saturation,
)
from exporter.options import CalibrationMethod
from exporter.quantization.calibration import RangeStore, activation_ranges
from exporter.quantization.embedding_tables import quantize_tables
from exporter.quantization.output import Accept, accept_all, write_quantized
from exporter.quantization.qdq import QdqPlan, make_qdq, plan_qdq
from exporter.results import Int8Model
from exporter.sources.splits import Samples

MAX_BATCH = 16
# Activations of a batch that are looked at together: larger ones leave the caches and, worse, are fresh
# memory each time, whose first touch costs more than the convolutions (measured: 41 ms an image in batches
# of 16, 10 ms one by one, EfficientNet-Lite0 at 224 px).
BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Int8Settings:
    """How a float model becomes int8.

    Attributes:
        target: the CPU kind that decides types.
        method: how activation ranges are chosen.
        exclude: names of nodes to leave in float.
        fixed_batch: the batch size that the model insists on, or None.
    """

    target: Target
    method: CalibrationMethod = "minmax"
    exclude: tuple[str, ...] = ()
    fixed_batch: int | None = None


@dataclass(frozen=True)
class Shortcuts:
    """What makes an int8 model smaller and faster and needs no ranges.

    Attributes:
        tables: embedding tables that were stored in 8 bits.
        stem_on_blocks: whether the first convolution runs on blocks of pixels.
    """

    tables: int
    stem_on_blocks: bool


def quantize_model(
    model: onnx.ModelProto,
    destination: Path,
    samples: Samples,
    settings: Int8Settings,
    *,
    progress: Progress,
    store: RangeStore | None = None,
    reference: onnx.ModelProto | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
    accept: Accept = accept_all,
) -> Int8Model:
    """Write a float model in int8, in QDQ form.

    Args:
        model: the float model, BatchNorm folded.
        destination: the file to write.
        samples: calibration samples; they are read batch by batch, once.
        settings: how to quantize.
        progress: told of every batch.
        store: of ranges found before, or None to collect them all.
        reference: the model that is calibrated, where `model` has weights that are bent for int8.
        trained_qparams: what the weights were fitted to is taken as it is.
        accept: asked before the file takes its place.

    Raises:
        DataError: the samples cannot be read, hold NaN, or do not fill the fixed batches.
        ExportError: an excluded node does not exist, or ONNX Runtime refuses the model.
    """
    plan = plan_qdq(model, settings.target, settings.exclude)
    batch_size = _batch_size(plan, samples, settings.fixed_batch)
    trained = trained_qparams.ranges
    ranges = activation_ranges(
        plan.network if reference is None else infer_shapes(reference),
        [name for name in plan.tensors if name not in trained],
        samples,
        batch_size=batch_size,
        method=settings.method,
        progress=progress,
        store=store,
    )
    quantized, reduction = _round(plan, {**ranges, **trained}, samples, batch_size, trained_qparams.levels)
    shortcuts = take_shortcuts(quantized, settings.target)
    needed = write_quantized(quantized, model, destination, settings.target, accept)
    return Int8Model(
        target=settings.target.name,
        activation_type="int8" if settings.target.signed_activations else "uint8",
        weight_type="int8",
        tables=shortcuts.tables,
        min_onnxruntime=needed,
        bits=8,
        per_channel=settings.target.per_channel,
        reduced_channels=reduction.channels(),
        method=settings.method,
        samples=samples.count,
        learned_ranges=sum(name in trained for name in plan.tensors),
        stem_on_blocks=shortcuts.stem_on_blocks,
        quantize_nodes=_count(quantized, "QuantizeLinear"),
        dequantize_nodes=_count(quantized, "DequantizeLinear"),
    )


def _batch_size(plan: QdqPlan, samples: Samples, fixed: int | None) -> int:
    """Samples per run.

    Raises:
        DataError: they do not fill the fixed batches.
    """
    if fixed is None:
        return calibration_batch_size(plan.network, plan.tensors)
    if samples.count % fixed:
        raise DataError(
            "calibration data",
            f"{samples.count} samples do not fill batches of {fixed}",
            "export the model with a dynamic batch, or leave some out",
        )
    return fixed


def _round(
    plan: QdqPlan,
    ranges: Mapping[str, Range],
    samples: Samples,
    batch_size: int,
    levels: Mapping[str, Array],
) -> tuple[onnx.ModelProto, Reduction]:
    """The int8 model, and its channels of fewer levels where the target's sums could saturate.

    `levels` are those that weights were fitted to: the search starts from them.
    """

    def make(overrides: Overrides) -> onnx.ModelProto:
        return make_qdq(plan, ranges, overrides)

    if not plan.options.target.saturates:
        return make(NO_OVERRIDES), NO_REDUCTION
    start = known_reduction(make(NO_OVERRIDES), levels) if levels else NO_REDUCTION
    return without_saturation(make, lambda: samples.batches(batch_size), start)


def _count(model: onnx.ModelProto, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph.node)


def take_shortcuts(quantized: onnx.ModelProto, target: Target) -> Shortcuts:
    """Make an int8 model smaller and faster by what needs no ranges, in place; and say what was done."""
    return Shortcuts(
        tables=quantize_tables(quantized),
        stem_on_blocks=target.stem_on_blocks and fold_stem(quantized, target.runtime),
    )


def calibration_batch_size(model: onnx.ModelProto, tensors: Sequence[str]) -> int:
    """Samples per run, so that the tensors looked at fit in `BATCH_BYTES`; open sizes count as one."""
    index = GraphIndex.of(model.graph)
    sizes = [(index.shape(name) or ())[1:] for name in tensors]
    sample_bytes = 4 * sum(math.prod(max(size or 1, 1) for size in sample) for sample in sizes)
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(sample_bytes, 1)))
