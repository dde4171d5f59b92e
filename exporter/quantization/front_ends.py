"""Find spectral front ends, which stay in float: the logarithm of small powers does not survive 8 bits.

A front end turns a waveform into features: linear maps (framing, windows, DFT), a square or magnitude,
sums with non-negative weights (mel filters), and a logarithm or a power with a fractional exponent. The
powers differ by factors of 10^6, and an 8-bit step is 1/255 of the largest. So the logarithm of all but the
loudest values is wrong.

Measured on a network with a windowed DFT as convolution, 40 mel filters and a logarithm, with 64 synthetic
chords that did not calibrate, on x86-64 without VNNI: if all of it runs in int8, the SQNR is -5 dB and 3 %
of the answers agree with float; with the front end in float, 32 dB and 97 %.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex, reads_of

FRONT_END = (
    "8 bits cannot hold the values of a spectrum, or those that a logarithm, power, Exp or division needs"
)

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Reshape", "ScatterND"}
    | {"Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_SHAPES = frozenset({"ConstantOfShape", "Range", "Shape", "Size"})
_SUMS = frozenset(
    {
        "Add",
        "AveragePool",
        "Div",
        "GlobalAveragePool",
        "Mul",
        "Neg",
        "ReduceMean",
        "ReduceSum",
        "Sub",
        "Sum",
    }
)
_LINEAR = _PRODUCTS | _MOVES | _SHAPES | _SUMS | {"DFT", "STFT"}
_NORMS = frozenset({"Abs", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
_LIMITS = frozenset(
    {"Clip", "Equal", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "MaxPool"}
    | {"Min", "ReduceMax", "ReduceMin", "Relu", "Where"}
)
_CURVES = frozenset({"Exp", "Log", "Pow", "Reciprocal", "Sqrt"})
_POSITIVE = _MOVES | _SHAPES | _SUMS | _NORMS | _LIMITS | _CURVES
_BEFORE_COMPRESSION = _POSITIVE - {"Exp"}
# A mean over values averages their rounding errors, for example that of a norm.
_MEANS = (_NORMS - {"Abs"}) | {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"}
_BEFORE_DIVISION = _BEFORE_COMPRESSION - _MEANS
_AWAY = 0.1
_ORTHOGONAL = 1e-3  # a DCT is exact to 1e-6; two trained filters differ from a right angle by more
_FEWEST_ROWS = 8  # a basis has at least 4 frequencies
_SAME_WINDOW, _DIFFERENT = 1e-3, 0.1


class _Stage(IntEnum):
    """How far a tensor is on the way through a front end."""

    FIXED = 0  # depends on no input
    LINEAR = 1  # a linear map of the inputs
    POWER = 2  # a sum of squares or magnitudes with non-negative weights
    COMPRESSED = 3  # a logarithm or fractional power, possibly shifted and scaled


def front_end_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """The names of the nodes of all front ends, from the inputs to the last compressed tensor.

    A product with a Fourier basis stays in float also if no logarithm follows, together with the linear
    nodes before it. `STFT` and `DFT`, which are rewritten as such products, have no int8 kernels either.

    A logarithm of a product inside a network, for example Conv, Relu, Add, Log, keeps this one product in
    float, because the logarithm must not read a value of 8 bits. So does a division by a product. An Exp
    keeps the products that read it in float. Measured on a network of five convolutions, in int8 and with
    these products in float: division by absolute values of a product -7 and 11 dB, Exp 18 and 35 dB.

    Args:
        model: a float model; all nodes have names.
    """
    graph = GraphIndex.of(model.graph)
    stages: dict[str, _Stage] = dict.fromkeys(graph.constants, _Stage.FIXED)
    stages |= dict.fromkeys(graph.inputs, _Stage.LINEAR)
    ends: list[onnx.NodeProto] = []
    kept: set[str] = set()
    for node in graph.nodes:
        after = _stage(node, graph, stages)
        if after is not None:
            stages.update(dict.fromkeys(filter(None, node.output), after))
        if after is _Stage.COMPRESSED or (after is _Stage.LINEAR and _is_fourier(node, graph)):
            ends.append(node)
        elif _is_fourier(node, graph):
            kept.add(node.name)
        elif _compresses(node, graph):
            kept.update(_product_before(node.input[0], graph, _BEFORE_COMPRESSION))
        elif _grows(node, graph):
            kept.update(_products_after(node, graph))
        elif (divisor := _divisor(node, graph)) is not None:
            kept.update(_product_before(divisor, graph, _BEFORE_DIVISION))
    return frozenset(kept | _ancestors(ends, graph))


def _stage(node: onnx.NodeProto, graph: GraphIndex, stages: Mapping[str, _Stage]) -> _Stage | None:
    """The stage of a node's results; None if the node does not belong to a front end."""
    read = [stages[name] for name in reads_of(node) if name in stages]
    if len(read) < len(reads_of(node)) or not is_standard(node):
        return None
    before = max(read, default=_Stage.FIXED)
    if node.op_type == "Div" and read[0] is _Stage.LINEAR:
        return _Stage.LINEAR  # the waveform divided by its loudness
    if before is _Stage.LINEAR:
        return _after_linear(node, graph)
    return before if before is _Stage.FIXED else _after_power(node, graph, before)


def _after_linear(node: onnx.NodeProto, graph: GraphIndex) -> _Stage | None:
    """The stage of a node that reads linear maps of the inputs."""
    if _squares(node, graph):
        return _Stage.POWER
    return _Stage.LINEAR if node.op_type in _LINEAR else None


def _after_power(node: onnx.NodeProto, graph: GraphIndex, before: _Stage) -> _Stage | None:
    """The stage of a node that reads powers or compressed powers."""
    if node.op_type in _PRODUCTS:
        weights = _weights(node, graph)
        fits = _is_basis if before is _Stage.COMPRESSED else _is_positive
        return before if weights is not None and fits(weights) else None
    if before is _Stage.POWER and _compresses(node, graph):
        return _Stage.COMPRESSED
    return before if node.op_type in _POSITIVE else None


def _squares(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    squared = node.op_type == "Pow" and _exponents(node, graph) == {2.0}
    return squared or node.op_type in _NORMS


def _compresses(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether a node is a logarithm or a power that is neither whole nor a square root, as norms have."""
    if node.op_type == "Pow":
        return any((2 * exponent) % 1 for exponent in _exponents(node, graph))
    return node.op_type == "Log"


def _exponents(node: onnx.NodeProto, graph: GraphIndex) -> set[float]:
    """The exponents of a Pow; empty if they are not constant."""
    constant = graph.is_constant(node.input[1])
    return set(graph.constant(node.input[1]).ravel().tolist()) if constant else set()


def _weights(node: onnx.NodeProto, graph: GraphIndex) -> Array | None:
    """The only constant factor of a product, as it is stored."""
    found = [graph.constant(name) for name in node.input[:2] if graph.is_constant(name)]
    return found[0] if len(found) == 1 else None


def _is_positive(weights: Array) -> bool:
    return bool(weights.size and weights.min() >= -1e-6 * abs(weights).max())


def _is_basis(weights: Array) -> bool:
    """Whether the rows or the columns of a matrix are orthogonal, as those of a DCT (of MFCC)."""
    matrix = weights.reshape(weights.shape[0], -1).astype(np.float64) if weights.ndim > 1 else weights[None]
    return min(matrix.shape) > 1 and (_right_angles(matrix) or _right_angles(matrix.T))


def _is_fourier(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether the weights of a product are the cosines and sines of a Fourier transform with a window.

    The squares of the cosine and of the sine of each frequency add up to the square of the window, which is
    the same for all frequencies, although the cosines differ. Both are beside each other, or each has one
    half of the rows or columns.
    """
    weights = _weights(node, graph) if node.op_type in _PRODUCTS else None
    if weights is None or weights.ndim < 2 or min(weights.shape[0], weights[0].size) < _FEWEST_ROWS:
        return False
    rows = weights.reshape(weights.shape[0], -1)
    return any(_is_transform(matrix) for matrix in ((rows,) if node.op_type == "Conv" else (rows, rows.T)))


def _is_transform(rows: Array) -> bool:
    half, odd = divmod(len(rows), 2)
    pairs = () if odd else ((rows[::2], rows[1::2]), (rows[:half], rows[half:]))
    # Most weights fail with their first rows.
    return any(_have_one_window(a[:4], b[:4]) and _have_one_window(a, b) for a, b in pairs)


def _have_one_window(cosines: Array, sines: Array) -> bool:
    """Whether the squares of all pairs of rows add up to the same row, although the cosines differ."""
    squares = np.square(cosines, dtype=np.float64)
    windows = squares + np.square(sines, dtype=np.float64)
    largest = windows.max()
    same = np.abs(windows - windows[0]).max() < _SAME_WINDOW * largest
    return bool(same and np.ptp(squares, axis=0).max() > _DIFFERENT * largest)


def _right_angles(matrix: Array) -> bool:
    rows = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return len(rows) <= matrix.shape[1] and bool(
        np.abs(rows @ rows.T - np.eye(len(rows))).max() < _ORTHOGONAL
    )


def _ancestors(nodes: list[onnx.NodeProto], graph: GraphIndex) -> set[str]:
    """The names of nodes and of all nodes before them."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting.extend(_makers(node, graph))
    return found


def _grows(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether a node is an Exp whose result has its whole range.

    An Exp to which a constant is added is part of a sigmoid, softplus or ELU, for which 8 bits suffice.
    """
    added = [r.op_type in {"Add", "Sub"} and _constants(r, graph) for r in graph.readers(node.output[0])]
    return node.op_type == "Exp" and not (added and all(added))


def _divisor(node: onnx.NodeProto, graph: GraphIndex) -> str | None:
    """The tensor that a node divides by: its rounding is magnified near 0. None if there is none."""
    if node.op_type == "Div":
        return None if graph.is_constant(node.input[1]) else str(node.input[1])
    inverse = node.op_type == "Pow" and any(exponent < 0 for exponent in _exponents(node, graph))
    return str(node.input[0]) if inverse or node.op_type == "Reciprocal" else None


def _products_after(node: onnx.NodeProto, graph: GraphIndex) -> set[str]:
    """The names of the nodes after a node up to the next products, through nodes that read one tensor."""
    found: set[str] = set()
    readers = {reader.name: reader for name in node.output for reader in graph.readers(name)}
    for name, reader in readers.items():
        computed = {read for read in reads_of(reader) if not graph.is_constant(read)}
        if len(computed) != 1:
            continue
        if reader.op_type in _PRODUCTS:
            found.add(name)
        elif reader.op_type in _POSITIVE and (after := _products_after(reader, graph)):
            found |= {name, *after}
    return found


def _product_before(name: str, graph: GraphIndex, passed: Collection[str]) -> set[str]:
    """The names of the nodes on the way from the nearest product to a tensor; empty without one.

    The way is followed through nodes that read one computed tensor. A residual sum ends it, because the
    rounding of one of its terms is not the only error in the tensor.

    Args:
        name: the tensor.
        graph: the graph.
        passed: operators that may be on the way.
    """
    found: set[str] = set()
    while (maker := graph.maker(name)) is not None:
        computed = {read for read in reads_of(maker) if not graph.is_constant(read)}
        found.add(maker.name)
        if maker.op_type in _PRODUCTS:
            return found
        away = passed is _BEFORE_DIVISION and _is_away_from_zero(maker, graph)
        if maker.op_type not in passed or len(computed) != 1 or away:
            return set()
        name = computed.pop()
    return set()


def _is_away_from_zero(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether a node adds a constant, or a lower limit, beside which one step of 8 bits is small."""
    limits = node.op_type in {"Add", "Clip", "Max", "Sum"}
    return limits and any(content.size and content.min() >= _AWAY for content in _constants(node, graph))


def _constants(node: onnx.NodeProto, graph: GraphIndex) -> list[Array]:
    return [graph.constant(name) for name in node.input if graph.is_constant(name)]


def _makers(node: onnx.NodeProto, graph: GraphIndex) -> Iterator[onnx.NodeProto]:
    for name in reads_of(node):
        if (maker := graph.maker(name)) is not None:
            yield maker
