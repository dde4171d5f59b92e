"""One view of all operators that multiply by constant weights, to scale and shift their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.rewrites.affine import Axis, affine_of
from exporter.graphs.rewrites.symbols import constant, rank

_Kind = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Product:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights, with its bias.

    Attributes:
        node: the operator.
        kind: its type.
        adds_bias: the Add with the bias of a MatMul, or None.
        weight: float64 [groups, outputs of a group, inputs of a group, taps].
        bias: float64 [outputs]; zeros if there is none.
        inputs: the channels of the tensor that it reads.
        outputs: the channels of the tensor that it computes.
    """

    node: ir.Node
    kind: _Kind
    adds_bias: ir.Node | None
    weight: Array
    bias: Array
    inputs: Axis
    outputs: Axis

    @property
    def last(self) -> ir.Node:
        """The node that computes the result."""
        return self.node if self.adds_bias is None else self.adds_bias

    def scaled_outputs(self, scale: Array) -> Array:
        """The weights whose outputs are `scale` [outputs] times as large."""
        groups = len(self.weight)
        return self.weight * scale.reshape(groups, -1, 1, 1)

    def scaled_inputs(self, scale: Array) -> Array:
        """The weights for inputs that are not yet multiplied by `scale` [inputs]."""
        groups = len(self.weight)
        return self.weight * scale.reshape(groups, 1, -1, 1)

    @property
    def padded(self) -> bool:
        """Whether some outputs also depend on zeros around the input, or on fewer inputs than others."""
        pads, automatic = (self.node.attributes.get(name) for name in ("pads", "auto_pad"))
        kept = automatic is None or automatic.as_string() in {"NOTSET", "VALID"}
        return self.kind == "ConvTranspose" or not kept or (pads is not None and any(pads.as_ints()))

    def response(self, shift: Array) -> Array:
        """The outputs [outputs] for the constant input `shift` [inputs], without padding."""
        groups = len(self.weight)
        sums: Array = (self.weight.sum(3) * shift.reshape(groups, 1, -1)).sum(2)
        return sums.reshape(-1)


def product_of(node: ir.Node) -> Product | None:
    """The view of a node, or None if it is another operator or its weights or bias are computed."""
    kind = _kind(node)
    weight = None if kind is None else constant(node.inputs[1])
    if kind is None or weight is None or weight.dtype != np.float32 or not weight.size:
        return None
    if kind == "MatMul":
        return _matmul(node, weight) if weight.ndim == 2 else None
    groups = 1 if kind == "Gemm" else _integer(node, "group", 1)
    seen = np.float64(_number(node, "alpha", 1.0)) * _grouped(kind, node, weight, groups)
    outputs, inputs = groups * seen.shape[1], groups * seen.shape[2]
    axes = 2 if kind == "Gemm" else weight.ndim
    bias = _bias(node, Axis(outputs, last=True, rank=2))
    if bias is None:
        return None
    result = Axis(outputs, last=kind == "Gemm", rank=axes)
    return Product(node, kind, None, seen, bias, Axis(inputs, last=kind == "Gemm", rank=axes), result)


def replace_product(
    product: Product, weight: Array, bias: Array, *, source: ir.Value | None, end: ir.Node
) -> Product | None:
    """Replace a product, and all nodes from it to `end`, by one with another weight and bias.

    Args:
        product: the product. All results between it and `end` have a single reader.
        weight: the new weights, in the form of `Product.weight`.
        bias: the new bias [outputs].
        source: the tensor that the new product reads.
        end: the node whose result the new product computes.

    Returns:
        The new product.
    """
    node, graph = product.node, end.graph
    assert isinstance(graph, ir.Graph)
    content = _written(product, weight)
    weight_value = _changed(graph, node, 1, content, f"{_label(node)}.weight")
    inputs = [source, weight_value]
    bias_content = bias.astype(np.float32)
    if bias.any() and product.kind != "MatMul":
        inputs.append(_changed(graph, node, 2, bias_content, f"{_label(node)}.bias"))
    attributes = [entry for entry in node.attributes.values() if entry.name not in {"alpha", "beta"}]
    made = [ir.Node(node.domain, node.op_type, inputs, attributes, name=node.name, version=node.version)]
    made[0].metadata_props.update(node.metadata_props)
    if bias.any() and product.kind == "MatMul":
        inner = made[0].outputs[0]
        inner.name = free_name(graph, f"{end.outputs[0].name}.product")
        adder = product.adds_bias
        place = next((i for i, v in enumerate(adder.inputs) if constant(v) is not None), 1) if adder else 1
        term = _changed(graph, adder, place, bias_content, f"{_label(node)}.bias")
        made.append(ir.node("Add", inputs=[inner, term], name=None if adder is None else adder.name))
    old = [node, *_between(node, end)]
    ir.convenience.replace_nodes_and_values(graph, end, old, made, [end.outputs[0]], [made[-1].outputs[0]])
    return product_of(made[0])


def is_small(*contents: Array) -> bool:
    """Whether all numbers are finite in float32."""
    return all(bool((np.abs(content) <= _LARGEST).all()) for content in contents)


def _between(first: ir.Node, end: ir.Node) -> list[ir.Node]:
    """The nodes after `first` up to `end`, along results with a single reader."""
    found: list[ir.Node] = []
    while first is not end:
        (use,) = first.outputs[0].uses()
        first = use.node
        found.append(first)
    return found


def only_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, or None if another node, a body or the caller reads it too."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (use,) = uses
    return use.node if use.node.graph is value.graph else None


def free_name(graph: ir.Graph, wanted: str) -> str:
    """The wanted name, with a number if a value of the graph has this name already."""
    values = (value.name for node in graph for value in node.outputs)
    used = {*graph.initializers, *values, *(value.name for value in graph.inputs)}
    name, number = wanted, 1
    while name in used:
        number += 1
        name = f"{wanted}_{number}"
    return name


def add_initializer(graph: ir.Graph, wanted: str, content: Array) -> ir.Value:
    """Add a constant to a graph, with a free name."""
    name = free_name(graph, wanted)
    value = ir.Value(name=name, const_value=ir.tensor(content, name=name), shape=ir.Shape(content.shape))
    value.type = ir.TensorType(ir.DataType.from_numpy(content.dtype))
    graph.register_initializer(value)
    return value


def _kind(node: ir.Node) -> _Kind | None:
    if not is_standard(node) or len(node.inputs) < 2:
        return None
    match node.op_type:
        case "Conv" | "ConvTranspose" | "Gemm" | "MatMul" as kind:
            return kind
    return None


def _matmul(node: ir.Node, weight: Array) -> Product:
    """The view of a MatMul, with the Add after it if it only adds a bias."""
    axes = rank(node.inputs[0])
    inputs, outputs = (Axis(size, last=True, rank=axes) for size in weight.shape)
    seen = weight.T.astype(np.float64)[None, :, :, None]
    reader = only_reader(node.outputs[0])
    added = affine_of(reader, outputs) if reader is not None and reader.op_type == "Add" else None
    bias = np.zeros(outputs.channels) if added is None else added.shift
    return Product(node, "MatMul", None if added is None else added.node, seen, bias, inputs, outputs)


def _bias(node: ir.Node, axis: Axis) -> Array | None:
    """The bias [outputs], or None if it is computed or differs between rows."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(axis.channels)
    content = constant(value)
    spread = None if content is None else axis.spread(content)
    return None if spread is None else spread * _number(node, "beta", 1.0)


def _grouped(kind: _Kind, node: ir.Node, weight: Array, groups: int) -> Array:
    wide = weight.astype(np.float64)
    if kind == "Gemm":
        return (wide if _integer(node, "transB", 0) else wide.T)[None, :, :, None]
    seen = wide.reshape(groups, wide.shape[0] // groups, wide.shape[1], -1)
    return seen if kind == "Conv" else seen.swapaxes(1, 2)


def _written(product: Product, weight: Array) -> Array:
    """Weights in the form in which the operator stores them, float32."""
    node, kind = product.node, product.kind
    old = constant(node.inputs[1])
    assert old is not None
    if kind in {"Gemm", "MatMul"}:
        seen = weight[0, :, :, 0] if _integer(node, "transB", 0) else weight[0, :, :, 0].T
    else:
        seen = weight if kind == "Conv" else weight.swapaxes(1, 2)
    return np.ascontiguousarray(seen.reshape(old.shape), np.float32)


def _changed(graph: ir.Graph, node: ir.Node | None, place: int, content: Array, wanted: str) -> ir.Value:
    """A constant input of a node with another content; the same value if nothing else reads it."""
    value = node.inputs[place] if node is not None and len(node.inputs) > place else None
    own = value is not None and value.is_initializer() and len(value.uses()) == 1
    if value is None or not own or value.is_graph_output():
        return add_initializer(graph, wanted, content)
    value.const_value = ir.tensor(content, name=value.name)
    value.shape = ir.Shape(content.shape)
    return value


def _label(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
