"""Compute a float16, bfloat16 or float64 file in float32.

ONNX Runtime has few half precision kernels for CPUs: it converts to float32 before most operators and back
after them. The quantizer needs float32 weights and activations. The result rounds less than the given file,
and is otherwise the same function.

float64 is converted only if a Conv, Gemm, MatMul or ConvTranspose computes in it; then the result rounds
more. Other files compute sizes or times in float64, where float32 may round to another integer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.core.arrays import Array
from exporter.graphs.edits import rename_reads, replace_nodes
from exporter.graphs.index import GraphIndex, bodies_of
from exporter.graphs.names import unused_name
from exporter.graphs.onnx_files import infer_shapes

_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_DOUBLE = frozenset({TensorProto.DOUBLE})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_LARGEST = np.finfo(np.float32).max
# Attributes that name the type of a result.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def compute_in_float32(model: onnx.ModelProto) -> None:
    """Convert all half precision tensors of a model to float32, and float64 if products compute in it.

    The model is changed in place. Inputs and outputs keep their types: each of them gets a Cast.

    Args:
        model: a model without functions.
    """
    graph = model.graph
    others = _HALVES | _DOUBLE if _has_float64_products(model) else _HALVES
    given, asked = (
        [value for value in values if value.type.tensor_type.elem_type in others]
        for values in (graph.input, graph.output)
    )
    types = {value.name: value.type.tensor_type.elem_type for value in (*given, *asked)}
    taken = GraphIndex.of(graph).names()
    inner = {}
    for name in types:
        inner[name] = unused_name(f"{name}.float32", taken)
        taken.add(inner[name])
    inputs = {value.name for value in given}
    _rename(graph, inner, inputs)
    _convert(graph, others)
    before = [_cast(name, inner[name], TensorProto.FLOAT) for name in inner if name in inputs]
    after = [_cast(inner[v.name], v.name, types[v.name]) for v in asked if v.name not in inputs]
    for value in (*graph.input, *graph.output):
        if value.name in types:
            value.type.tensor_type.elem_type = types[value.name]
    replace_nodes(graph, [*before, *graph.node, *after])


def _has_float64_products(model: onnx.ModelProto) -> bool:
    values = (value.type.tensor_type.elem_type for value in model.graph.input)
    casts = (one.i for node in model.graph.node for one in node.attribute if one.name == "to")
    constants = (tensor.data_type for tensor in model.graph.initializer)
    if _DOUBLE.isdisjoint((*values, *casts, *constants)):
        return False
    typed = GraphIndex.of(infer_shapes(model).graph)
    products = (node for node in typed.nodes if node.op_type in _PRODUCTS)
    return any(typed.element_type(node.output[0]) in _DOUBLE for node in products)


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


def _convert(graph: onnx.GraphProto, others: frozenset[int]) -> None:
    """Convert constants, attributes and stated types of a graph and of the bodies in it."""
    for tensor in _constants(graph):
        if tensor.data_type in others:
            value = _rounded(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*graph.input, *graph.value_info, *graph.output):
        _convert_type(value.type, others)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in others:
                attribute.i = TensorProto.FLOAT
        for body in bodies_of(node):
            _convert(body, others)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _rounded(value: Array) -> Array:
    """The values in float32; finite ones stay finite."""
    limited = value if value.dtype != np.float64 else np.clip(value, -_LARGEST, _LARGEST)
    return np.where(np.isinf(value), value, limited).astype(np.float32)


def _convert_type(kind: onnx.TypeProto, others: frozenset[int]) -> None:
    if kind.tensor_type.elem_type in others:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    for holder in (kind.sequence_type, kind.optional_type):
        if holder.HasField("elem_type"):
            _convert_type(holder.elem_type, others)
