"""Choose the operators that run in int8, before the quantizer processes the graph.

ONNX Runtime's quantizer marks every operator that it knows. Some of these have no int8 kernel and only get
two additional conversions. Others have an int8 kernel but no neighbours in int8.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import add_constant, remove_nodes, rename_reads, replace_nodes
from exporter.graphs.index import GraphIndex

# Operators that do most of the multiply-adds; quantizing them is worth converting their input.
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Gemm and MatMul have int8 kernels with a float result. A Conv without a quantized output runs in float.
_FLOAT_RESULT = frozenset({"Gemm", "MatMul"})
# A quantized producer absorbs these at no cost: the range of its rounded output already limits the values.
_ABSORBED = frozenset({"Relu", "Clip"})
_MATRIX_RANK = 2
# Int8 kernels keep the layout [N, H, W, C] of a convolution's result past these.
_KEEP_CHANNELS_LAST = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "LeakyRelu", "MaxPool", "Mul", "Relu", "Sigmoid", "Split"}
)
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_QUANTIZED_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class Placement:
    """The nodes and results that the quantizer processes.

    Attributes:
        nodes: names of the nodes to quantize.
        float_results: results of quantized nodes that stay in float because nothing in int8 reads them.
    """

    nodes: frozenset[str]
    float_results: frozenset[str]


def place(model: onnx.ModelProto, operators: Collection[str], exclude: Collection[str]) -> Placement:
    """Choose the nodes to quantize.

    1. A Conv, Gemm or MatMul is quantized if its weights are constant (for a MatMul: matrices). A product
       of two activations stays in float: 8-bit attention scores lose too much accuracy to save a few
       percent of the multiply-adds.
    2. Any other operator is quantized if it has an int8 kernel, a quantized node reads its result, and one
       of its inputs comes from a quantized node or is the graph's input. So the sums, pools and joins of
       a convolutional network run in int8, and the biases, masks and norms between the products of a
       transformer do not: cosine to float of MiniLM-L6's embeddings 0.99 instead of 0.35.
    3. A Relu or Clip after a quantized convolution is quantized with it, if nothing else reads the
       convolution's result. A Clip stays in float if its limits are computed or do not include 0: the
       range of an int8 tensor includes 0.
    4. A MaxPool is quantized only after a quantized convolution, directly or past sums, joins and
       activations: there it reads [N, H, W, C]. Its int8 kernel for [N, C, H, W] takes 68 times the time
       of the float kernel (x86-64 with AVX2, 32 x 48 x 48, window 3 x 3).
    5. If no quantized node reads the result of a Gemm or MatMul, the result stays in float. This saves a
       rounding and a conversion back. The usual case is the scores of a classifier.

    Args:
        model: the float model.
        operators: operator types that the target's kernels run in int8.
        exclude: names of nodes to leave in float.
    """
    graph = GraphIndex.of(model.graph)
    able = {
        index: node
        for index, node in enumerate(graph.nodes)
        if node.op_type in operators and is_standard(node) and node.name not in exclude
        if _absorbable(node, graph)
    }
    weighted = {i for i, node in able.items() if node.op_type in _WEIGHTED and _has_weights(node, graph)}
    candidates = weighted | {i for i, node in able.items() if node.op_type not in _WEIGHTED}
    chained = channels_last(graph, {graph.nodes[i].name for i in candidates})
    candidates -= {
        i for i in candidates if able[i].op_type == "MaxPool" and able[i].input[0] not in chained
    }
    chosen = [graph.nodes[i] for i in _fed(graph, _read(graph, candidates, weighted), weighted)]
    read = {name for node in chosen for name in node.input}
    float_results = {
        node.output[0] for node in chosen if node.op_type in _FLOAT_RESULT and node.output[0] not in read
    }
    return Placement(frozenset(node.name for node in chosen), frozenset(float_results))


def _has_weights(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    weight = graph.constants.get(node.input[1])
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] not in graph.constants:
        return False
    return weight is not None and len(weight.dims) >= _MATRIX_RANK


def _absorbable(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether the range of a rounded result can replace the limits of a Relu or Clip: they include 0."""
    limits = [graph.constants.get(name) for name in node.input[1:] if name]
    if node.op_type not in _ABSORBED or not limits:
        return True
    if None in limits:
        return False
    lowest, highest = (graph.constant(name) if name else 0.0 for name in (*node.input[1:3], "")[:2])
    return bool(lowest <= 0.0 <= highest)


def _read(graph: GraphIndex, candidates: set[int], weighted: set[int]) -> set[int]:
    """The candidates whose result a quantized node reads, or that a convolution absorbs."""
    convolved = {graph.nodes[i].output[0] for i in weighted if graph.nodes[i].op_type == "Conv"}
    kept: set[int] = set()
    read: set[str] = set()
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        absorbed = (
            node.op_type in _ABSORBED and node.input[0] in convolved and graph.uses(node.input[0]) == 1
        )
        if index in weighted or (
            index in candidates and (absorbed or any(name in read for name in node.output))
        ):
            kept.add(index)
            # A weighted node reads its activations as first input; its other inputs are constants or small.
            read.update(node.input[:1] if index in weighted else node.input)
    return kept


def _fed(graph: GraphIndex, candidates: set[int], weighted: set[int]) -> set[int]:
    """The candidates that read the result of a quantized node or the graph's input."""
    kept: set[int] = set()
    quantized = set(graph.inputs)
    for index, node in enumerate(graph.nodes):
        if index in candidates and (index in weighted or any(name in quantized for name in node.input)):
            kept.add(index)
            quantized.update(node.output)
    return kept


def channels_last(graph: GraphIndex, in_int8: Collection[str]) -> set[str]:
    """The tensors that ONNX Runtime keeps as [N, H, W, C] if some nodes run in int8.

    Args:
        graph: a float or a QDQ graph.
        in_int8: names of the nodes that run in int8.
    """
    found: set[str] = set()
    for node in graph.nodes:
        follows = node.op_type in _CONVERSIONS | (_KEEP_CHANNELS_LAST if node.name in in_int8 else set())
        begins = node.op_type == "Conv" and node.name in in_int8
        if begins or (follows and not found.isdisjoint(node.input)):
            found.update(node.output)
    return found


def read_unrounded(model: onnx.ModelProto, placement: Placement) -> None:
    """Let float operators read a float result directly when another reader needs it in int8.

    The quantizer passes the rounded value to all readers of a tensor. Between two float operators, for
    example a norm and the residual sum after it, this adds a rounding and a conversion without benefit: on
    MiniLM-L6 it lowers the cosine to float from 0.9945 to 0.9905. The result of a quantized node is not
    changed, because a convolution fuses only if all its readers read the quantized value.

    Args:
        model: a QDQ model, changed in place.
        placement: the placement that the quantizer received.
    """
    graph = GraphIndex.of(model.graph)
    replacement: dict[str, str] = {}
    for node in graph.nodes:
        conversion = node.op_type == "DequantizeLinear"
        rounded = graph.maker(node.input[0], "QuantizeLinear") if conversion else None
        if rounded is None:
            continue
        source = graph.maker(rounded.input[0])
        if source is None or (source.name and source.name not in placement.nodes):
            replacement[node.output[0]] = rounded.input[0]
    rename_reads((node for node in graph.nodes if _runs_in_float(node, placement)), replacement)
    graph = GraphIndex.of(model.graph)
    remove_nodes(
        model.graph,
        [node for node in graph.nodes if node.output[0] in replacement and not graph.uses(node.output[0])],
    )


def _runs_in_float(node: onnx.NodeProto, placement: Placement) -> bool:
    return node.op_type not in _CONVERSIONS and node.name not in placement.nodes


def keep_in_float(model: onnx.ModelProto, placement: Placement) -> None:
    """Prevent ONNX Runtime from quantizing float operators when it loads the model.

    If a Conv, ConvTranspose or Gemm with float weights follows a DequantizeLinear, ONNX Runtime's optimizer
    (`WeightBiasQuantization`) quantizes the weights, with one scale for the whole tensor. It does not do so
    if the DequantizeLinear has a scale for each channel. So each of these operators gets its own
    DequantizeLinear, which repeats the scale for each channel.

    Args:
        model: a QDQ model, changed in place.
        placement: the placement that the quantizer received.
    """
    graph = GraphIndex.of(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        left = node.op_type in _QUANTIZED_AT_LOAD and node.name not in placement.nodes
        source = graph.maker(node.input[0], "DequantizeLinear") if left else None
        weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        if source is not None and weight is not None and weight.data_type == TensorProto.FLOAT:
            own = f"{node.name}.float"
            names = [f"{own}.scale", f"{own}.zero_point"]
            for name, shared in zip(names, source.input[1:3], strict=True):
                value = graph.constant(shared)
                add_constant(model.graph, name, np.full(_channels(node, weight), value, value.dtype))
            nodes.append(
                helper.make_node("DequantizeLinear", [source.input[0], *names], [own], name=own, axis=1)
            )
            node.input[0] = own
        nodes.append(node)
    replace_nodes(model.graph, nodes)


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """The number of input channels, from the shape of the weights."""
    attributes = attributes_of(node)
    if node.op_type == "Conv":
        return int(weight.dims[1]) * int(attributes.get("group", 1))
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1 if attributes.get("transB") else 0])
