"""Recognize layer norms and RMS norms that an exporter wrote as several operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.rewrites.products import add_initializer, only_reader
from exporter.graphs.rewrites.symbols import constant, producer, scalar

_WITH_LAYER_NORM = 17
_AXES_ARE_AN_INPUT = 18


class DecomposedNormPass(ir.passes.InPlacePass):
    """Write norms over the last axis in the form that ONNX Runtime runs as one operator.

    ONNX Runtime fuses `(x - mean) / Sqrt(variance + epsilon) * gain + bias` with `Pow(x - mean, 2)`, but no
    other spelling. Here these are known, for x with and without `- mean`:

    1. the square as Pow or Mul; the root as Sqrt or Pow; Div by it, or Mul by Reciprocal or by 1 / root,
    2. gain and bias, a gain without bias, or neither, and a gain before the division.

    A layer norm becomes LayerNormalization, which opset 17 brought. An RMS norm, whose operator is newer
    than XX
    The size of the last axis must be known.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite all matching norms."""
        modified, opset = False, model.opset_imports.get("") or 0
        for root in list(model.graph):
            norm = _norm_of(root)
            if norm is None or not (opset >= _WITH_LAYER_NORM if norm.centred else norm.unusual):
                continue
            made = _layer_norm(norm, model.graph) if norm.centred else _rms_norm(norm, model.graph, opset)
            made[-1].name = norm.last.name
            made[-1].metadata_props.update(norm.last.metadata_props)
            ir.convenience.replace_nodes_and_values(
                model.graph, norm.last, [norm.last], made, [norm.last.outputs[0]], [made[-1].outputs[0]]
            )
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Norm:
    """A norm over the last axis.

    Attributes:
        source: the tensor that is normalized.
        centred: whether its mean is subtracted: a layer norm; otherwise an RMS norm.
        epsilon: the number added to the mean of the squares.
        gain: the factors [size of the last axis].
        bias: the summands, or None.
        last: the node that computes the result.
        unusual: whether ONNX Runtime does not know this spelling of an RMS norm.
    """

    source: ir.Value
    centred: bool
    epsilon: float
    gain: Array
    bias: Array | None
    last: ir.Node
    unusual: bool


def _norm_of(root: ir.Node) -> _Norm | None:
    """The norm around the root of a variance, or None."""
    power = _power(root)
    shifted = producer(root.inputs[0], "Add") if power in {0.5, -0.5} else None
    terms = (None, None) if shifted is None else tuple(shifted.inputs)
    for total, other in (terms, reversed(terms)):
        mean, epsilon = _mean_of(total), scalar(other)
        square = None if mean is None else mean.producer()
        if square is None or epsilon is None or _power(square) != 2:
            continue
        difference = square.inputs[0]
        source = _centred(difference)
        size = _last_size(difference)
        end = None if size is None else _end(root, power == -0.5, difference, size)
        if difference is None or end is None:
            return None
        node, gain, bias, usual = end
        return _Norm(
            source=difference if source is None else source,
            centred=source is not None,
            epsilon=epsilon,
            gain=gain,
            bias=bias,
            last=node,
            unusual=not (usual and square.op_type == "Pow" and root.op_type == "Sqrt"),
        )
    return None


def _power(node: ir.Node) -> float | None:
    """The exponent p of a node that computes x to the power of p from its first input, or None."""
    match node.op_type:
        case "Sqrt":
            return 0.5
        case "Mul":
            return 2 if node.inputs[0] is node.inputs[1] else None
        case "Pow":
            return scalar(node.inputs[1])
    return None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """The tensor whose mean over the last axis a value is, or None."""
    node = producer(value, "ReduceMean")
    if node is None or node.inputs[0] is None:
        return None
    attribute, keeps = node.attributes.get("axes"), node.attributes.get("keepdims")
    given = None if len(node.inputs) < 2 else constant(node.inputs[1])
    axes = None if given is None else given.reshape(-1).tolist()
    axes = axes if attribute is None else list(attribute.as_ints())
    source = node.inputs[0]
    last = {-1} if source.shape is None else {-1, len(source.shape) - 1}
    kept = keeps is None or keeps.as_int() == 1
    return source if kept and axes is not None and len(axes) == 1 and axes[0] in last else None


def _centred(value: ir.Value | None) -> ir.Value | None:
    """The tensor from which its mean is subtracted, or None."""
    difference = producer(value, "Sub")
    if difference is None:
        return None
    source = difference.inputs[0]
    return source if source is not None and _mean_of(difference.inputs[1]) is source else None


def _last_size(value: ir.Value | None) -> int | None:
    size = None if value is None or value.shape is None or not len(value.shape) else value.shape[-1]
    return size if isinstance(size, int) else None


_End = tuple[ir.Node, Array, Array | None, bool]


def _end(root: ir.Node, inverted: bool, difference: ir.Value | None, size: int) -> _End | None:
    """Follow the root to the end of a norm.

    Returns:
        The last node, the gain, the bias, and whether the spelling is a division with a gain after it.
    """
    inverse = _only(root.outputs[0], "Reciprocal") or _only(root.outputs[0], "Div")
    if (
        not inverted
        and inverse is not None
        and (inverse.op_type == "Reciprocal" or scalar(inverse.inputs[0]) == 1)
    ):
        root, inverted = inverse, True
    last = _only(root.outputs[0], "Mul" if inverted else "Div")
    if last is None or (not inverted and last.inputs[1] is not root.outputs[0]):
        return None
    other = next((value for value in last.inputs if value is not root.outputs[0]), None)
    gain = np.ones(size, np.float32)
    gained = producer(other, "Mul") if other is not difference else None
    if gained is not None and difference in gained.inputs:
        found = _spread(gained, difference, size)
        if found is None:
            return None
        gain = found
    elif other is not difference:
        return None
    usual = not inverted and gained is None
    scaled = _only(last.outputs[0], "Mul") if gained is None else None
    found = None if scaled is None else _spread(scaled, last.outputs[0], size)
    usual = usual and found is not None
    if scaled is not None and found is not None:
        last, gain = scaled, found
    added = _only(last.outputs[0], "Add")
    bias = None if added is None else _spread(added, last.outputs[0], size)
    return (last, gain, None, usual) if added is None or bias is None else (added, gain, bias, usual)


def _only(value: ir.Value, op_type: str) -> ir.Node | None:
    node = only_reader(value)
    return node if node is not None and node.op_type == op_type else None


def _spread(node: ir.Node, computed: ir.Value | None, size: int) -> Array | None:
    """The constant operand of a node, one number for each entry of the last axis, or None."""
    other = next((value for value in node.inputs if value is not computed), None)
    content = constant(other)
    if content is None or content.dtype != np.float32 or content.size not in {1, size}:
        return None
    if content.ndim > 1 or (content.ndim == 1 and content.shape[-1] not in {1, size}):
        return None
    return np.ascontiguousarray(np.broadcast_to(content.reshape(-1), (size,)))


def _layer_norm(norm: _Norm, graph: ir.Graph) -> list[ir.Node]:
    label = norm.last.name or str(norm.last.outputs[0].name)
    inputs = [norm.source, add_initializer(graph, f"{label}.gain", norm.gain)]
    if norm.bias is not None:
        inputs.append(add_initializer(graph, f"{label}.bias", norm.bias))
    attributes = {"axis": -1, "epsilon": norm.epsilon}
    return [ir.node("LayerNormalization", inputs=inputs, attributes=attributes)]


def _rms_norm(norm: _Norm, graph: ir.Graph, opset: int) -> list[ir.Node]:
    """Nodes of the spelling that ONNX Runtime fuses (`SimplifiedLayerNormFusion`)."""
    label = norm.last.name or str(norm.last.outputs[0].name)

    def add(part: str, content: Array) -> ir.Value:
        return add_initializer(graph, f"{label}.{part}", content)

    square = ir.node("Pow", inputs=[norm.source, add("two", np.array(2, np.float32))])
    if opset < _AXES_ARE_AN_INPUT:
        mean = ir.node("ReduceMean", inputs=[square.outputs[0]], attributes={"axes": [-1]})
    else:
        mean = ir.node("ReduceMean", inputs=[square.outputs[0], add("last", np.array([-1], np.int64))])
    total = ir.node("Add", inputs=[mean.outputs[0], add("epsilon", np.array(norm.epsilon, np.float32))])
    root = ir.node("Sqrt", inputs=[total.outputs[0]])
    ratio = ir.node("Div", inputs=[norm.source, root.outputs[0]])
    made = [square, mean, total, root, ratio]
    made.append(ir.node("Mul", inputs=[ratio.outputs[0], add("gain", norm.gain)]))
    if norm.bias is not None:
        made.append(ir.node("Add", inputs=[made[-1].outputs[0], add("bias", norm.bias)]))
    return made
