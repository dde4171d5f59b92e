"""Compute values that do not depend on the input once, also through partly known shapes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import ShapeInferencePass

from bench.core.arrays import Array
from bench.inputs.session import FATAL_ONLY
from exporter.graphs.rewrites.products import add_initializer
from exporter.graphs.rewrites.symbols import computed_shape, constant, is_constant, known_size

# A value is stored in the model if it is small, or not much larger than the constants that it is made of.
# ONNX Runtime computes other constant values when it loads a model.
_SMALL_BYTES = 2**20
_GROWTH = 2
_MAX_ROUNDS = 8
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Constants in another number format are kept as they are stored. Constant itself has nothing to compute.
_KEPT = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear", "Dropout"}) | _RANDOM
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
# Larger constants do not fit into one protobuf message.
_LARGEST_BYTES = 2**30
_IR_VERSION = 10


class ConstantValuesPass(ir.passes.InPlacePass):
    """Replace values that are the same in every run by constants.

    ONNX Runtime and onnxscript compute a node once if all its inputs are constants. They stop at a Shape
    with an open axis, even if only known axes are read from it: Shape, Gather, Concat, Resize of a position
    table runs in every inference if the batch is open. Measured on a vision transformer of
    4 blocks of 192 channels that resizes a table of 14 x 14 positions to 12 x 16, one thread, AVX2 without
    VNNI, interleaved: the float model takes 0.75 x the time with the rewrite.

    1. Sizes that the graph reads from a shape become constants if the axes that they belong to are known.
    2. A node whose inputs are constants is computed, if the result is at most 1 MiB or twice its inputs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Alternate the two rules and shape inference until nothing changes."""
        modified = False
        for _ in range(_MAX_ROUNDS):
            if any(node.op_type == "Shape" for node in model.graph):
                ShapeInferencePass(check_type=False, strict_mode=False)(model)
            changed = False
            for node in list(model.graph):
                contents = _values(node, model)
                if contents:
                    _replace(node, contents)
                    changed = modified = True
            if not changed:
                break
        return ir.passes.PassResult(model, modified)


def _values(node: ir.Node, model: ir.Model) -> list[Array]:
    """The constant results of a node; empty if it is not constant or must be kept."""
    results = node.outputs
    if any(value.is_graph_output() or not value.name for value in results):
        return []
    if not any(value.uses() for value in results):
        return []
    sizes = _sizes(node)
    return [sizes] if sizes is not None else _computed(node, model)


def _sizes(node: ir.Node) -> Array | None:
    """The result of a node that only selects known sizes of a shape, or None."""
    result = node.outputs[0]
    if result.dtype not in {ir.DataType.INT64, ir.DataType.INT32} or result.shape is None:
        return None
    entries = computed_shape(result)
    known = [known_size(entry) for entry in entries or ()]
    if entries is None or None in known or len(result.shape) > 1:
        return None
    return np.array(known, result.dtype.numpy()).reshape([len(known)] * len(result.shape))


def _computed(node: ir.Node, model: ir.Model) -> list[Array]:
    """The results of a node whose inputs are constants; empty if it has others, or results too large."""
    bodies = any(entry.type in _BODIES for entry in node.attributes.values())
    if (
        node.op_type in _KEPT
        or bodies
        or not all(value is None or is_constant(value) for value in node.inputs)
    ):
        return []
    contents = [constant(value) for value in node.inputs if value is not None]
    if node.op_type in {"Div", "Mod"} and contents[1] is not None and not contents[1].all():
        return []  # a division of integers by zero ends the process
    limit = max(_SMALL_BYTES, _GROWTH * sum(content.nbytes for content in contents if content is not None))
    if any(content is not None and content.nbytes > _LARGEST_BYTES for content in contents):
        return []
    alone = _alone(node, model)
    try:
        results = _run(alone) if _stated_bytes(alone) <= limit else []
    except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions have no common base class)
        return []
    fits = all(isinstance(result, np.ndarray) and result.dtype.kind in "fiub" for result in results)
    return results if fits and sum(result.nbytes for result in results) <= limit else []


def _alone(node: ir.Node, model: ir.Model) -> onnx.ModelProto:
    """A model of one node and its constants."""
    contents = {str(value.name): constant(value) for value in node.inputs if value is not None}
    initializers = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(content).reshape(content.shape), name)
        for name, content in contents.items()
        if content is not None
    ]
    outputs = [onnx.ValueInfoProto(name=value.name) for value in node.outputs if value.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "constant", [], outputs, initializers)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _stated_bytes(alone: onnx.ModelProto) -> int:
    """The size of the results as far as ONNX can infer it, with 4 bytes for each number."""
    shaped = onnx.shape_inference.infer_shapes(alone, data_prop=True)
    shapes = [value.type.tensor_type.shape.dim for value in shaped.graph.output]
    return sum(4 * math.prod(max(size.dim_value, 1) for size in shape) for shape in shapes)


def _run(alone: onnx.ModelProto) -> list[Array]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL_ONLY
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        alone.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {}))


def _replace(node: ir.Node, contents: list[Array]) -> None:
    """Let the readers of a node read constants, and remove the node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    names = [value.name for value in node.outputs]
    for value, name, content in zip(node.outputs, names, contents, strict=True):
        value.name = None
        made = add_initializer(graph, str(name), content)
        ir.convenience.replace_all_uses_with(value, made)
    graph.remove(node, safe=True)
