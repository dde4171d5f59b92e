"""Operators that multiply each channel by a constant and add a constant to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.rewrites.symbols import constant

_EPSILON = 1e-5


@dataclass(frozen=True)
class Axis:
    """The channels of a tensor.

    Attributes:
        channels: the number of channels.
        last: whether the channels are the last axis; otherwise they are axis 1.
        rank: the number of axes of the tensor, or None if unknown.
    """

    channels: int
    last: bool
    rank: int | None

    def spread(self, content: Array) -> Array | None:
        """One number for each channel, float64 [channels].

        None if the array, broadcast to the tensor, is not constant along all other axes, or would add axes
        to the tensor. A tensor of unknown rank has at least one axis.
        """
        if content.ndim > (1 if self.rank is None else self.rank):
            return None
        if content.size == 1:
            return np.full(self.channels, content.reshape(()), np.float64)
        if not self.last and self.rank is None:
            return None
        from_end = 1 if self.last or self.rank is None else self.rank - 1
        sizes = [size for place, size in enumerate(reversed(content.shape), 1) if place != from_end]
        if any(size != 1 for size in sizes) or content.size != self.channels:
            return None
        return content.reshape(-1).astype(np.float64)


@dataclass(frozen=True)
class Affine:
    """`result = source * scale + shift` with one scale and one shift for each channel, float64 [channels].

    Attributes:
        node: the operator that computes it.
        source: the tensor that it reads.
        result: the tensor that it computes.
        scale: the factors.
        shift: the summands.
    """

    node: ir.Node
    source: ir.Value
    result: ir.Value
    scale: Array
    shift: Array


def affine_of(node: ir.Node, axis: Axis) -> Affine | None:
    """A node as scale and shift of each channel, or None.

    These nodes are known: Add, Sub, Mul with a constant on either side, Div by a constant, Neg and
    BatchNormalization in inference. Infinite scales and shifts are refused.
    """
    if not is_standard(node) or not node.inputs:
        return None
    if node.op_type == "BatchNormalization":
        found = _norm(node, axis)
    elif node.op_type == "Neg":
        found = node.inputs[0], -np.ones(axis.channels), np.zeros(axis.channels)
    elif node.op_type in {"Add", "Sub", "Mul", "Div"}:
        found = _arithmetic(node, axis)
    else:
        return None
    if found is None:
        return None
    source, scale, shift = found
    if source is None or not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return Affine(node, source, node.outputs[0], scale, shift)


_Terms = tuple[ir.Value | None, Array, Array]


def _arithmetic(node: ir.Node, axis: Axis) -> _Terms | None:
    first, second = node.inputs
    leads = constant(first) is not None
    source, content = (second, constant(first)) if leads else (first, constant(second))
    if content is None or content.dtype.kind != "f" or constant(source) is not None:
        return None
    term = axis.spread(content)
    if term is None or (node.op_type == "Div" and (leads or not term.all())):
        return None
    ones, zeros = np.ones(axis.channels), np.zeros(axis.channels)
    match node.op_type:
        case "Add":
            return source, ones, term
        case "Sub":
            return (source, -ones, term) if leads else (source, ones, -term)
        case "Mul":
            return source, term, zeros
        case _:
            return source, 1 / term, zeros


def _norm(node: ir.Node, axis: Axis) -> _Terms | None:
    training, epsilon = (node.attributes.get(name) for name in ("training_mode", "epsilon"))
    if axis.last and axis.rank != 2:
        return None
    if (training is not None and training.as_int()) or len(node.outputs) > 1:
        return None
    contents = [constant(value) for value in node.inputs[1:]]
    if any(content is None or content.shape != (axis.channels,) for content in contents):
        return None
    gain, bias, mean, variance = (content.astype(np.float64) for content in contents if content is not None)
    scale = gain / np.sqrt(variance + (_EPSILON if epsilon is None else epsilon.as_float()))
    return node.inputs[0], scale, bias - mean * scale
