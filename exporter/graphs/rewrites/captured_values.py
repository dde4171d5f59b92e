"""Let bodies of control flow read copies of the values that they capture."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class CapturedValuesPass(ir.passes.InPlacePass):
    """Insert an Identity before an If, Loop or Scan for each computed value that its bodies read.

    The quantizer renames tensors, and absorbs a Relu into the convolution before it, but does not look into
    bodies. With the Identity, all readers of a tensor are in the main graph: a body that read the result of
    an absorbed Relu got other values (SQNR 0 dB), and a convolution whose result a body read stayed in
    float.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert all copies. Nodes inside bodies do not change otherwise, and stay in float."""
        modified = False
        for node in list(model.graph):
            copies: dict[ir.Value, ir.Value] = {}
            for inner in list(_inside(node)):
                for position, value in enumerate(inner.inputs):
                    if value is None or not _is_outside(value, model.graph):
                        continue
                    if value not in copies:
                        copies[value] = _copy_before(node, value, f"{node.name}.{value.name}")
                    inner.replace_input_with(position, copies[value])
            modified = modified or bool(copies)
        return ir.passes.PassResult(model, modified)


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """Yield all nodes in the bodies of a node, also in nested ones."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _is_outside(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a value is an input of the main graph or the result of one of its nodes."""
    producer = value.producer()
    return value in graph.inputs if producer is None else producer.graph is graph


def _copy_before(node: ir.Node, value: ir.Value, name: str) -> ir.Value:
    copy = ir.Node("", "Identity", [value], name=name)
    result = copy.outputs[0]
    result.name, result.type, result.shape = name, value.type, value.shape
    assert node.graph is not None
    node.graph.insert_before(node, copy)
    return result
