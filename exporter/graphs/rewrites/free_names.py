"""Keep free the names that quantizers and edgeproof give to the tensors and nodes they add."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from exporter.graphs.names import unused_name

# The quantizer of ONNX Runtime 1.32 adds these to the name of a tensor, and does not check whether a graph
# has the result already (`quant_utils.py`, `base_quantizer.py`).
_ADDED = (
    "_quantized", "_scale", "_zero_point",
    "_QuantizeLinear", "_QuantizeLinear_Input", "_QuantizeLinear_Output",
    "_DequantizeLinear", "_DequantizeLinear_Output",
)  # fmt: skip
# The 4-bit quantizer and edgeproof add these to the name of a tensor or of a node.
_ADDED_TOO = (
    "_Q4", "_scales", "_zero_points",
    ".product", ".weights", ".c", ".matrix",  # `plain_gemm`, `int4`
    ".int8", ".rows", ".scales", ".cast",  # `embedding_tables`
    ".source", ".float", ".float.scale", ".float.zero_point",  # `float_operators`, `placement`
    ".zero", ".lower", ".upper",  # `around_products`
    ".shifted", ".gate", ".three", ".six",  # `hard_swish`
    ".blocks", ".blocks.weight", ".blocks.bias",  # `first_convolution`, `transposed_convolution`
)  # fmt: skip
# A bias that several nodes read is copied to the name with the next number that no constant has.
_NUMBERED = re.compile(r"(.+?)\d+")


class FreeNamesPass(ir.passes.InPlacePass):
    """Rename what has a name that the quantizer would give to something else, for example `w_scale`.

    Inputs and outputs of the graph keep their names. If one of them is in the way, the tensor that the
    quantizer derives the name from is renamed; if this is an input or output too, it gets an Identity.

    Without this pass, such a graph fails in the quantizer or in ONNX's checker; if `b` is a bias of two
    nodes and `b0` is the result of another node, too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename all values and nodes that are in the way."""
        graph = model.graph
        fixed = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
        values = _values(graph)
        bases = dict(values)
        nodes = {str(node.name): node for node in graph if node.name}
        taken, modified = set(values), False
        for name, value in values.items():
            base = _base(name, value, bases, nodes)
            if base is None:
                continue
            modified = True
            if name in fixed and base not in bases:
                nodes.pop(base).name = unused_name(base, {*taken, *nodes})
                continue
            moved = name if name not in fixed else base
            new = unused_name(moved, taken)
            taken.add(new)
            if moved in fixed:
                _enclose(graph, bases.pop(moved), new)
            else:
                bases.pop(moved).name = new
        return ir.passes.PassResult(model, _rename_nodes(graph, taken) or modified)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """All named values, by name; of equal names in bodies, one."""
    found = [*graph.inputs, *graph.initializers.values()]
    found += [output for node in graph.all_nodes() for output in node.outputs]
    return {str(value.name): value for value in found if value.name}


def _base(
    name: str, value: ir.Value, bases: Mapping[str, ir.Value], nodes: Mapping[str, ir.Node]
) -> str | None:
    """The name of another value or node from which `name` may be derived; None if there is none."""
    for base in _shorter(name):
        if base in bases or base in nodes:
            return base
    numbered = _NUMBERED.fullmatch(name)
    base = numbered[1] if numbered else ""
    copied = base in bases and bases[base].is_initializer() and not value.is_initializer()
    return base if copied else None


def _shorter(name: str) -> Iterator[str]:
    """The name without one added part, without two, and so on."""
    for added in (*_ADDED, *_ADDED_TOO):
        if (base := name.removesuffix(added)) != name:
            yield base
            yield from _shorter(base)


def needed_names(tensors: Iterable[str]) -> set[str]:
    """The names that the quantizer may give to nodes and tensors that it adds for these tensors."""
    return {f"{tensor}{added}" for tensor in tensors for added in _ADDED}


def _rename_nodes(graph: ir.Graph, tensors: Iterable[str]) -> bool:
    names = {str(node.name) for node in graph.all_nodes()}
    derived = needed_names(tensors)
    clashing = [node for node in graph.all_nodes() if node.name in derived]
    for node in clashing:
        node.name = unused_name(str(node.name), names)
        names.add(node.name)
    return bool(clashing)


def _enclose(graph: ir.Graph, value: ir.Value, inner: str) -> None:
    """Give an input or output of the graph an Identity, so that the nodes use another name."""
    if value.is_graph_input():
        copy = ir.Node("", "Identity", [value], name=inner)
        copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = inner, value.type, value.shape
        ir.convenience.replace_all_uses_with(value, copy.outputs[0])
        copy.replace_input_with(0, value)
        graph.insert_before(graph[0], copy)
        return
    name, value.name = value.name, inner
    copy = ir.Node("", "Identity", [value], name=inner)
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, value.type, value.shape
    graph.append(copy)
    for position, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[position] = copy.outputs[0]
