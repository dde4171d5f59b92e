"""Static int8 through ONNX Runtime's own quantizer, told what the target CPU needs.

Calibration is ours (`exporter.quantization.calibration`); the graph is ONNX Runtime's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from bench.core.errors import DataError
from bench.core.progress import Progress
from bench.inputs.host import TARGET_KEY
from exporter.caching.cache import content_key
from exporter.caching.provenance import library_versions, own_code
from exporter.graphs.kernels import state_oldest_runtime
from exporter.graphs.onnx_files import carry_metadata, content_hash, infer_shapes, write_checked
from exporter.graphs.rewrites.first_convolution import fold_stem
from exporter.graphs.targets import Target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.saturation import (
    NO_OVERRIDES,
    NO_REDUCTION,
    Overrides,
    known_reduction,
    without_saturation,
)
from exporter.quantization.calibration import RangeStore, collect_ranges
from exporter.quantization.embedding_tables import quantize_tables
from exporter.quantization.qdq import make_qdq, plan_qdq
from exporter.recipes import QuantizeConfig
from exporter.recipes.options import CalibrationMethod
from exporter.sources.splits import Samples, Split, stratified_indices

MAX_BATCH = 16
# Activations of a batch that are looked at together: larger ones leave the caches and, worse, are fresh
# memory each time, whose first touch costs more than the convolutions (measured: 41 ms an image in batches
# of 16, 10 ms one by one, EfficientNet-Lite0 at 224 px).
BATCH_BYTES = 32 * 2**20
DEFAULT_SAMPLES = 256


def quantize(
    source: Path,
    destination: Path,
    calibration: Split,
    config: QuantizeConfig,
    target: Target,
    *,
    seed: int,
    progress: Progress,
    store: RangeStore | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
) -> dict[str, Any]:
    """Write a float model in int8, calibrated on a share of a split.

    Args:
        source: the float model, BatchNorm folded.
        destination: the file to write.
        calibration: `config.samples` of these are used, drawn with the classes in proportion.
        config: what to quantize.
        target: the CPU kind that decides types.
        seed: of the draw.
        progress: told of every batch.
        store: of ranges found before, or None to collect them anew.
        trained_qparams: what the weights were fitted to is taken as it is.

    Raises:
        DataError: too few samples.
        ExportError: an excluded node does not exist, or ONNX Runtime refuses the model.
    """
    count = sample_count(calibration, config)
    drawn = stratified_indices(calibration.labels, {"calibration": count}, seed, "quantize.samples")
    samples = calibration.take(drawn["calibration"])
    return quantize_model(
        onnx.load(source),
        destination,
        samples,
        target=target,
        method=config.method,
        exclude=config.exclude,
        progress=progress,
        store=store,
        trained_qparams=trained_qparams,
    )


def quantize_model(
    model: onnx.ModelProto,
    destination: Path,
    samples: Samples,
    *,
    target: Target,
    method: CalibrationMethod,
    exclude: tuple[str, ...],
    progress: Progress,
    fixed_batch: int | None = None,
    store: RangeStore | None = None,
    reference: onnx.ModelProto | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
    accept: Callable[[Path], None] = lambda _written: None,
) -> dict[str, Any]:
    """Write a float model in int8, in QDQ form.

    Args:
        model: the float model, BatchNorm folded.
        destination: the file to write.
        samples: calibration samples; they are read batch by batch, once.
        target: the CPU kind that decides types.
        method: how activation ranges are chosen.
        exclude: names of nodes to leave in float.
        progress: told of every batch.
        fixed_batch: the batch size that the model insists on, or None.
        store: of ranges found before, or None to collect them anew.
        reference: the model that is calibrated, where `model` has weights that are bent for int8.
        trained_qparams: what the weights were fitted to is taken as it is.
        accept: called with the finished file before it takes its place; what it raises is passed on.

    Raises:
        DataError: the samples cannot be read, hold NaN, or do not fill the fixed batches.
        ExportError: an excluded node does not exist, or ONNX Runtime refuses the model.
    """
    plan = plan_qdq(model, target, exclude)
    batch_size = fixed_batch or calibration_batch_size(plan.network, plan.tensors)
    if fixed_batch is not None and samples.count % fixed_batch:
        raise DataError(
            "calibration data",
            f"{samples.count} samples do not fill batches of {fixed_batch}",
            "export the model with a dynamic batch, or leave some out",
        )
    network = plan.network if reference is None else infer_shapes(reference)
    key = "" if store is None else _ranges_key(network, store.data, method, batch_size)
    ranges = {} if store is None else store.find(key)
    if missing := [
        name for name in plan.tensors if name not in ranges and name not in trained_qparams.ranges
    ]:
        ranges |= collect_ranges(
            network,
            missing,
            samples.batches(batch_size),
            batches=-(-samples.count // batch_size),
            method=method,
            progress=progress,
        )
        if store is not None:
            store.keep(key, ranges)

    def run(overrides: Overrides) -> onnx.ModelProto:
        return make_qdq(plan, {**ranges, **trained_qparams.ranges}, overrides)

    if target.saturates:
        start = (
            known_reduction(run(NO_OVERRIDES), trained_qparams.steps)
            if trained_qparams.steps
            else NO_REDUCTION
        )
        quantized, reduction = without_saturation(run, lambda: samples.batches(batch_size), start)
    else:
        quantized, reduction = run(NO_OVERRIDES), NO_REDUCTION
    shortcuts = take_shortcuts(quantized, target)
    carry_metadata(model, quantized, {TARGET_KEY: target.name})
    needed = state_oldest_runtime(quantized)
    write_checked(quantized, destination, accept)
    operators = [node.op_type for node in quantized.graph.node]
    return {
        "target": target.name,
        "activation_type": "int8" if target.signed_activations else "uint8",
        "weight_type": "int8",
        "bits": 8,
        "per_channel": target.per_channel,
        "reduced_channels": reduction.channels(),
        "method": method,
        "samples": samples.count,
        "learned_ranges": sum(name in trained_qparams.ranges for name in plan.tensors),
        **shortcuts,
        "min_onnxruntime": str(needed),
        "quantize_nodes": operators.count("QuantizeLinear"),
        "dequantize_nodes": operators.count("DequantizeLinear"),
    }


def take_shortcuts(quantized: onnx.ModelProto, target: Target) -> dict[str, int | bool]:
    """Make an int8 model smaller and faster by what needs no ranges, in place; and say what was done."""
    return {
        "tables": quantize_tables(quantized),
        "stem_on_blocks": target.stem_on_blocks and fold_stem(quantized, target.runtime),
    }


def warned(
    warnings: Sequence[str], progress: Progress, metrics: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Metrics of what a person should look at, who is told of it at once; after those in `metrics`."""
    for warning in warnings:
        progress.say(f"warning: {warning}")
    together = [*(metrics or {}).get("warnings", ()), *warnings]
    return {"warnings": together} if together else {}


def sample_count(calibration: Split, config: QuantizeConfig) -> int:
    """How many calibration samples to use.

    Raises:
        DataError: more are asked for than there are.
    """
    if config.samples is None:
        return min(DEFAULT_SAMPLES, calibration.count)
    if config.samples > calibration.count:
        raise DataError(
            "quantize.samples",
            f"{config.samples} samples are asked for, the calibration split has {calibration.count}",
            "ask for fewer",
        )
    return config.samples


def _ranges_key(model: onnx.ModelProto, data: str, method: CalibrationMethod, batch_size: int) -> str:
    """A hash of everything that decides what a tensor's range is."""
    return content_key(
        {
            "model": content_hash(model),
            "data": data,
            "method": method,
            # The only method that sees where one batch ends and the next begins.
            "batch": batch_size if method == "moving_average" else None,
            "code": own_code(),
            "libraries": library_versions(),
        }
    )


def calibration_batch_size(model: onnx.ModelProto, tensors: Sequence[str]) -> int:
    """Samples per run, so that the tensors looked at fit in `BATCH_BYTES`; open sizes count as one."""
    values = {v.name: v for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    sample_bytes: int = 4 * sum(
        math.prod(max(size.dim_value, 1) for size in values[name].type.tensor_type.shape.dim[1:])
        for name in tensors
    )
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(sample_bytes, 1)))
