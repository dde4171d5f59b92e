"""Run HardSwish in int8 as an Add, a Clip and a Mul; the division by six is merged into a scale."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper

from exporter.errors import ExportError
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import add_constant, replace_nodes
from exporter.graphs.index import GraphIndex
from exporter.graphs.ranges import Range

_SHIFT, _LIMIT, _FACTOR = 3.0, 6.0, 6.0


def candidates(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the HardSwish nodes whose input is a convolution's result."""
    index = GraphIndex.of(model.graph)
    found = (node for node in index.nodes if node.op_type == "HardSwish" and is_standard(node))
    return frozenset(node.name for node in found if index.maker(node.input[0], "Conv") is not None)


def split(model: onnx.ModelProto, names: Collection[str]) -> dict[str, Range]:
    """Replace HardSwish, x * clip(x + 3, 0, 6) / 6, by operators that run in int8, in place.

    ONNX Runtime has no int8 HardSwish. The tensor would be dequantized, activated in float and quantized
    again. Measured on blocks like those of MobileNetV3 (64 to 96 channels, 28 x 28, one thread,
    AVX512-VNNI): the int8 model takes 0.81 x the time with the rewrite, at the same SQNR. With the
    division, there would be no gain (1.06 x). The division is therefore omitted here, and `hide_factor`
    merges it into a scale after quantization. Until then, the graph does not compute the network's
    function, so ranges must be collected on the original network.

    Args:
        model: the float model, changed in place.
        names: the nodes to split. All nodes that replace them must be quantized later.

    Returns:
        The ranges of the gates clip(x + 3, 0, 6), which the original network does not have.
    """
    graph = model.graph
    ranges: dict[str, Range] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        shifted, gate = f"{result}.shifted", f"{result}.gate"
        constants = {f"{result}.three": _SHIFT, f"{result}.zero": 0.0, f"{result}.six": _LIMIT}
        for name, value in constants.items():
            add_constant(graph, name, np.float32(value))
        three, zero, six = constants
        nodes += [
            helper.make_node("Add", [source, three], [shifted], name=shifted),
            helper.make_node("Clip", [shifted, zero, six], [gate], name=gate),
            helper.make_node("Mul", [source, gate], [result], name=node.name),
        ]
        graph.value_info.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (shifted, gate)
        )
        ranges[gate] = Range(0.0, _LIMIT)
    replace_nodes(graph, nodes)
    return ranges


def hide_factor(model: onnx.ModelProto, gates: Collection[str]) -> None:
    """Divide by six at no cost, by changing the scale of a QuantizeLinear.

    The product is six times the activation. With six times the scale, it is quantized to the same integers
    as the activation with the original scale. The readers dequantize with the original scale.

    Args:
        model: a QDQ model, changed in place.
        gates: the gates that `split` added.

    Raises:
        ExportError: a product is not quantized, so it would stay six times too large.
    """
    index = GraphIndex.of(model.graph)
    hidden = 0
    for node in index.nodes:
        product = index.maker(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if product is None or not any(_undone(index, name) in gates for name in product.input):
            continue
        scale = np.array(index.constant(node.input[1]) * _FACTOR, np.float32)
        node.input[1] = add_constant(model.graph, f"{node.input[1]}.product", scale)
        hidden += 1
    if hidden != len(gates):
        raise ExportError(
            "HardSwish",
            f"only {hidden} of {len(gates)} split nodes are quantized",
            "exclude the HardSwish nodes from quantization",
        )


def _undone(index: GraphIndex, name: str) -> str:
    """The tensor before QuantizeLinear and DequantizeLinear, or the tensor itself."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = index.maker(name, op_type)
        name = name if node is None else node.input[0]
    return name
