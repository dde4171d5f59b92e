"""Check on ONNX Runtime's optimized graph that the products that should run in int8 really do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import open_model, session_options
from exporter.graphs.targets import Target
from exporter.inspection.fusion import plain_name
from exporter.quantization.placement import Placement

# Smaller constants stay in the optimized file. The others go to a second file, which is not read.
_SMALL_BYTES = "1024"


def not_fused(model: onnx.ModelProto, placement: Placement, target: Target) -> frozenset[str]:
    """Find the placed nodes that ONNX Runtime runs in float.

    A node with constant weights that does not fuse into an int8 kernel is the worst case: it runs in float,
    and its weights are dequantized in every inference. Placement follows the rules of the optimizer, but
    these rules are many, and they change from version to version.

    Args:
        model: a QDQ model.
        placement: the placement that the quantizer received.
        target: the kind of CPU. The optimizer fuses as on that kind, on any host.

    Returns:
        Names of nodes of the float model.
    """
    if not placement.nodes:
        return frozenset()
    optimized = GraphIndex.of(_optimized(model, target).graph)
    readers: dict[str, set[str]] = {}
    for node in optimized.nodes:
        if node.op_type == "DequantizeLinear" and optimized.is_constant(node.input[0]):
            found = readers.setdefault(node.input[0], set())
            found |= {plain_name(reader) for reader in optimized.readers_of(node)}
    graph = GraphIndex.of(model.graph)
    return frozenset(
        node.name
        for node in graph.nodes
        if node.name in placement.nodes and (names := readers.get(_stored_weights(node, graph)))
        # A fusion gives its node a new name. Then every node with these weights may be the one.
        if node.name in names or not names <= graph.by_name.keys()
    )


def _stored_weights(node: onnx.NodeProto, graph: GraphIndex) -> str:
    """The name of the int8 weights that a node reads through a DequantizeLinear; empty if it has none."""
    source = graph.maker(node.input[1], "DequantizeLinear") if len(node.input) > 1 else None
    return "" if source is None else source.input[0]


def _optimized(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """The graph that ONNX Runtime optimizes for a kind of CPU, without its large weights."""
    options = session_options(threads=1)
    # By default, ONNX Runtime decides this by the host's CPU.
    options.add_session_config_entry("session.qdqisint8allowed", str(int(target.signed_activations)))
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "weights.bin"
    )
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", _SMALL_BYTES
    )
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        open_model(model, options)
        return onnx.load(path, load_external_data=False)
