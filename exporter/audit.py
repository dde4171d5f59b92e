"""What ONNX Runtime really runs: the optimized graph, counted in multiply-adds.

A QDQ model says what could run in int8; only the graph after fusion says what does.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from bench.arrays import Array
from bench.errors import ModelError
from bench.host import fingerprint, has_vnni
from bench.schema import FrozenModel
from bench.session import ERRORS_ONLY, model_error, open_session, signature_of
from bench.worker import synthetic_feeds

# Operators of the optimized graph that multiply: position of the weight among the inputs.
_FLOAT_WEIGHTS = {
    "Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1,
    "FusedMatMul": 1, "NhwcFusedConv": 1,
}  # fmt: skip
_INT8_WEIGHTS = {
    "QLinearConv": 3, "NhwcQLinearConv": 3, "ConvInteger": 1, "QGemm": 3, "QLinearMatMul": 3,
    "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
}  # fmt: skip
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "NhwcQLinearConv", "ConvInteger"}
# Activations reach 255 and pairs of products are added in 16 bits: |w0| + |w1| beyond this may saturate.
_SAFE_PAIR = 32767 // 255


class FloatOperator(FrozenModel):
    """A multiplying operator that runs in float, and why."""

    name: str
    op_type: str
    macs: int
    reason: str


class SaturatingLayer(FrozenModel):
    """A layer whose 16-bit sums can overflow on x86 without VNNI.

    `channels` counts output channels in which the two largest weights of equal sign can overflow; it is
    an upper bound over all orders in which a kernel may pair them. `affects_this_host` is False where
    the CPU adds in 32 bits.
    """

    name: str
    channels: int
    affects_this_host: bool


class Audit(FrozenModel):
    """The outcome of an inspection; multiply-adds are those of a batch of one."""

    macs: int
    int8_macs: int
    int8_mac_ratio: float
    operators: dict[str, int]
    float_ops: tuple[FloatOperator, ...]
    saturation: tuple[SaturatingLayer, ...]


def audit(path: Path) -> Audit:
    """Load a model as it is run on this CPU, and count.

    Raises:
        ModelError: it cannot be loaded, or has open dimensions besides the batch.
    """
    graph_path_holder = tempfile.TemporaryDirectory(prefix="edgeproof-")
    with graph_path_holder as folder:
        model = _optimized(path, Path(folder) / "optimized.onnx")
        weights = _constants(model)
        nodes = [n for n in model.graph.node if n.op_type in {*_FLOAT_WEIGHTS, *_INT8_WEIGHTS}]
        shapes = _output_shapes(path, model, nodes)
    integer, total = 0, 0
    floats: list[FloatOperator] = []
    saturating: list[SaturatingLayer] = []
    vnni = has_vnni(fingerprint())
    for node in nodes:
        macs = _macs(node, weights, shapes)
        total += macs
        if node.op_type in _INT8_WEIGHTS:
            integer += macs
            if channels := _saturating_channels(node, weights):
                saturating.append(
                    SaturatingLayer(name=_plain_name(node), channels=channels, affects_this_host=not vnni)
                )
        else:
            floats.append(
                FloatOperator(
                    name=_plain_name(node), op_type=node.op_type, macs=macs, reason=_reason(node, model)
                )
            )
    operators: dict[str, int] = {}
    for node in model.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return Audit(
        macs=total,
        int8_macs=integer,
        int8_mac_ratio=integer / total if total else 0.0,
        operators=operators,
        float_ops=tuple(sorted(floats, key=lambda operator: -operator.macs)),
        saturation=tuple(saturating),
    )


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name, and int8 weights by the name under which an unfused operator reads them."""
    found = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _plain_name(node: onnx.NodeProto) -> str:
    """The node's own name, without what ONNX Runtime's layout transformer appends."""
    return re.sub(r"_token_\d+$", "", node.name)


def _optimized(path: Path, destination: Path) -> onnx.ModelProto:
    """The graph after all of ONNX Runtime's optimizations."""
    open_session(path)  # for its clear errors
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


def _output_shapes(
    path: Path, model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]
) -> dict[str, tuple[int, ...]]:
    """Run the optimized graph once, with everything that multiplies as an output.

    Its operators are ONNX Runtime's own, which ONNX's shape inference does not know.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [node.output[0] for node in nodes]
    by_input = {"MatMul", "FusedMatMul", "QLinearMatMul", "ConvTranspose"}
    inputs = [name for node in nodes if node.op_type in by_input for name in node.input[:1]]
    known = {value.name for value in (*probe.graph.output, *probe.graph.input)}
    known |= {initializer.name for initializer in probe.graph.initializer}
    for name in dict.fromkeys([*names, *inputs]):
        if name and name not in known:
            probe.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = synthetic_feeds(path, signature_of(session))
        outputs = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ModelError(path, f"cannot be run to count its work ({error})", "check the model") from error
    found = zip((output.name for output in session.get_outputs()), outputs, strict=True)
    return {name: np.shape(value) for name, value in (*feeds.items(), *found)}


def _macs(node: onnx.NodeProto, weights: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-adds of a node: outputs times the products that each sums."""
    outputs = math.prod(shapes.get(node.output[0], ()))
    position = {**_FLOAT_WEIGHTS, **_INT8_WEIGHTS}[node.op_type]
    weight = weights.get(node.input[position])
    if node.op_type in _CONVOLUTIONS and weight is not None:
        return outputs * math.prod(weight.shape[1:])
    if node.op_type == "ConvTranspose" and weight is not None:
        return math.prod(shapes.get(node.input[0], ())) * math.prod(weight.shape[1:])
    if weight is not None:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return outputs * int(weight.shape[-1 if transposed else -2 if weight.ndim > 1 else 0])
    inner = shapes.get(node.input[0], (0,))
    turned = len(inner) > 1 and any(a.name == "transA" and a.i for a in node.attribute)
    return outputs * (inner[-2 if turned else -1] if inner else 0)


def _saturating_channels(node: onnx.NodeProto, weights: Mapping[str, Array]) -> int:
    """Output channels in which some pair of weights could overflow 16 bits."""
    weight = weights.get(node.input[_INT8_WEIGHTS[node.op_type]])
    if weight is None or weight.dtype != np.int8 or weight.ndim < 2:
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    by_channel = node.op_type in _CONVOLUTIONS or transposed
    rows = weight.reshape(weight.shape[0], -1) if by_channel else weight.reshape(-1, weight.shape[-1]).T
    if rows.shape[1] < 2:
        return 0
    ordered = np.sort(rows.astype(np.int32), axis=1)
    largest = np.maximum(ordered[:, -1] + ordered[:, -2], -(ordered[:, 0] + ordered[:, 1]))
    return int((largest > _SAFE_PAIR).sum())


def _reason(node: onnx.NodeProto, model: onnx.ModelProto) -> str:
    """Why an operator stayed in float, from what stands before and after it."""
    producers = {name: n.op_type for n in model.graph.node for name in n.output}
    consumers = [n.op_type for n in model.graph.node if node.output[0] in n.input]
    before = producers.get(node.input[0])
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime's CPU kernels have no int8 form of it"
    if before != "DequantizeLinear" and "QuantizeLinear" not in consumers:
        return "it was not quantized"
    if before == "DequantizeLinear" and "QuantizeLinear" not in consumers:
        return "its output is not quantized"
    if before != "DequantizeLinear":
        return "its input is not quantized"
    return "its types or its neighbours keep ONNX Runtime from fusing it (U8S8 fuses on x86)"
