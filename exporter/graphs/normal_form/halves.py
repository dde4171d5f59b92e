"""Compute a float16 or bfloat16 file in float32.

ONNX Runtime has few half precision kernels for CPUs: it converts to float32 before most operators and back
after them. The quantizer needs float32 weights and activations. The result rounds less than the given file,
and is otherwise the same function.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs.edits import rename_reads, replace_nodes
from exporter.graphs.index import GraphIndex, bodies_of
from exporter.graphs.names import unused_name

_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Attributes that name the type of a result.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def compute_in_float32(model: onnx.ModelProto) -> None:
    """Convert all half precision tensors of a model to float32, in place.

    Inputs and outputs keep their types: each of them gets a Cast.

    Args:
        model: a model without functions.
    """
    graph = model.graph
    given, asked = ([v for v in values if _is_half(v)] for values in (graph.input, graph.output))
    types = {value.name: value.type.tensor_type.elem_type for value in (*given, *asked)}
    taken = GraphIndex.of(graph).names()
    inner = {}
    for name in types:
        inner[name] = unused_name(f"{name}.float32", taken)
        taken.add(inner[name])
    inputs = {value.name for value in given}
    _rename(graph, inner, inputs)
    _convert(graph)
    before = [_cast(name, inner[name], TensorProto.FLOAT) for name in inner if name in inputs]
    after = [_cast(inner[v.name], v.name, types[v.name]) for v in asked if v.name not in inputs]
    for value in (*graph.input, *graph.output):
        if value.name in types:
            value.type.tensor_type.elem_type = types[value.name]
    replace_nodes(graph, [*before, *graph.node, *after])


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in _HALVES


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}.cast", to=kind)


def _rename(graph: onnx.GraphProto, inner: dict[str, str], inputs: set[str]) -> None:
    """Let nodes read and compute other tensors than the inputs and outputs of the graph."""
    rename_reads(graph.node, inner)
    computed = {name: new for name, new in inner.items() if name not in inputs}
    for node in graph.node:
        for position, name in enumerate(node.output):
            node.output[position] = computed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = computed.get(tensor.name, tensor.name)


def _convert(graph: onnx.GraphProto) -> None:
    """Convert constants, attributes and stated types of a graph and of the bodies in it."""
    for tensor in _constants(graph):
        if tensor.data_type in _HALVES:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*graph.input, *graph.value_info, *graph.output):
        _convert_type(value.type)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
        for body in bodies_of(node):
            _convert(body)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _convert_type(kind: onnx.TypeProto) -> None:
    if kind.tensor_type.elem_type in _HALVES:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    for holder in (kind.sequence_type, kind.optional_type):
        if holder.HasField("elem_type"):
            _convert_type(holder.elem_type)
