"""Multiply-adds of ONNX operators, computed from the shapes of each run.

A multiply-add is one product that is added to a sum. Convolutions, matrix products, recurrent layers and
attention consist of multiply-adds. By convention, elementwise arithmetic, norms, pooling, interpolation and
reductions are not counted, because they are small in comparison. `has_no_macs` lists the operators without
multiply-adds. An operator that is not in this list and has no formula here is unknown; it never counts as
0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import domain_of, is_standard
from exporter.inspection.operators_without_macs import CONTAINERS, WITHOUT_MACS

Shape = tuple[int, ...]
# Domains of the operators that ONNX Runtime's optimizer creates.
_RUNTIME = {"com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc"}


@dataclass(frozen=True)
class Call:
    """One run of an operator.

    Attributes:
        inputs: shapes of the inputs in the node's order; None for an omitted optional input.
        outputs: shapes of the outputs in the node's order; None for an omitted optional output.
    """

    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]


@dataclass(frozen=True)
class Work:
    """Multiply-adds of an operator, by the type that its kernel multiplies."""

    int8: int
    float: int

    def __add__(self, other: Work) -> Work:
        return Work(self.int8 + other.int8, self.float + other.float)


NOTHING = Work(0, 0)
_Formula = Callable[[onnx.NodeProto, Call], Work]


class _ShapeMissingError(Exception):
    """A formula requires a tensor that the node omits."""


def has_no_macs(node: onnx.NodeProto) -> bool:
    """Whether an operator is known to do no multiply-adds, not counting the bodies of `If` and loops."""
    known = WITHOUT_MACS.get(domain_of(node), frozenset())
    return node.op_type in known or (is_standard(node) and node.op_type in CONTAINERS)


def work_of(node: onnx.NodeProto, call: Call) -> Work | None:
    """Multiply-adds of one run of an operator, or None if there is no formula for it."""
    if has_no_macs(node):
        return NOTHING
    formula = _formula(node)
    if formula is None:
        return None
    try:
        return formula(node, call)
    except _ShapeMissingError:
        return None


def _formula(node: onnx.NodeProto) -> _Formula | None:
    if is_standard(node):
        return _ONNX_FORMULAS.get(node.op_type)
    if node.domain in _RUNTIME:
        return _RUNTIME_FORMULAS.get(node.op_type) or _ONNX_FORMULAS.get(node.op_type)
    return None


def _shape(shapes: Sequence[Shape | None], position: int) -> Shape:
    found = shapes[position] if position < len(shapes) else None
    if found is None:
        raise _ShapeMissingError
    return found


def _optional(shapes: Sequence[Shape | None], position: int) -> Shape | None:
    return shapes[position] if position < len(shapes) else None


def _float(count: Callable[[onnx.NodeProto, Call], int]) -> _Formula:
    return lambda node, call: Work(0, count(node, call))


def _int8(count: Callable[[onnx.NodeProto, Call], int]) -> _Formula:
    return lambda node, call: Work(count(node, call), 0)


def _convolution(weight: int) -> Callable[[onnx.NodeProto, Call], int]:
    """Count outputs times the weights summed for each output; weights are [out, in / group, ...]."""

    def count(_node: onnx.NodeProto, call: Call) -> int:
        return math.prod(_shape(call.outputs, 0)) * math.prod(_shape(call.inputs, weight)[1:])

    return count


def _transposed_convolution(weight: int) -> Callable[[onnx.NodeProto, Call], int]:
    """Count inputs times the weights that multiply each input; weights are [in, out / group, ...]."""

    def count(_node: onnx.NodeProto, call: Call) -> int:
        return math.prod(_shape(call.inputs, 0)) * math.prod(_shape(call.inputs, weight)[1:])

    return count


def _product(node: onnx.NodeProto, call: Call) -> int:
    """Count outputs times the length K of the sums, from the shape of the left matrix [..., M, K]."""
    return math.prod(_shape(call.outputs, 0)) * _inner(node, _shape(call.inputs, 0))


def _inner(node: onnx.NodeProto, left: Shape) -> int:
    stated = attributes_of(node)
    if "K" in stated:  # the operator has packed weights
        return int(stated["K"])
    if len(left) < 2 or not stated.get("transA", 0):
        return left[-1] if left else 1
    return left[0] if stated.get("transBatchA", 0) else left[-2]


def _packed_product(node: onnx.NodeProto, call: Call) -> Work:
    """MatMulNBits: with accuracy level 4, the kernel rounds activations to int8; otherwise it is float."""
    count = _product(node, call)
    return Work(count, 0) if attributes_of(node).get("accuracy_level", 0) == 4 else Work(0, count)


def _recurrent(_node: onnx.NodeProto, call: Call) -> int:
    """Count steps x samples x the weights of input and state, [directions, gates x hidden, ...].

    The input is [steps, samples, features], or [samples, steps, features] with layout 1. Gates and
    peepholes are elementwise and not counted. The padding of shorter sequences in a batch is counted.
    """
    steps, samples, _ = _shape(call.inputs, 0)
    weights = math.prod(_shape(call.inputs, 1)) + math.prod(_shape(call.inputs, 2))
    return steps * samples * weights


def _einsum(node: onnx.NodeProto, call: Call) -> int:
    """Count the matrix products of joining the operands from the left, as ONNX Runtime does.

    A join without a summed axis is an elementwise product, which is not counted.
    """
    equation = str(attributes_of(node)["equation"]).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    shapes = [_shape(call.inputs, position) for position in range(len(terms))]
    labels = [_labels(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    sizes: dict[str, int] = {}
    for names, shape in zip(labels, shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    wanted = _einsum_output(equation, labels)
    total, held = 0, set(labels[0])
    for position in range(1, len(labels)):
        new = set(labels[position])
        later = wanted.union(*labels[position + 1 :])
        joined = {name for name in held | new if name in later or (name in held and name in new)}
        summed = joined - later
        total += math.prod(sizes[name] for name in joined) if summed else 0
        held = joined - summed
    return total


def _labels(term: str, rank: int) -> list[str]:
    """One label for each axis. Axes of an ellipsis are numbered from the right, as in broadcasting."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{number}" for number in range(hidden, 0, -1)), *after]


def _einsum_output(equation: str, labels: Sequence[Sequence[str]]) -> set[str]:
    """Labels of the result's axes.

    The equation states them after `->`. Without `->`, they are the labels that appear exactly once, and all
    axes of the ellipsis.
    """
    every = [name for names in labels for name in names]
    dotted = {name for name in every if name.startswith("...")}
    _, arrow, stated = equation.partition("->")
    if arrow:
        return {*stated.replace("...", "")} | (dotted if "..." in stated else set())
    return {name for name in every if every.count(name) == 1} | dotted


def _onnx_attention(_node: onnx.NodeProto, call: Call) -> int:
    """Count the scores and their products with the values; each head uses all keys, including masked ones.

    Queries are [N, heads, S, D] or [N, S, heads x D]; keys [N, heads, T, D] or [N, T, heads x D]; earlier
    keys [N, heads, P, D]. Each element of the queries and of the result takes part in T + P multiply-adds.
    """
    query, key, past = _shape(call.inputs, 0), _shape(call.inputs, 1), _optional(call.inputs, 4)
    keys = key[-2] + (past[2] if past else 0)
    return keys * (math.prod(query) + math.prod(_shape(call.outputs, 0)))


def _multi_head_attention(_node: onnx.NodeProto, call: Call) -> int:
    """Count the scores and products of com.microsoft's MultiHeadAttention, as `_onnx_attention` does.

    Queries are [N, S, heads x D], or [N, S, heads, 3, D] with keys and values. Keys are [N, T, heads x D],
    [N, T, heads, 2, D] with values, or [N, heads, T, D].
    """
    query, key, past = _shape(call.inputs, 0), _optional(call.inputs, 1), _optional(call.inputs, 6)
    keys = query[1] if key is None else key[2] if len(key) == 4 else key[1]
    keys += past[2] if past else 0
    queries = math.prod(query) // (3 if len(query) == 5 else 1)
    return keys * (queries + math.prod(_shape(call.outputs, 0)))


def _fused_attention(node: onnx.NodeProto, call: Call, past_position: int) -> tuple[int, int]:
    """Count the projections, and the products of activations, of com.microsoft's Attention.

    The input is [N, S, features], the weights [features, Q + K + V], earlier keys [2, N, heads, P, D].
    """
    samples, steps, _ = _shape(call.inputs, 0)
    weights, past = _shape(call.inputs, 1), _optional(call.inputs, past_position)
    sizes = attributes_of(node).get("qkv_hidden_sizes")
    width = int(sizes[0]) if sizes else weights[1] // 3
    keys = steps + (past[3] if past else 0)
    products = keys * (samples * steps * width + math.prod(_shape(call.outputs, 0)))
    return samples * steps * math.prod(weights), products


def _float_attention(node: onnx.NodeProto, call: Call) -> Work:
    return Work(0, sum(_fused_attention(node, call, 4)))


def _int8_attention(node: onnx.NodeProto, call: Call) -> Work:
    """QAttention: projections are in int8, other products in float (quantization/attention_quant.cc)."""
    return Work(*_fused_attention(node, call, 8))


def _affine_grid(_node: onnx.NodeProto, call: Call) -> int:
    """Count the products of each grid position [N, ..., D] with its matrix [N, D, D + 1]."""
    return math.prod(_shape(call.outputs, 0)) * _shape(call.inputs, 0)[-1]


_ONNX_FORMULAS: dict[str, _Formula] = {
    "Conv": _float(_convolution(1)),
    "DeformConv": _float(_convolution(1)),
    "ConvTranspose": _float(_transposed_convolution(1)),
    "Gemm": _float(_product),
    "MatMul": _float(_product),
    "Einsum": _float(_einsum),
    "GRU": _float(_recurrent),
    "LSTM": _float(_recurrent),
    "RNN": _float(_recurrent),
    "Attention": _float(_onnx_attention),
    "AffineGrid": _float(_affine_grid),
    "ConvInteger": _int8(_convolution(1)),
    "QLinearConv": _int8(_convolution(3)),
    "MatMulInteger": _int8(_product),
    "QLinearMatMul": _int8(_product),
}
_RUNTIME_FORMULAS: dict[str, _Formula] = {
    "FusedConv": _float(_convolution(1)),
    "NhwcConv": _float(_convolution(1)),
    "NhwcFusedConv": _float(_convolution(1)),
    "ConvTransposeWithDynamicPads": _float(_transposed_convolution(1)),
    "FusedGemm": _float(_product),
    "FusedMatMul": _float(_product),
    "TransposeMatMul": _float(_product),
    "MatMulBnb4": _float(_product),
    "MatMulFpQ4": _float(_product),
    "Attention": _float_attention,
    "MultiHeadAttention": _float(_multi_head_attention),
    "NhwcQLinearConv": _int8(_convolution(3)),
    "QLinearConvTranspose": _int8(_transposed_convolution(3)),
    "DynamicQuantizeLSTM": _int8(_recurrent),
    "DynamicQuantizeMatMul": _int8(_product),
    "MatMulInteger16": _int8(_product),
    "MatMulIntegerToFloat": _int8(_product),
    "QGemm": _int8(_product),
    "QAttention": _int8_attention,
    "MatMulNBits": _packed_product,
}
