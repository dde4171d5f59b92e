"""Bring each Gemm to the form that ONNX Runtime's quantizer and its int8 kernel handle correctly."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import add_constant, replace_nodes
from exporter.graphs.index import GraphIndex

_C = 2


def make_gemms_plain(model: onnx.ModelProto, exclude: Collection[str]) -> frozenset[str]:
    """Rewrite each Gemm with constant weights to `x W + b`, with alpha = beta = 1 and b [N] or no b.

    ONNX Runtime 1.32 fails on other forms: its quantizer stops at a bias [1, N], [1] or a scalar, ignores
    beta (17 dB instead of 40 dB), and writes a bias that its optimizer does not fuse if alpha is not 1 or
    the bias is computed.

    1. alpha is multiplied into the weights, and beta into a constant bias.
    2. A constant bias that is equal in all rows becomes [N].
    3. Any other bias is added after the Gemm.

    Args:
        model: the float model with named nodes, changed in place.
        exclude: names of nodes that are not quantized; they are not changed.

    Returns:
        Names of the new Add nodes. They must stay in float, because their operands have no known range.
    """
    graph = GraphIndex.of(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        quantized = node.op_type == "Gemm" and is_standard(node) and node.name not in exclude
        weight = graph.constants.get(node.input[1]) if quantized else None
        nodes += [node] if weight is None else _plain(node, weight, graph, model.graph)
    replace_nodes(model.graph, nodes)
    return frozenset(node.name for node in nodes) - graph.by_name.keys()


def _plain(
    node: onnx.NodeProto, weight: onnx.TensorProto, graph: GraphIndex, target: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """The Gemm in its plain form, and the Add after it if it needs one."""
    attributes = attributes_of(node)
    alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    bias = node.input[_C] if len(node.input) > _C else ""
    constant = graph.constants.get(bias)
    if weight.data_type != TensorProto.FLOAT or (bias and constant is None and beta != 1.0):
        return [node]
    weights, rank = node.input[1], 0 if constant is None else len(constant.dims)
    outputs = weight.dims[0 if attributes.get("transB") else 1]
    if alpha != 1.0:
        scaled = graph.constant(weights) * np.float32(alpha)
        weights = add_constant(target, f"{node.name}.weights", scaled)
    if constant is not None and (beta != 1.0 or list(constant.dims) != [outputs]):
        row = _row(graph.constant(bias) * np.float32(beta), outputs)
        bias, rank = add_constant(target, f"{node.name}.c", row), row.ndim
    turned = {name: attributes[name] for name in ("transA", "transB") if name in attributes}
    inputs = [node.input[0], weights, *([bias] if rank == 1 else [])]
    apart = bool(bias) and rank != 1
    result = f"{node.output[0]}.product" if apart else node.output[0]
    product = helper.make_node("Gemm", inputs, [result], name=node.name, **turned)
    if not apart:
        return [product]
    return [product, helper.make_node("Add", [result, bias], node.output, name=f"{node.name}.add")]


def _row(bias: Array, outputs: int) -> Array:
    """A bias as [outputs] if all rows of the result get the same values, otherwise unchanged."""
    if bias.ndim > 1 and bias.shape[0] != 1:
        return bias
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (outputs,)))
