"""Keep ONNX Runtime from running operators in int8 that the placement leaves in float.

When ONNX Runtime loads a model, it moves each QuantizeLinear back, and each DequantizeLinear forward, past
operators that only move values (`QDQPropagationTransformer`). Afterwards it replaces every operator between
the two by its int8 kernel, whatever the placement says (`NodeGroupSelector::GetQDQSelection`). A Max of one
input copies its input: no optimizer removes it, and no conversion moves past it.
"""

from __future__ import annotations

import onnx
from onnx import helper

from exporter.graphs.edits import replace_nodes
from exporter.graphs.index import GraphIndex
from exporter.quantization.placement import Placement, channels_last

# ONNX Runtime has an int8 kernel for each of these, and selects it between two conversions.
_FUSED_AT_LOAD = frozenset(
    {
        "Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Resize", "Sigmoid",
        "Softmax", "Where",
    }
)  # fmt: skip
# Conversions move past these (`CanNodePropagate`).
_PASSED = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def keep_float_operators_apart(model: onnx.ModelProto, placement: Placement) -> None:
    """Insert a Max of one input beside each float operator that ONNX Runtime would otherwise run in int8.

    1. After an operator with an int8 kernel, if a DequantizeLinear reaches one of its inputs and a
       QuantizeLinear its result, directly or past operators that only move values.
    2. After a MaxPool that a QuantizeLinear reaches, and before one that a DequantizeLinear reaches: each
       would move past it. Only if it reads [N, H, W, C] after an int8 convolution may the DequantizeLinear
       move: the values are the same, and that int8 kernel is fast.

    Measured on x86-64 with AVX2 without VNNI, one thread, pictures of 32 x 48 x 48 and windows of 3 x 3:
    the int8 AveragePool takes 20 times its float time, and the int8 MaxPool for [N, C, H, W] 68 times.

    Args:
        model: a QDQ model, changed in place.
        placement: the placement that the quantizer received.
    """
    graph = GraphIndex.of(model.graph)
    fast = channels_last(graph, placement.nodes)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        after = node.name not in placement.nodes and _would_run_in_int8(graph, node)
        source = node.input[0] if node.name not in placement.nodes and node.op_type == "MaxPool" else None
        if source is not None and source not in fast and _was_rounded(graph, source):
            node.input[0] = f"{node.name}.source"
            nodes.append(helper.make_node("Max", [source], [node.input[0]], name=f"{node.name}.before"))
        nodes.append(node)
        if after:
            output, own = node.output[0], f"{node.output[0]}.float"
            node.output[0] = own
            nodes.append(helper.make_node("Max", [own], [output], name=f"{node.name}.apart"))
    replace_nodes(model.graph, nodes)


def _would_run_in_int8(graph: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a QuantizeLinear takes a float operator into int8; for a MaxPool, it alone does."""
    reached = node.op_type == "MaxPool" or (
        node.op_type in _FUSED_AT_LOAD and any(_was_rounded(graph, name) for name in node.input)
    )
    return reached and _is_rounded_later(graph, node.output[0])


def _is_rounded_later(graph: GraphIndex, tensor: str) -> bool:
    """Whether a QuantizeLinear reads a tensor, or moves back to it when the model is loaded."""
    readers = graph.readers(tensor)
    if tensor in graph.outputs or not readers:
        return False
    if all(reader.op_type == "QuantizeLinear" for reader in readers):
        return True
    reader = graph.only_reader(tensor)
    # A MaxPool that stays in float gets a Max of its own, which stops the QuantizeLinear.
    passes = reader is not None and reader.op_type in _PASSED - {"MaxPool"} and reader.input[0] == tensor
    return reader is not None and passes and _is_rounded_later(graph, reader.output[0])


def _was_rounded(graph: GraphIndex, tensor: str) -> bool:
    """Whether a DequantizeLinear computes a tensor, or moves forward to it when the model is loaded."""
    maker = graph.maker(tensor)
    while maker is not None and maker.op_type in _PASSED:
        maker = graph.maker(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"
