"""Remove the exporter's debugging metadata from the graph."""

from __future__ import annotations

import onnx_ir as ir


class StripMetadataPass(ir.passes.InPlacePass):
    """Remove the exporter's metadata from the model, the graph, its nodes and values.

    The metadata contains stack traces with paths and source lines of the exporting machine. These must not
    be delivered to a device, and they make the files of equal networks differ.
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
