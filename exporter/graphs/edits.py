"""Functions to edit a graph in protobuf, for rewrites that cannot use onnx-ir.

A rewrite is an onnx-ir pass (`exporter.graphs.rewrites`) if the model is already in onnx-ir: after the
export from torch, and when a file is prepared for the quantizer. Otherwise, the model passes between
libraries that accept only protobuf: ONNX's shape inference, version converter and checker, ONNX Runtime's
quantizers and sessions. In that case, a rewrite reads a `GraphIndex`, collects its changes, and applies
them with the functions of this module. A conversion to onnx-ir and back would copy the model twice. It
would also change the bytes: for an int8 model, onnx-ir adds the types of all constants.

The rewrites in protobuf are:

1. `rewrites.hard_swish` and `rewrites.transposed_convolution`, between shape inference, placement and ONNX
   Runtime's quantizer,
2. changes to the quantizer's result: `rewrites.first_convolution`, `rewrites.processing.join_bytes`, and
   in `quantization`: `placement`, `around_products`, `float_operators`, `shared_constants` and
   `embedding_tables`,
3. the forms of Gemm that ONNX Runtime's quantizers need (`quantization.plain_gemm`, `quantization.int4`),
4. repairs (`quantization.repair`, `graphs.layers`), which run the model before and after each change,
5. `rewrites.processing.network_alone`, from a file through shape inference to a session,
6. `graphs.normal_form`, before and after ONNX's inliner and version converter,
7. `graphs.stale_shapes`, because onnx-ir does not distinguish stated shapes from inferred ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from bench.core.arrays import Array
from exporter.graphs.index import GraphIndex, bodies_of, reads_of


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model, to be changed without changing the model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace all nodes of a graph by copies of these nodes, in this order.

    Afterwards, an index of the graph is outdated, and its nodes no longer belong to the graph.
    """
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def remove_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Remove nodes from a graph. The nodes must be objects of the graph, not equal copies."""
    doomed = {id(node): node for node in nodes}
    for index in reversed(range(len(graph.node))):
        if id(graph.node[index]) in doomed:
            del graph.node[index]


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Move nodes after the nodes whose results they, or the bodies in them, read.

    Other nodes keep their order. ONNX Runtime's quantizer sorts too, but does not look into bodies.
    """
    index = GraphIndex.of(graph)
    placed: dict[int, onnx.NodeProto] = {}
    for last in index.nodes:
        path = [last]
        while path:
            node = path[-1]
            makers = (index.maker(name) for name in reads_of(node))
            missing = [maker for maker in makers if maker is not None and id(maker) not in placed]
            if missing:
                path.append(missing[0])
            else:
                placed[id(path.pop())] = node
    replace_nodes(graph, placed.values())


def rename_reads(nodes: Iterable[onnx.NodeProto], replacement: Mapping[str, str]) -> None:
    """Let nodes, and the bodies in them, read other tensors.

    Args:
        nodes: the readers, changed in place.
        replacement: old name -> new name; reads of other tensors do not change.
    """
    for node in nodes:
        for position, name in enumerate(node.input):
            if name in replacement:
                node.input[position] = replacement[name]
        for body in bodies_of(node):
            rename_reads(body.node, replacement)
            for value in body.output:
                value.name = replacement.get(value.name, value.name)


def add_constant(graph: onnx.GraphProto, name: str, value: Array | np.generic) -> str:
    """Add an initializer and return its name; the name must be unused."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def set_constant(tensor: onnx.TensorProto, value: Array) -> None:
    """Set the value of an initializer; its name does not change."""
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def remove_constants(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove initializers from a graph without copying the others."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def add_outputs(graph: onnx.GraphProto, tensors: Iterable[str]) -> None:
    """Add tensors to the outputs of a graph, except those that are already inputs or outputs."""
    known = {value.name for value in (*graph.input, *graph.output)}
    graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in known
    )


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model with more outputs; see `add_outputs`."""
    copy = copy_of(model)
    add_outputs(copy.graph, tensors)
    return copy
