"""Static int8 through ONNX Runtime's own quantizer, told what the target CPU needs.

Calibration is ours (`exporter.calibration`); the graph is ONNX Runtime's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.arrays import Array
from bench.errors import DataError
from bench.progress import Progress
from exporter import hard_swish
from exporter.calibration import Range, collect_ranges
from exporter.choices import CalibrationMethod
from exporter.data import Split, stratified_indices
from exporter.errors import ExportError
from exporter.onnx_files import write_checked
from exporter.placement import Placement, keep_in_float, place, read_unrounded
from exporter.recipe import QuantizeConfig
from exporter.saturation import NO_OVERRIDES, Overrides, without_saturation
from exporter.tables import quantize_tables
from exporter.targets import Target

MAX_BATCH = 16
# Activations of a batch that are looked at together: larger ones leave the caches and, worse, are fresh
# memory each time, whose first touch costs more than the convolutions (measured: 41 ms an image in batches
# of 16, 10 ms one by one, EfficientNet-Lite0 at 224 px).
BATCH_BYTES = 32 * 2**20
DEFAULT_SAMPLES = 256
_QUANTIZED = "_QuantizeLinear_Input"
_ANY_RANGE = Range(-1.0, 1.0)


def quantize(
    source: Path,
    destination: Path,
    calibration: Split,
    config: QuantizeConfig,
    target: Target,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write the int8 twin of a float model, calibrated on a share of a split.

    Args:
        source: the float model, BatchNorm folded.
        destination: the file to write.
        calibration: `config.samples` of these are used, drawn with the classes in proportion.
        config: what to quantize.
        target: the CPU kind that decides types.
        seed: of the draw.
        progress: told of every batch.

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
        samples.inputs,
        target=target,
        method=config.method,
        exclude=config.exclude,
        progress=progress,
    )


def quantize_model(
    model: onnx.ModelProto,
    destination: Path,
    inputs: Mapping[str, Array],
    *,
    target: Target,
    method: CalibrationMethod,
    exclude: tuple[str, ...],
    progress: Progress,
    fixed_batch: int | None = None,
) -> dict[str, Any]:
    """Write the int8 twin of a float model, in QDQ form.

    Args:
        model: the float model, BatchNorm folded.
        destination: the file to write.
        inputs: calibration samples, input name -> array [N, ...].
        target: the CPU kind that decides types.
        method: how activation ranges are chosen.
        exclude: names of nodes to leave in float.
        progress: told of every batch.
        fixed_batch: the batch size that the model insists on, or None.

    Raises:
        ExportError: an excluded node does not exist, or ONNX Runtime refuses the model.
    """
    names = {node.name for node in model.graph.node}
    for name in exclude:
        if name not in names:
            raise ExportError(
                "quantize.exclude", f"the graph has no node {name!r}", f"it has: {_some(names)}"
            )
    shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _name_nodes(shaped)
    count = len(next(iter(inputs.values())))
    network = shaped
    shaped, gates, placement = _placed(network, target, exclude)
    if not placement.nodes and not exclude:
        raise ExportError(
            model.graph.name or "model",
            "holds nothing that runs in int8: no Conv, Gemm or MatMul with constant weights",
            "ship it in float",
        )
    tensors = [name for name in quantized_tensors(shaped, target, placement) if name not in gates]
    batch_size = fixed_batch or _batch_size(shaped, tensors)

    def feeds() -> Iterator[dict[str, Array]]:
        for start in range(0, count, batch_size):
            yield {n: np.ascontiguousarray(a[start : start + batch_size]) for n, a in inputs.items()}

    batches = -(-count // batch_size)
    ranges = collect_ranges(network, tensors, feeds, batches=batches, method=method, progress=progress)

    def run(overrides: Overrides) -> onnx.ModelProto:
        made = _run_quantizer(shaped, ranges | gates, target, placement, overrides)
        hard_swish.hide_factor(made, gates)
        return made

    quantized, reduced = without_saturation(run, feeds) if target.saturates else (run({}), {})
    tables = quantize_tables(quantized)
    _carry_metadata(model, quantized, target)
    write_checked(quantized, destination)
    operators = [node.op_type for node in quantized.graph.node]
    return {
        "target": target.name,
        "activation_type": "int8" if target.signed_activations else "uint8",
        "weight_type": "int8",
        "per_channel": target.per_channel,
        "reduced_channels": reduced,
        "method": method,
        "samples": count,
        "tables": tables,
        "quantize_nodes": operators.count("QuantizeLinear"),
        "dequantize_nodes": operators.count("DequantizeLinear"),
    }


def _placed(
    network: onnx.ModelProto, target: Target, exclude: tuple[str, ...]
) -> tuple[onnx.ModelProto, dict[str, Range], Placement]:
    """The graph to quantize, the ranges known beforehand, and what of it to quantize.

    A HardSwish is split only where all of its parts run in int8.
    """
    names = hard_swish.candidates(network) - set(exclude)
    while True:
        graph = onnx.ModelProto()
        graph.CopyFrom(network)
        gates = hard_swish.split(graph, names)
        placement = place(graph, target.operators, exclude)
        whole = {name for name in names if name in placement.nodes}
        if whole == names:
            return graph, gates, placement
        names = frozenset(whole)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own: the quantizer is told by name what to do."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


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


def quantized_tensors(model: onnx.ModelProto, target: Target, placement: Placement) -> list[str]:
    """The tensors whose ranges the quantizer uses, found by letting it work on made-up ranges.

    Which tensors it rounds hangs on the graph alone. All others (two thirds of them in a convolutional
    network, whose norms and activations are absorbed) need not be looked at.
    """
    floats = _float_tensors(model)
    trial = _run_quantizer(model, {}, target, placement)
    rounded = set()
    for node in trial.graph.node:
        if node.op_type == "QuantizeLinear":
            rounded.add(node.input[0].removesuffix(_QUANTIZED))
            rounded.add(node.output[0].removesuffix("_QuantizeLinear_Output"))
    for node in model.graph.node:
        # The quantizer gives the input of a lone Relu or Clip the range of its output.
        if node.op_type in {"Relu", "Clip"} and node.input[0] in rounded:
            rounded.add(node.output[0])
    return [name for name in floats if name in rounded]


def _run_quantizer(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    target: Target,
    placement: Placement,
    overrides: Overrides = NO_OVERRIDES,
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod as OrtMethod
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    class Quantizer(QDQQuantizer):  # type: ignore[misc]
        """ONNX Runtime's, with results left in float by name and not by type alone."""

        def quantize_activation_tensor(self, tensor_name: str) -> None:
            if tensor_name not in placement.float_results:
                super().quantize_activation_tensor(tensor_name)

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not placement.nodes:
        return copy  # the quantizer would take an empty list for "all nodes"
    # The quantizer wants a range even for tensors that it absorbs; what it is does not matter there.
    unused = dict.fromkeys(_float_tensors(model), _ANY_RANGE)
    data = TensorsData(
        OrtMethod.MinMax,  # only says that the ranges are to be taken as they are
        {
            name: TensorData(lowest=np.float32(r.lowest), highest=np.float32(r.highest))
            for name, r in (unused | dict(ranges)).items()
        },
    )
    try:
        with _quiet_quantizer():
            quantizer = Quantizer(
                copy,
                target.per_channel,
                False,  # 7-bit weights only where `overrides` says so
                QuantType.QInt8,
                QuantType.QInt8 if target.signed_activations else QuantType.QUInt8,
                data,
                sorted(placement.nodes),
                [],
                sorted(target.operators),
                {"TensorQuantOverrides": dict(overrides)},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:  # the quantizer raises ValueError, RuntimeError and its own
        raise ExportError(
            model.graph.name or "model",
            f"ONNX Runtime cannot quantize it ({error})",
            "exclude the node it names",
        ) from error
    result: onnx.ModelProto = quantizer.model.model
    read_unrounded(result, placement)
    keep_in_float(result, placement)
    return result


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    """Inputs and results of nodes that are known to be float, in graph order."""
    known = {
        value.name
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    weights = {initializer.name for initializer in model.graph.initializer}
    produced = [name for node in model.graph.node for name in node.output]
    names = [*(value.name for value in model.graph.input), *produced]
    return [name for name in dict.fromkeys(names) if name in known - weights]


def _batch_size(model: onnx.ModelProto, tensors: Sequence[str]) -> int:
    """Samples per run, so that the tensors looked at fit in `BATCH_BYTES`; open sizes count as one."""
    values = {v.name: v for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    sample_bytes: int = 4 * sum(
        math.prod(max(size.dim_value, 1) for size in values[name].type.tensor_type.shape.dim[1:])
        for name in tensors
    )
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(sample_bytes, 1)))


def _carry_metadata(source: onnx.ModelProto, model: onnx.ModelProto, target: Target) -> None:
    """Keep the provenance, add the target, and drop the marks of ONNX Runtime's shape inference."""
    metadata = {entry.key: entry.value for entry in source.metadata_props}
    metadata["edgeproof.target"] = target.name
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Keep the quantizer's remarks from the user: it advises what the exporter has already done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:12])
