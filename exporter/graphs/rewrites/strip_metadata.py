"""What the exporter noted down for its own debugging leaves the graph."""

from __future__ import annotations

import onnx_ir as ir


class StripMetadataPass(ir.passes.InPlacePass):
    """Remove the exporter's notes from the model, the graph, its nodes and values.

    They hold stack traces with the paths and source lines of the machine that exported, which have no
    business on a customer's device, and make equal networks differ in their bytes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clear all metadata and documentation strings."""
        model.metadata_props.clear()
        model.doc_string = None
        graph = model.graph
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        return ir.passes.PassResult(model, True)
