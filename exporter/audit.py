"""What ONNX Runtime really runs: the optimized graph, counted in multiply-adds.

A QDQ model says what could run in int8; only the graph after fusion says what does.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from bench.arrays import Array
from bench.errors import DataError, ModelError
from bench.evaluation import read_evaluation
from bench.host import fingerprint, has_vnni, host_target
from bench.schema import FrozenModel
from bench.session import ERRORS_ONLY, Signature, check_feeds, model_error, open_session, signature_of
from bench.worker import fixed_batch, synthetic_feeds
from exporter.attributes import attributes_of
from exporter.fusion import Graph, NeedlessPair, float_reason, needless_pairs, plain_name
from exporter.inference import session_with_outputs
from exporter.saturation import observe_saturation

# Samples on which saturation is observed; its shares hardly change with more.
SAMPLES = 32
_BATCH = 8
# Operators of the optimized graph that multiply: position of the weight among the inputs.
_FLOAT_WEIGHTS = {
    "Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1,
    "FusedMatMul": 1, "NhwcFusedConv": 1,
}  # fmt: skip
_INT8_WEIGHTS = {
    "QLinearConv": 3, "NhwcQLinearConv": 3, "ConvInteger": 1, "QGemm": 3, "QLinearMatMul": 3,
    "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "MatMulNBits": 1,
}  # fmt: skip
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "NhwcQLinearConv", "ConvInteger"}


class FloatOperator(FrozenModel):
    """A multiplying operator that runs in float, and why."""

    name: str
    op_type: str
    macs: int
    reason: str


class SaturatingLayer(FrozenModel):
    """A layer whose 16-bit sums can overflow on x86 without VNNI (`exporter.saturation`).

    Attributes:
        channels: output channels in which a pair of products can overflow, in the kernel's own pairing.
        affects_this_host: False where the CPU adds in 32 bits.
        observed_share: share of the layer's sums that overflows changed on samples, or None without.
        drift_sqnr_db: exact sums against those with overflows, in dB, or None without samples.
    """

    name: str
    channels: int
    affects_this_host: bool
    observed_share: float | None
    drift_sqnr_db: float | None


class Audit(FrozenModel):
    """The outcome of an inspection; multiply-adds are those of a batch of one.

    Attributes:
        quantized_at_load: operators with float weights in the file that run in int8 all the same. Between
            quantized tensors, ONNX Runtime quantizes the weights of Conv and Gemm itself, with a single
            scale (weight_bias_quantization.cc); to exclude such a node has no effect.
        samples: how many real samples saturation was observed on.
    """

    macs: int
    int8_macs: int
    int8_mac_ratio: float
    operators: dict[str, int]
    float_ops: tuple[FloatOperator, ...]
    needless_pairs: tuple[NeedlessPair, ...]
    quantized_at_load: tuple[str, ...]
    saturation: tuple[SaturatingLayer, ...]
    samples: int


def audit(path: Path, data: Path | None = None) -> Audit:
    """Load a model as it is run on this CPU, and count.

    Args:
        path: an .onnx file.
        data: samples as of `bench.evaluation`, or None: then feeds are made up from the input signature
            and saturation is bounded, not observed.

    Raises:
        ModelError: it cannot be loaded or run.
        DataError: it has open dimensions besides the batch and there are no samples; or they do not fit.
    """
    signature = signature_of(open_session(path))
    batches = [] if data is None else _read_batches(data, signature)
    feeds = _first(batches[0], signature) if batches else synthetic_feeds(path, signature)
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        model = _optimized(path, Path(folder) / "optimized.onnx")
    weights = _constants(model)
    nodes = [n for n in model.graph.node if n.op_type in {*_FLOAT_WEIGHTS, *_INT8_WEIGHTS}]
    shapes = _shapes(path, model, nodes, feeds)
    macs = [_macs(node, weights, shapes) for node in nodes]
    integer = sum(m for m, node in zip(macs, nodes, strict=True) if node.op_type in _INT8_WEIGHTS)
    graph, host, written = Graph.of(model), fingerprint(), onnx.load(path)
    integers = [node for node in nodes if node.op_type in _INT8_WEIGHTS]
    floats = [
        FloatOperator(
            name=plain_name(node),
            op_type=node.op_type,
            macs=count,
            reason=float_reason(node, graph, x86=host_target(host).startswith("x86")),
        )
        for node, count in zip(nodes, macs, strict=True)
        if node.op_type in _FLOAT_WEIGHTS
    ]
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    total = sum(macs)
    return Audit(
        macs=total,
        int8_macs=integer,
        int8_mac_ratio=integer / total if total else 0.0,
        operators=operators,
        float_ops=tuple(sorted(floats, key=lambda operator: -operator.macs)),
        needless_pairs=needless_pairs(graph),
        quantized_at_load=_quantized_at_load(written, {plain_name(node) for node in integers}),
        saturation=_saturation(path, written, batches, {operator.name for operator in floats}),
        samples=sum(len(next(iter(batch.values()))) for batch in batches),
    )


def coverage_failure(found: Audit, minimum: float) -> str | None:
    """Why too little runs in int8, in one line, or None if `minimum` (a share of multiply-adds) is met."""
    if found.int8_mac_ratio >= minimum:
        return None
    shares = f"{found.int8_mac_ratio:.1%} of multiply-adds run in int8, at least {minimum:.1%} wanted"
    if not found.float_ops:
        return shares
    worst = found.float_ops[0]
    return (
        f"{shares}; {len(found.float_ops)} operators stay in float, "
        f"first {worst.name or worst.op_type}: {worst.reason}"
    )


def _quantized_at_load(model: onnx.ModelProto, in_int8: set[str]) -> tuple[str, ...]:
    floats = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm"} and node.input[1] in floats and node.name in in_int8
    )


def _saturation(
    path: Path, model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]], in_float: set[str]
) -> tuple[SaturatingLayer, ...]:
    try:
        found = observe_saturation(model, batches or None)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ModelError(path, f"cannot be run as written ({error})", "check the model") from error
    vnni = has_vnni(fingerprint())
    return tuple(
        SaturatingLayer(
            name=one.layer.name,
            channels=one.channels,
            affects_this_host=not vnni,
            observed_share=one.observed_share,
            drift_sqnr_db=one.drift_sqnr_db,
        )
        for one in found
        if not one.layer.name or one.layer.name not in in_float
    )


def _read_batches(data: Path, signature: Signature) -> list[dict[str, Array]]:
    """At most `SAMPLES` samples, or one batch of the size that the model insists on."""
    size = fixed_batch(signature) or _BATCH
    evaluation = read_evaluation(data, rows=max(SAMPLES // size, 1) * size, spread=True)
    check_feeds(data, signature, dict(evaluation.feeds))
    count = evaluation.count
    if fixed_batch(signature) is not None:
        count -= count % size
    if not count:
        raise DataError(
            data,
            f"{evaluation.count} samples do not fill one batch of {size}",
            "export the model with a dynamic batch",
        )
    return [
        {n: np.ascontiguousarray(a[start : min(start + size, count)]) for n, a in evaluation.feeds.items()}
        for start in range(0, count, size)
    ]


def _first(batch: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """One sample, or the whole batch if the model insists on one."""
    return {name: array[: fixed_batch(signature) or 1] for name, array in batch.items()}


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name, and int8 weights by the name under which an unfused operator reads them."""
    found = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _optimized(path: Path, destination: Path) -> onnx.ModelProto:
    """The graph after all of ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.optimized_model_filepath = str(destination)
    try:
        # Without the blocked layout of float convolutions: it pads channels, which would be counted.
        onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"],
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise model_error(path, error) from error
    return onnx.load(destination)


def _shapes(
    path: Path, model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], feeds: dict[str, Array]
) -> dict[str, tuple[int, ...]]:
    """Run the optimized graph once, with everything that multiplies as an output.

    Its operators are ONNX Runtime's own, which ONNX's shape inference does not know.
    """
    by_input = {"MatMul", "FusedMatMul", "QLinearMatMul", "ConvTranspose"}
    wanted = [node.output[0] for node in nodes]
    wanted += [name for node in nodes if node.op_type in by_input for name in node.input[:1]]
    constants = {initializer.name for initializer in model.graph.initializer}
    try:
        session = session_with_outputs(
            model, [name for name in dict.fromkeys(wanted) if name not in constants]
        )
        outputs = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ModelError(path, f"cannot be run to count its work ({error})", "check the model") from error
    found = zip((output.name for output in session.get_outputs()), outputs, strict=True)
    return {name: np.shape(value) for name, value in (*feeds.items(), *found)}


def _macs(node: onnx.NodeProto, weights: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-adds of a node: outputs times the products that each sums."""
    outputs = math.prod(shapes.get(node.output[0], ()))
    if node.op_type == "MatMulNBits":  # its weights are packed
        return outputs * int(attributes_of(node)["K"])
    position = {**_FLOAT_WEIGHTS, **_INT8_WEIGHTS}[node.op_type]
    weight = weights.get(node.input[position])
    if node.op_type in _CONVOLUTIONS and weight is not None:
        return outputs * math.prod(weight.shape[1:])
    if node.op_type == "ConvTranspose" and weight is not None:
        return math.prod(shapes.get(node.input[0], ())) * math.prod(weight.shape[1:])
    if weight is not None:
        transposed = attributes_of(node).get("transB", 0)
        return outputs * int(weight.shape[-1 if transposed else -2 if weight.ndim > 1 else 0])
    inner = shapes.get(node.input[0], (0,))
    turned = len(inner) > 1 and attributes_of(node).get("transA", 0)
    return outputs * (inner[-2 if turned else -1] if inner else 0)
