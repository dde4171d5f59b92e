"""Multiply-adds of ONNX operators, computed from the shapes of each run.

A multiply-add is one product that is added to a sum. Convolutions, matrix products, recurrent layers,
attention and Fourier transforms consist of multiply-adds. They are counted by their definition, not by the
algorithm of a kernel. By convention, elementwise arithmetic, norms, pooling, interpolation and
reductions are not counted, because they are small in comparison. `has_no_macs` lists the operators without
multiply-adds. An operator that is not in this list and has no formula here is unknown; it never counts as
0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import domain_of, is_standard
from exporter.inspection.operators_without_macs import CONTAINERS, WITHOUT_MACS

Shape = tuple[int, ...]
_Value = TypeVar("_Value")
# Domains of the operators that ONNX Runtime's optimizer creates.
_RUNTIME = {"com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc"}


@dataclass(frozen=True)
class Call:
    """One run of an operator.

    Attributes:
        inputs: shapes of the inputs in the node's order; None for an omitted optional input.
        outputs: shapes of the outputs in the node's order; None for an omitted optional output.
        integers: for each input, its value if it is a constant with one integer, otherwise None. May be
            shorter than `inputs`.
    """

    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    integers: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Work:
    """Multiply-adds of an operator, by the type that its kernel multiplies."""

    int8: int
    float: int

    def __add__(self, other: Work) -> Work:
        return Work(self.int8 + other.int8, self.float + other.float)


NOTHING = Work(0, 0)
_Formula = Callable[[onnx.NodeProto, Call], Work]


class _UnknownError(Exception):
    """A formula requires a tensor that the node omits, or a number that is not a constant."""


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
    except _UnknownError:
        return None


def _formula(node: onnx.NodeProto) -> _Formula | None:
    if is_standard(node):
        return _ONNX_FORMULAS.get(node.op_type)
    if node.domain == "ai.onnx.ml":
        return _CLASSICAL_FORMULAS.get(node.op_type)
    if node.domain in _RUNTIME:
        return _RUNTIME_FORMULAS.get(node.op_type) or _ONNX_FORMULAS.get(node.op_type)
    return None


def _shape(shapes: Sequence[Shape | None], position: int) -> Shape:
    found = shapes[position] if position < len(shapes) else None
    if found is None:
        raise _UnknownError
    return found


def _optional(values: Sequence[_Value | None], position: int) -> _Value | None:
    return values[position] if position < len(values) else None


def _integer(call: Call, position: int) -> int:
    found = _optional(call.integers, position)
    if found is None:
        raise _UnknownError
    return found


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


def _grouped_attention(_node: onnx.NodeProto, call: Call) -> int:
    """Count the scores and products of com.microsoft's GroupQueryAttention.

    The result is [N, S, heads x D], all keys together are [N, key heads, T, D]. Queries and values have the
    same D, so each element of the result stands for T multiply-adds with keys and T with values. A buffer
    for later keys is counted whole.
    """
    return 2 * _shape(call.outputs, 1)[2] * math.prod(_shape(call.outputs, 0))


def _experts(node: onnx.NodeProto, call: Call) -> int:
    """Count the products of each token with the weights of the k experts that it is sent to.

    Tokens are [..., features]; the weights of fc1, fc2 and fc3 are inputs 2, 4 and 6, [experts, ...].
    """
    tokens = math.prod(_shape(call.inputs, 0)[:-1])
    weights = [_optional(call.inputs, position) for position in (2, 4, 6)]
    each = sum(math.prod(shape[1:]) for shape in weights if shape)
    return tokens * int(attributes_of(node).get("k", 1)) * each


def _linear_model(node: onnx.NodeProto, call: Call) -> int:
    """Count rows times coefficients of ai.onnx.ml's linear models; the rows are [N, features]."""
    shape = _shape(call.inputs, 0)
    rows = shape[0] if len(shape) > 1 else 1
    coefficients: Sequence[float] = attributes_of(node)["coefficients"]
    return rows * len(coefficients)


def _distances(_node: onnx.NodeProto, call: Call) -> int:
    """Count the products of all pairs of rows of [N, K] and [M, K]."""
    return math.prod(_shape(call.outputs, 0)) * _shape(call.inputs, 0)[-1]


def _fourier_transform(node: onnx.NodeProto, call: Call) -> int:
    """Count the sums that define a DFT: one product of real numbers for each sample and result.

    This is the count of the same transform written as a matrix product or convolution; a fast algorithm
    needs fewer products. The last axis of input and result holds real and imaginary parts (2) or real
    values (1). So a real signal has 2 products for each sample and frequency, a complex one 4.
    """
    signal, result = _shape(call.inputs, 0), _shape(call.outputs, 0)
    attributes = attributes_of(node)
    stated = _optional(call.inputs, 2) is not None  # an attribute up to opset 19, then an input
    axis = _integer(call, 2) if stated else int(attributes.get("axis", -2))
    samples, found = signal[axis], result[axis]
    if attributes.get("inverse", 0):
        summed = samples if samples == found // 2 + 1 else found
    elif attributes.get("onesided", 0):
        summed = _summed_samples(_optional(call.integers, 1), samples, found)
    else:
        summed = found
    return math.prod(result) * summed * signal[-1]


def _summed_samples(stated: int | None, samples: int, frequencies: int) -> int:
    """The length of a one-sided transform: as stated, as the signal, or the even length that fits."""
    if stated is not None:
        return stated
    return samples if samples // 2 + 1 == frequencies else 2 * (frequencies - 1)


def _short_time_fourier_transform(_node: onnx.NodeProto, call: Call) -> int:
    """Count the transforms of all frames, as `_fourier_transform` does; the window is elementwise.

    The signal is [N, samples] or [N, samples, 1 or 2], the window [frame], the result
    [N, frames, frequencies, 2].
    """
    signal, window = _shape(call.inputs, 0), _optional(call.inputs, 2)
    length = window[0] if window else _integer(call, 3)
    parts = signal[2] if len(signal) > 2 else 1
    return math.prod(_shape(call.outputs, 0)) * length * parts


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
    "DFT": _float(_fourier_transform),
    "STFT": _float(_short_time_fourier_transform),
    "ConvInteger": _int8(_convolution(1)),
    "QLinearConv": _int8(_convolution(3)),
    "MatMulInteger": _int8(_product),
    "QLinearMatMul": _int8(_product),
}
_CLASSICAL_FORMULAS: dict[str, _Formula] = {
    "LinearClassifier": _float(_linear_model),
    "LinearRegressor": _float(_linear_model),
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
    "GroupQueryAttention": _float(_grouped_attention),
    "MoE": _float(_experts),
    "CDist": _float(_distances),
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
