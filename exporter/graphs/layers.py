"""Find the layers of a graph (nodes with constant weights), and copy models with other constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import add_constant, copy_of, set_constant
from exporter.graphs.index import GraphIndex
from exporter.graphs.names import unused_name


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by constant weights.

    Attributes:
        node: name of the node.
        op_type: `Conv`, `Gemm` or `MatMul`.
        source: name of the input tensor.
        weight: name of the initializer with the weights.
        transposed: whether the weights are [out, in, ...]; otherwise they are [in, out].
        groups: groups of a convolution; 1 for other nodes.
        bias_node: name of the node that adds the bias: the node itself, the Add after a MatMul, or None.
        bias: name of the initializer with the bias [out], or None.
        output: name of the layer's result before any activation: the output of `bias_node` or of the node.
    """

    node: str
    op_type: str
    source: str
    weight: str
    transposed: bool
    groups: int
    bias_node: str | None
    bias: str | None
    output: str

    @property
    def channel_axis(self) -> int:
        """The axis of channels in `source` and `output`."""
        return 1 if self.op_type == "Conv" else -1


def find_layers(index: GraphIndex) -> list[Layer]:
    """All layers whose weights are float constants that no other node reads, in graph order."""
    return [layer for node in index.nodes if (layer := _layer(index, node)) is not None]


def _layer(index: GraphIndex, node: onnx.NodeProto) -> Layer | None:
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or not _multiplies_by_own_constant(index, node):
        return None
    weight = index.constants[node.input[1]]
    if node.op_type == "MatMul":
        return _matmul(index, node, weight)
    attributes = attributes_of(node)
    transposed = node.op_type == "Conv" or bool(attributes.get("transB", 0))
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not _is_bias(index, bias, weight.dims[0 if transposed else 1]):
        return None
    return Layer(
        node.name,
        node.op_type,
        node.input[0],
        weight.name,
        transposed=transposed,
        groups=attributes.get("group", 1),
        bias_node=node.name,
        bias=bias,
        output=node.output[0],
    )


def _multiplies_by_own_constant(index: GraphIndex, node: onnx.NodeProto) -> bool:
    weight, attributes = index.constants.get(node.input[1]), attributes_of(node)
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    return (
        is_standard(node)
        and weight is not None
        and weight.data_type == onnx.TensorProto.FLOAT
        and len(weight.dims) >= 2
        and index.uses(weight.name) == 1
        and not index.is_constant(node.input[0])
        and plain
        and not attributes.get("transA", 0)
    )


def _matmul(index: GraphIndex, node: onnx.NodeProto, weight: onnx.TensorProto) -> Layer | None:
    """The layer of a MatMul; an Add of a constant after it is the bias."""
    if len(weight.dims) != 2:
        return None
    follower = index.only_reader(node.output[0])
    bias = None
    if follower is not None and follower.op_type == "Add":
        bias = next((name for name in follower.input if _is_bias(index, name, weight.dims[1])), None)
    adder = follower if bias is not None and follower is not None else None
    return Layer(
        node.name,
        "MatMul",
        node.input[0],
        weight.name,
        transposed=False,
        groups=1,
        bias_node=None if adder is None else adder.name,
        bias=bias,
        output=node.output[0] if adder is None else adder.output[0],
    )


def _is_bias(index: GraphIndex, name: str, width: int) -> bool:
    found = index.constants.get(name)
    return found is not None and list(found.dims) == [width] and found.data_type == onnx.TensorProto.FLOAT


def rows(layer: Layer, weight: Array) -> Array:
    """The weights as a matrix [out, products summed for each output]."""
    return weight.reshape(len(weight), -1) if layer.transposed else weight.T


def from_rows(layer: Layer, matrix: Array, shape: Sequence[int]) -> Array:
    """The inverse of `rows`."""
    return np.ascontiguousarray(matrix if layer.transposed else matrix.T).reshape(shape)


def with_constants(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model with new values of the same shapes for some initializers."""
    copy = copy_of(model)
    for initializer in copy.graph.initializer:
        if initializer.name in values:
            set_constant(initializer, np.asarray(values[initializer.name], dtype=np.float32))
    return copy


def with_constants_of(
    model: onnx.ModelProto, other: onnx.ModelProto, nodes: Collection[str]
) -> onnx.ModelProto:
    """A copy of the model in which some nodes have the constants that they have in another model.

    A constant that several nodes read does not change.
    """
    index, theirs = GraphIndex.of(model.graph), GraphIndex.of(other.graph)
    own = {
        name
        for node in index.nodes
        if node.name in nodes
        for name in node.input
        if index.is_constant(name) and theirs.is_constant(name) and index.uses(name) == 1
    }
    return with_constants(model, {name: theirs.constant(name) for name in own})


def with_own_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every convolution and Gemm has its own bias, which no other node reads.

    A layer without bias gets zeros. This costs nothing, because the kernels start their sums from the bias.
    """
    copy = copy_of(model)
    index = GraphIndex.of(copy.graph)
    taken = index.names()
    for layer in find_layers(index):
        if layer.bias_node is None or (layer.bias is not None and index.uses(layer.bias) == 1):
            continue
        width = len(rows(layer, index.constant(layer.weight)))
        value = np.zeros(width, np.float32) if layer.bias is None else index.constant(layer.bias)
        name = add_constant(copy.graph, unused_name(f"{layer.node}.bias", taken), value)
        taken.add(name)
        node = index.by_name[layer.bias_node]
        if layer.bias is not None:
            node.input[list(node.input).index(layer.bias)] = name
        else:
            del node.input[2:]
            node.input.append(name)
    return copy
