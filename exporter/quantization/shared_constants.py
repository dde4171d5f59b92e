"""Let float operators read float constants that int8 operators also read."""

from __future__ import annotations

import onnx

from exporter.graphs.edits import add_constant
from exporter.graphs.index import GraphIndex
from exporter.quantization.placement import Placement


def keep_constants_in_float(model: onnx.ModelProto, before: onnx.ModelProto, placement: Placement) -> None:
    """Give the float readers of a quantized constant the float constant back.

    The quantizer passes a rounded constant to all its readers. Float readers then dequantize it in every
    inference: for an embedding table that is tied to the last layer, the whole table, to read a few rows.

    Args:
        model: a QDQ model, changed in place.
        before: the float model that the quantizer received, with named nodes.
        placement: the placement that the quantizer received.
    """
    original, graph = GraphIndex.of(before.graph), GraphIndex.of(model.graph)
    shared: set[str] = set()
    for node in graph.nodes:
        same = None if node.name in placement.nodes else original.by_name.get(node.name)
        if same is None or same.op_type != node.op_type:
            continue
        for position, name in enumerate(same.input):
            if name in original.constants and graph.maker(node.input[position], "DequantizeLinear"):
                node.input[position] = f"{name}.float"
                shared.add(name)
    for name in sorted(shared):
        add_constant(model.graph, f"{name}.float", original.constant(name))
