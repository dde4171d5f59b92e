"""Functions that several rewrites use to read constants, and shapes computed inside the graph."""

from __future__ import annotations

import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard

# One entry of a computed shape: a number, or (value, n) for the size of axis n of a value.
Size = int | tuple[ir.Value, int]


def constant(value: ir.Value | None) -> Array | None:
    """The content of a constant or initializer, or None if the value is computed or an input."""
    if value is None or not is_constant(value):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value) -> bool:
    """Whether a value is a constant or initializer; faster than `constant`, which copies the content."""
    return not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant with one element, or None."""
    content = constant(value)
    return float(content.reshape(())) if content is not None and content.size == 1 else None


def rank(value: ir.Value | None) -> int | None:
    """The number of axes, or None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes a value if it is an ONNX operator of the given type, or None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type or not is_standard(node):
        return None
    return node


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The attribute `perm` of a Transpose, or None if it is not stated."""
    attribute = node.attributes.get("perm")
    return None if attribute is None else tuple(attribute.as_ints())


def computed_shape(value: ir.Value | None) -> tuple[Size, ...] | None:
    """The entries of a shape, or of a part of it, that the graph selects and joins; otherwise None.

    PyTorch's exporter writes `x.reshape(-1, x.shape[-2], x.shape[-1])` as Shape, Slice, Concat, Reshape.
    Older exporters use Gather and Unsqueeze, and Keras casts shapes to int32.
    """
    content = constant(value)
    if content is not None:
        return tuple(int(size) for size in content.reshape(-1))
    node = None if value is None else value.producer()
    read = None if node is None or not is_standard(node) else _SELECTIONS.get(node.op_type)
    return None if node is None or read is None else read(node)


def known_size(size: Size) -> int | None:
    """The number that an entry of a computed shape stands for, or None if the axis is open."""
    if isinstance(size, int):
        return size
    source, axis = size
    found = None if source.shape is None else source.shape[axis]
    return found if isinstance(found, int) else None


def _axes_of(node: ir.Node) -> tuple[Size, ...] | None:
    source = node.inputs[0]
    count = rank(source)
    if source is None or count is None:
        return None
    bounds = [node.attributes.get(name) for name in ("start", "end")]
    start, end = (None if bound is None else bound.as_int() for bound in bounds)
    return tuple((source, axis) for axis in range(count)[start:end])


def _joined(node: ir.Node) -> tuple[Size, ...] | None:
    parts = [computed_shape(part) for part in node.inputs]
    return None if None in parts else tuple(size for part in parts if part for size in part)


def _same_numbers(node: ir.Node) -> tuple[Size, ...] | None:
    """The entries that a node only changes in form: it neither reads nor returns a matrix."""
    source, result = node.inputs[0], node.outputs[0]
    return computed_shape(source) if all((rank(v) or 0) <= 1 for v in (source, result)) else None


def _gather(node: ir.Node) -> tuple[Size, ...] | None:
    sizes, places = computed_shape(node.inputs[0]), constant(node.inputs[1])
    if (
        sizes is None
        or places is None
        or any(not -len(sizes) <= p < len(sizes) for p in places.reshape(-1))
    ):
        return None
    return tuple(sizes[place] for place in places.reshape(-1))


def _slice(node: ir.Node) -> tuple[Size, ...] | None:
    sizes = computed_shape(node.inputs[0])
    bounds = [constant(value) for value in node.inputs[1:3]]
    if sizes is None or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None and scalar(node.inputs[4]) != 1:
        return None
    start, end = (int(bound.reshape(())) for bound in bounds if bound is not None)
    return sizes[start:end]


_SELECTIONS = {
    "Shape": _axes_of,
    "Concat": _joined,
    "Slice": _slice,
    "Gather": _gather,
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _same_numbers),
}
