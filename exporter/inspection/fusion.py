"""Find why operators of an optimized graph stay in float, and which int8 conversions are unnecessary.

ONNX Runtime fuses "dequantize, operate, quantize" into one int8 kernel only if types, neighbours and
readers fit (onnxruntime/core/optimizer/qdq_transformer). Other operators run in float, and the conversions
around them cost time without benefit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx

from exporter.graphs.index import GraphIndex
from exporter.graphs.slow_kernels import slow_in_int8
from exporter.results.audit import NeedlessPair

# Operators with int8 kernels, or that only move values of any type; measured with ONNX Runtime 1.32 on x86.
_INT8_FORMS = {
    "Add", "ArgMax", "AveragePool", "Concat", "Conv", "Expand", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "ReduceMax", "ReduceMin", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Multiplying operators, and ONNX Runtime's fused forms of them, that have static int8 kernels.
_QUANTIZABLE = {
    "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "NhwcConv", "NhwcFusedConv",
    "TransposeMatMul",
}  # fmt: skip
_PRODUCTS = {"MatMul", "FusedMatMul", "TransposeMatMul"}
# Fusions name a product after its MatMul, for example `fc/MatMulAddFusion/`.
_FUSION = re.compile(r"/\w+Fusion/?$")
_SIGNED_FUSES_ONLY_ALONE = (
    "ONNX Runtime converts signed activations (S8S8) to unsigned ones (U8S8), which fuse on x86, "
    "only if a tensor has one reader; quantize for x86-vnni or x86-avx2"
)


def float_reason(node: onnx.NodeProto, graph: GraphIndex, *, x86: bool) -> str:
    """The main reason why a multiplying operator runs in float.

    Args:
        node: the operator.
        graph: the graph of the operator, optimized by ONNX Runtime.
        x86: whether the graph was optimized for an x86 CPU.
    """
    return next(_reasons(node, graph, x86=x86))


def _reasons(node: onnx.NodeProto, graph: GraphIndex, *, x86: bool) -> Iterator[str]:
    """The reasons why an operator runs in float, the simplest first. There is at least one."""
    if node.op_type not in _QUANTIZABLE:
        yield f"ONNX Runtime has no static int8 kernel for {node.op_type}"
    if (form := _unquantized_form(node, graph)) is not None:
        yield form
    before = graph.maker(node.input[0], "DequantizeLinear")
    readers = graph.readers_of(node)
    rounded = [n for n in readers if n.op_type == "QuantizeLinear"]
    in_float = [_label(n) for n in readers if n.op_type != "QuantizeLinear"]
    if _is_given(node, graph):
        in_float.append("the model's output")
    if len(node.input) < 2 or graph.maker(node.input[1], "DequantizeLinear") is None:
        weights = graph.shape(node.input[1]) if len(node.input) > 1 else None
        if weights is not None and (slow := slow_in_int8(node, [size or 0 for size in weights])):
            yield slow
        mixed = any(n.op_type == "DequantizeLinear" for n in graph.nodes)
        hint = ": it is excluded, or the quantizer does not support it"
        yield f"it was not quantized{hint if mixed else ''}"
    if before is None:
        yield "its input is not quantized"
    if len(node.input) > 2 and node.input[2] and graph.maker(node.input[2], "DequantizeLinear") is None:
        yield "its bias is not quantized"
    if not rounded:
        yield f"its output is not quantized: it feeds {_some(in_float)}"
    elif in_float:
        yield f"its output is quantized, but it also feeds {_some(in_float)} in float"
    if x86 and before is not None and rounded:
        sides = {"input": (before, before.input[0]), "output": (rounded[0], rounded[0].output[0])}
        signed = {side: tensor for side, (n, tensor) in sides.items() if _is_signed(n, graph)}
        readers_of = {side: len(_last_readers(tensor, graph)) for side, tensor in signed.items()}
        shared = [f"its {side} is signed and has {n} readers" for side, n in readers_of.items() if n > 1]
        if signed:
            what = " and ".join(shared) or "its activations are signed"
            yield f"{what}: {_SIGNED_FUSES_ONLY_ALONE}"
    yield "its types or neighbours prevent ONNX Runtime from fusing it (U8S8 fuses on x86)"


def _unquantized_form(node: onnx.NodeProto, graph: GraphIndex) -> str | None:
    """The reason that lies in the form of a product: where its constant is, and of which rank."""
    if len(node.input) < 2 or node.op_type not in _QUANTIZABLE:
        return None
    left, right = (_is_weight(name, graph) for name in node.input[:2])
    if node.op_type not in _PRODUCTS:
        return None if right else "its weights are computed, and only constant weights are quantized"
    if left and not right:
        return "its constant is on the left, and only constants on the right are quantized"
    if not right:
        return "it multiplies two activations, which are not quantized: 8 bits cost attention much accuracy"
    rank = len(graph.shape(node.input[1]) or (0, 0))
    return None if rank == 2 else f"its weights have rank {rank}, and only matrices are quantized"


def _is_weight(name: str, graph: GraphIndex) -> bool:
    """Whether a tensor is a constant or a dequantized constant."""
    before = graph.maker(name, "DequantizeLinear")
    return graph.is_constant(name if before is None else before.input[0])


def needless_pairs(graph: GraphIndex) -> tuple[NeedlessPair, ...]:
    """All conversions of an optimized graph that no kernel needs, in graph order.

    1. A tensor is quantized, and only DequantizeLinear reads it: it is only rounded.
    2. A tensor is dequantized, and only QuantizeLinear reads it: only its scale or type changes.
    3. A tensor is dequantized for float operators whose results are quantized again: a float island.
    """
    rounding = {id(n) for n in graph.nodes if _only_rounds(n, graph)}
    found = [(index, p) for index, n in enumerate(graph.nodes) for p in _single(n, graph, rounding)]
    return tuple(pair for _, pair in sorted([*found, *_islands(graph, rounding)], key=lambda item: item[0]))


def _single(node: onnx.NodeProto, graph: GraphIndex, rounding: set[int]) -> Iterator[NeedlessPair]:
    """The conversions of kinds 1 and 2 at a node."""
    readers = graph.readers_of(node)
    if id(node) in rounding:
        after = [_label(n) for reader in readers for n in graph.readers_of(reader)]
        yield NeedlessPair(
            name=node.input[0],
            between=(_maker(node.input[0], graph), _some(after or ["the model's output"])),
            reason="the tensor is only rounded: no int8 operator reads it",
        )
    elif node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0]):
        only = readers and all(n.op_type == "QuantizeLinear" for n in readers)
        if only and not _is_given(node, graph):
            after = [_label(n) for reader in readers for n in graph.readers_of(reader)]
            yield NeedlessPair(
                name=node.input[0],
                between=(_maker(node.input[0], graph), _some(after or ["the model's output"])),
                reason="only the tensor's scale or type changes",
            )


def _islands(graph: GraphIndex, rounding: set[int]) -> list[tuple[int, NeedlessPair]]:
    """The conversions of kind 3: connected float regions between DequantizeLinear and QuantizeLinear."""
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    regions: list[tuple[set[int], list[onnx.NodeProto]]] = []
    for entry in graph.nodes:
        if entry.op_type != "DequantizeLinear" or graph.is_constant(entry.input[0]):
            continue
        if id(graph.maker(entry.input[0])) in rounding:
            continue
        region, entries = _reached(entry, graph, rounding), [entry]
        apart = []
        for other, before in regions:
            if other.isdisjoint(region):
                apart.append((other, before))
            else:
                region, entries = region | other, before + entries
        regions = [*apart, (region, entries)]
    found = []
    for region, entries in regions:
        inside = [graph.nodes[i] for i in sorted(order[key] for key in region)]
        exits = [n for n in inside if n.op_type == "QuantizeLinear" and id(n) not in rounding]
        operators = [n for n in inside if n.op_type not in {"QuantizeLinear", "DequantizeLinear"}]
        if exits and operators:
            found.append((order[id(entries[0])], _island(graph, entries, operators, exits)))
    return found


def _island(
    graph: GraphIndex,
    entries: Sequence[onnx.NodeProto],
    operators: Sequence[onnx.NodeProto],
    exits: Sequence[onnx.NodeProto],
) -> NeedlessPair:
    after = [_label(n) for node in exits for n in graph.readers_of(node)]
    lacking = [op for op in dict.fromkeys(n.op_type for n in operators) if op not in _INT8_FORMS]
    return NeedlessPair(
        name=_some([_label(n) for n in operators]),
        between=(
            _some([_maker(entry.input[0], graph) for entry in entries]),
            _some(after or ["the model's output"]),
        ),
        reason=(
            f"{_some(lacking)} runs in float"
            if lacking
            else "its types or neighbours prevent ONNX Runtime from fusing it"
        ),
    )


def _reached(entry: onnx.NodeProto, graph: GraphIndex, rounding: set[int]) -> set[int]:
    """The nodes that a dequantized tensor reaches in float, and the QuantizeLinear nodes that end this."""
    found: set[int] = set()
    todo = list(graph.readers_of(entry))
    while todo:
        node = todo.pop()
        if id(node) in found:
            continue
        found.add(id(node))
        if node.op_type != "QuantizeLinear" or id(node) in rounding:
            todo.extend(graph.readers_of(node))
    return found


def _only_rounds(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    readers = graph.readers_of(node)
    return (
        node.op_type == "QuantizeLinear"
        and bool(readers)
        and all(n.op_type == "DequantizeLinear" for n in readers)
        and not _is_given(node, graph)
    )


def _last_readers(tensor: str, graph: GraphIndex) -> list[onnx.NodeProto]:
    """The readers of a quantized tensor and of its dequantized copies."""
    found: list[onnx.NodeProto] = []
    for node in graph.readers(tensor):
        found.extend(graph.readers_of(node) if node.op_type == "DequantizeLinear" else [node])
    return found


def _is_signed(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    return len(node.input) > 2 and graph.element_type(node.input[2]) == onnx.TensorProto.INT8


def _is_given(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    """Whether a result of a node is an output of the model."""
    return any(name in graph.outputs for name in node.output)


def _maker(tensor: str, graph: GraphIndex) -> str:
    """The label of the node that computes a tensor, skipping QuantizeLinear, or of the model's input."""
    node = graph.maker(tensor)
    if node is not None and node.op_type == "QuantizeLinear":
        return _maker(node.input[0], graph)
    return f"input {tensor}" if node is None else _label(node)


def _label(node: onnx.NodeProto) -> str:
    return plain_name(node) or node.op_type


def _some(words: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(words))
    return ", ".join(distinct[:3]) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


def plain_name(node: onnx.NodeProto) -> str:
    """The node's original name, without the suffixes of ONNX Runtime's layout transformer and fusions."""
    return _FUSION.sub("", node.name.partition("_token_")[0])
