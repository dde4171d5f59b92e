"""Static int8 quantization with ONNX Runtime's quantizer, configured for the target CPU.

`exporter.quantization.calibration` collects the ranges; ONNX Runtime's quantizer builds the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.core.progress import Progress
from exporter.graphs.float_reasons import EXCLUDED
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.observed import samples_per_run
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.graphs.rewrites.first_convolution import fold_stem
from exporter.graphs.targets import Target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.saturation import (
    NO_REDUCTION,
    Overrides,
    Reduction,
    known_reduction,
    without_saturation,
)
from exporter.options import CalibrationMethod
from exporter.quantization.calibration import RangeStore, activation_ranges
from exporter.quantization.embedding_tables import quantize_tables
from exporter.quantization.front_ends import FRONT_END, front_end_nodes
from exporter.quantization.fused import plan_what_fuses
from exporter.quantization.output import Accept, accept_all, write_quantized
from exporter.quantization.qdq import QdqPlan, make_qdq
from exporter.results import Int8Model
from exporter.sources.splits import Samples


@dataclass(frozen=True)
class Int8Settings:
    """Settings of int8 quantization.

    Attributes:
        target: the kind of CPU, which determines the types.
        method: how to choose activation ranges.
        exclude: names of nodes to leave in float.
        fixed_batch: the batch size that the model requires, or None if it is dynamic.
        reasons: why nodes stay in float that no person excluded, node -> reason.
        all_may_be_excluded: whether `exclude` may leave nothing in int8. In a recipe it may: there,
            `min_int8_ratio` states how much must run in int8.
    """

    target: Target
    method: CalibrationMethod = "minmax"
    exclude: tuple[str, ...] = ()
    fixed_batch: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    all_may_be_excluded: bool = False


@dataclass(frozen=True)
class Shortcuts:
    """Optimizations of an int8 model that need no activation ranges.

    Attributes:
        tables: the number of embedding tables stored in 8 bits.
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
    found_levels: dict[str, Array] | None = None,
) -> Int8Model:
    """Quantize a float model to int8 and write it in QDQ form.

    Args:
        model: the float model with folded BatchNorm.
        destination: the file to write.
        samples: calibration samples; they are read once, batch by batch.
        settings: how to quantize.
        progress: advances with every calibration batch.
        store: stored ranges of earlier builds; None to collect all ranges.
        reference: the model to calibrate, if repairs changed the weights of `model` for int8.
        trained_qparams: ranges and levels that the weights were fitted to; they are used unchanged.
        accept: called with the finished file before it is moved to `destination`; may raise to reject it.
        found_levels: weight levels without saturation that earlier calls found for the same weights and
            ranges, by the weight's name. The search starts from them, and adds those that it finds.

    Raises:
        DataError: the samples cannot be read, hold NaN, or do not fill the fixed batches.
        ExportError: an excluded node does not exist, or ONNX Runtime rejects the model.
    """
    trained = trained_qparams.ranges
    calibrated = None if reference is None else infer_shapes(reference)

    def collect(plan: QdqPlan, tensors: Sequence[str]) -> dict[str, Range]:
        return activation_ranges(
            plan.network if calibrated is None else calibrated,
            tensors,
            samples,
            batch_size=_batch_size(plan, samples, settings.fixed_batch),
            method=settings.method,
            progress=progress,
            store=store,
        )

    fusing = plan_what_fuses(
        model,
        settings.target,
        settings.exclude,
        trained,
        collect,
        # An accuracy budget, too, may leave nothing in int8.
        all_may_be_excluded=settings.all_may_be_excluded or bool(settings.reasons),
    )
    plan = fusing.plan
    levels = {**(found_levels or {}), **trained_qparams.levels}

    def batches() -> Iterator[dict[str, Array]]:
        return samples.batches(_batch_size(plan, samples, settings.fixed_batch))

    quantized, reduction = _round(plan, fusing.ranges, fusing.model, batches, levels)
    if found_levels is not None:
        found_levels |= reduction.levels
    shortcuts = take_shortcuts(quantized, settings.target)
    reasons = dict.fromkeys(front_end_nodes(plan.network), FRONT_END)
    reasons |= dict.fromkeys(named_nodes(model, settings.exclude), EXCLUDED) | dict(settings.reasons)
    needed = write_quantized(quantized, model, destination, settings.target, accept=accept, reasons=reasons)
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
        DataError: the samples do not fill the fixed batches.
    """
    if fixed is None:
        return samples_per_run(plan.network, plan.tensors, samples)
    if samples.count % fixed:
        raise DataError(
            "calibration data",
            f"{samples.count} samples do not fill batches of {fixed}, the model's fixed batch size",
            f"export the model with a dynamic batch, or leave {samples.count % fixed} samples out",
        )
    return fixed


def _round(
    plan: QdqPlan,
    ranges: Mapping[str, Range],
    plain: onnx.ModelProto,
    feeds: Callable[[], Iterator[dict[str, Array]]],
    levels: Mapping[str, Array],
) -> tuple[onnx.ModelProto, Reduction]:
    """Round a model, with fewer weight levels in channels whose 16-bit sums could saturate on the target.

    Args:
        plan, ranges: what to round.
        plain: the int8 model without reduced channels.
        feeds: returns the calibration samples, batch by batch, at each call.
        levels: weight levels to start the search from, by the weight's name.
    """
    if not plan.options.target.saturates:
        return plain, NO_REDUCTION
    start = known_reduction(plain, levels) if levels else NO_REDUCTION

    def make(overrides: Overrides) -> onnx.ModelProto:
        return make_qdq(plan, ranges, overrides)

    return without_saturation(make, feeds, plain, start)


def _count(model: onnx.ModelProto, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph.node)


def take_shortcuts(quantized: onnx.ModelProto, target: Target) -> Shortcuts:
    """Apply the optimizations that need no activation ranges, in place, and report them."""
    return Shortcuts(
        tables=quantize_tables(quantized),
        stem_on_blocks=target.stem_on_blocks and fold_stem(quantized, target.runtime),
    )
