"""Find decomposed activations and norms that ONNX Runtime fuses into one float operator.

An int8 node among them breaks the fusion: a GELU after a product would run as five float operators and two
conversions. So none of these nodes is quantized.

Measured on three pairs of layers, 256 x 1024 and back, for 32 rows, one thread, AVX2 without VNNI,
interleaved (`tests/perf/folding.py`): with GELU, the int8 model takes 0.89 x the time and has 36.6 dB
instead of 35.3 dB. With SiLU, it takes 1.04 x the time at 37.7 dB instead of 36.3 dB. After convolutions,
SiLU in float takes 1.07 x the time at 38.4 dB instead of 37.6 dB, so it runs in int8 there.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Neg"})
_HEAD_STEPS = 8
_HALF = 0.5


def float_fusions(model: onnx.ModelProto) -> frozenset[str]:
    """The names of the nodes of decomposed activations and norms.

    1. GELU, exact (Erf) or approximated (Tanh): `0.5 * x * (1 + f(g(x)))`, with the factors in any order.
    2. LayerNormalization and RMSNorm: `d / sqrt(mean(d * d) + epsilon) * gain + bias`, with d the tensor or
       its difference from its mean, and with `Div(d, root)` or `d * Reciprocal(root)`.
    3. SiLU, `x * Sigmoid(x)` or `x * Sigmoid(factor * x)`, if x is the result of a MatMul or Gemm.

    Args:
        model: a float model with named nodes.
    """
    graph = GraphIndex.of(model.graph)
    found: set[str] = set()
    for node in graph.nodes:
        if is_standard(node) and node.op_type in {"Erf", "Tanh"}:
            found |= {part.name for part in _gelu(node, graph)}
        elif is_standard(node) and node.op_type == "Sigmoid":
            found |= {part.name for part in _silu(node, graph)}
        elif is_standard(node) and node.op_type == "Sqrt":
            found |= {part.name for part in _norm(node, graph)}
    return frozenset(found)


def _gelu(curve: onnx.NodeProto, graph: GraphIndex) -> list[onnx.NodeProto]:
    """The nodes of a GELU around its Erf or Tanh; empty if it is something else."""
    shifted = _only_reader(curve.output[0], graph, "Add")
    if shifted is None or not _has_constant(shifted, graph):
        return []
    parts, last, source, halved = [curve, shifted], shifted, "", False
    while not (source and halved):
        product = _only_reader(last.output[0], graph, "Mul")
        if product is None:
            return []
        parts.append(product)
        other = next((name for name in product.input if name != last.output[0]), "")
        half = graph.maker(other, "Mul")
        if _is_half(other, graph):
            halved = True
        elif source:
            return []
        elif half is not None and any(_is_half(name, graph) for name in half.input):
            parts.append(half)
            source, halved = next(name for name in half.input if not _is_half(name, graph)), True
        else:
            source = other
        last = product
    head = _between(source, curve.input[0], graph)
    return [] if head is None else [*parts, *head]


def _silu(gate: onnx.NodeProto, graph: GraphIndex) -> list[onnx.NodeProto]:
    """The nodes of a SiLU of a matrix product around its Sigmoid; empty if it is something else."""
    product = _only_reader(gate.output[0], graph, "Mul")
    source = "" if product is None else next((n for n in product.input if n != gate.output[0]), "")
    factor = None if source == gate.input[0] else graph.maker(gate.input[0], "Mul")
    if product is None or not _is_matrix_product(source, graph):
        return []
    if source == gate.input[0]:
        return [gate, product]
    scaled = factor is not None and source in factor.input and _has_constant(factor, graph)
    return [factor, gate, product] if factor is not None and scaled else []


def _is_matrix_product(name: str, graph: GraphIndex) -> bool:
    """Whether a tensor is the result of a Gemm or MatMul, with or without an Add of a bias."""
    node = graph.maker(name)
    if node is not None and node.op_type == "Add" and _has_constant(node, graph):
        node = next((maker for read in node.input if (maker := graph.maker(read)) is not None), None)
    return node is not None and node.op_type in {"Gemm", "MatMul"}


def _is_half(name: str, graph: GraphIndex) -> bool:
    return (
        graph.shape(name) in {(), (1,)} and graph.is_constant(name) and graph.constant(name).item() == _HALF
    )


def _between(source: str, result: str, graph: GraphIndex) -> list[onnx.NodeProto] | None:
    """The arithmetic that computes a tensor from one other tensor and constants; None if there is other."""
    found: dict[str, onnx.NodeProto] = {}
    open_names = [result]
    while open_names and len(found) <= _HEAD_STEPS:
        name = open_names.pop()
        if name == source or graph.is_constant(name) or name in found:
            continue
        node = graph.maker(name)
        if node is None or node.op_type not in _ARITHMETIC:
            return None
        found[name] = node
        open_names.extend(node.input)
    return None if open_names else list(found.values())


def _norm(root: onnx.NodeProto, graph: GraphIndex) -> list[onnx.NodeProto]:
    """The nodes of a norm around its Sqrt; empty if it is something else."""
    shifted = graph.maker(root.input[0], "Add")
    means = [] if shifted is None else [graph.maker(name, "ReduceMean") for name in shifted.input]
    mean = next((node for node in means if node is not None), None)
    square = None if mean is None else graph.maker(mean.input[0])
    if shifted is None or mean is None or square is None or square.op_type not in {"Pow", "Mul"}:
        return []
    parts, source = [root, shifted, mean, square], square.input[0]
    difference = graph.maker(source, "Sub")
    if difference is not None:
        centre = graph.maker(difference.input[1], "ReduceMean")
        parts += [difference] if centre is None else [difference, centre]
    return [*parts, *_scaling(root, source, graph)]


def _scaling(root: onnx.NodeProto, source: str, graph: GraphIndex) -> Iterator[onnx.NodeProto]:
    """The nodes that divide by the root, and multiply by the gain and add the bias."""
    inverse = _only_reader(root.output[0], graph, "Reciprocal")
    one = _only_reader(root.output[0], graph, "Div")
    if one is not None and graph.is_constant(one.input[0]):
        inverse = one
    divisor = root if inverse is None else inverse
    if inverse is not None:
        yield inverse
    last = _only_reader(divisor.output[0], graph, "Mul" if inverse is not None else "Div")
    if last is None or source not in last.input:
        return
    yield last
    for kind in ("Mul", "Add"):
        following = _only_reader(last.output[0], graph, kind)
        if following is not None and _has_constant(following, graph):
            yield following
            last = following


def _only_reader(name: str, graph: GraphIndex, op_type: str) -> onnx.NodeProto | None:
    readers = graph.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _has_constant(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    return any(graph.is_constant(name) for name in node.input)
