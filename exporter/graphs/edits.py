"""Edits of a graph on protobuf: the one way that is used where onnx-ir cannot be.

A rewrite is an onnx-ir pass (`exporter.graphs.rewrites`) where the model is in onnx-ir anyway: after the
export from torch, and where a file is prepared for the quantizer. Everywhere else the model goes from one
library that takes only protobuf to the next: ONNX's shape inference, version converter and checker, ONNX
Runtime's quantizers and sessions. There a rewrite reads a `GraphIndex`, collects its changes, and makes
them with the functions here. To convert the model to onnx-ir and back for it would copy the model twice
and would not give the same bytes: for an int8 model, onnx-ir also writes the types of all constants.

These rewrites are on protobuf, the last one for a reason of its own:

1. `rewrites.hard_swish`, between shape inference, the choice of nodes and ONNX Runtime's quantizer,
2. what is done to the quantizer's result: `rewrites.first_convolution`, `rewrites.processing.join_bytes`,
   `quantization.placement` and `quantization.embedding_tables`,
3. the split of Gemms before ONNX Runtime's 4-bit quantizer (`quantization.int4`),
4. repairs (`quantization.repair`, `graphs.layers`), which run the model before and after each change,
5. `rewrites.processing.network_alone`, from a file through shape inference to a session,
6. `graphs.opsets`, on both sides of ONNX's version converter,
7. `graphs.stale_shapes`: onnx-ir does not tell a shape that a file states from one that it knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from bench.core.arrays import Array
from exporter.graphs.index import bodies_of


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be changed while the model stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph these nodes, in this order. They are copied, also where they are its own.

    Afterwards an index of the graph is out of date, and so is every node that was taken from it.
    """
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def remove_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Take some of its own nodes out of a graph."""
    doomed = {id(node): node for node in nodes}
    for index in reversed(range(len(graph.node))):
        if id(graph.node[index]) in doomed:
            del graph.node[index]


def rename_reads(nodes: Iterable[onnx.NodeProto], replacement: Mapping[str, str]) -> None:
    """Let nodes, and the bodies in them, read other tensors.

    Args:
        nodes: the readers, changed in place.
        replacement: old name -> new name; other tensors are read as before.
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
    """Add an initializer of a name that is not taken, and return that name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def set_constant(tensor: onnx.TensorProto, value: Array) -> None:
    """Give an initializer another value; its name stays."""
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def remove_constants(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Take initializers out of a graph, without a copy of those that stay."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def add_outputs(graph: onnx.GraphProto, tensors: Iterable[str]) -> None:
    """Let a graph give further tensors. Those that it takes or gives already are left out."""
    known = {value.name for value in (*graph.input, *graph.output)}
    graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in known
    )


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that gives further tensors; see `add_outputs`."""
    copy = copy_of(model)
    add_outputs(copy.graph, tensors)
    return copy
