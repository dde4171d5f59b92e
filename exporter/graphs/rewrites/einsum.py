"""Replace Einsum with constant weights by MatMul or Conv, which have int8 kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.rewrites.products import add_initializer
from exporter.graphs.rewrites.symbols import constant, rank

_CHANNEL_AXIS = 1


class EinsumPass(ir.passes.InPlacePass):
    """Replace `Einsum(x, w)` with constant w by a product that the quantizer knows.

    An Einsum is rewritten if it has two operands and one of these forms, with the operands in any order,
    and with `...` for leading axes:

    1. Its sums run over the last axes of x, and the axes of w follow the others: `bsd,dh->bsh`,
       `bsd,hd->bsh`, `bsd,dhk->bshk` and `bshk,hkd->bsd`. It becomes a MatMul, with a Reshape before it if
       it sums over several axes, and one after it if w adds several.
    2. Its sum runs over axis 1 of x, and an axis of w takes its place: `bchw,oc->bohw`. It becomes a Conv.

    ONNX Runtime has no int8 kernel for Einsum. Measured on three pairs of layers of 256 x 1024 and back,
    for 32 rows, with Relu, one thread, AVX2 without VNNI, interleaved (`tests/perf/folding.py`): with the
    rewrite the int8 model takes 0.36 x the time of float at 39 dB; without it, nothing runs in int8.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite all such products."""
        modified = False
        for node in list(model.graph):
            form = _form_of(node)
            made = None if form is None else (_as_conv(form, node) or _as_matmul(form, node))
            if made is None:
                continue
            made[-1].name = node.name
            made[-1].metadata_props.update(node.metadata_props)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], made, [node.outputs[0]], [made[-1].outputs[0]]
            )
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Form:
    """A sum of products of activations and weights, with a letter for each axis.

    Attributes:
        source: the activations.
        weight: the weights.
        read: axes of the activations.
        own: axes of the weights.
        result: axes of the result.
    """

    source: ir.Value
    weight: Array
    read: str
    own: str
    result: str

    @property
    def summed(self) -> str:
        """Axes over which the sums run, in the order of the activations."""
        return "".join(letter for letter in self.read if letter in self.own)

    @property
    def added(self) -> str:
        """Axes that the weights add, in the order of the result."""
        return "".join(letter for letter in self.result if letter in self.own)

    @property
    def matrix(self) -> Array:
        """The weights as a matrix [summed, added]."""
        order = [self.own.index(letter) for letter in self.summed + self.added]
        rows = int(np.prod([self.size(letter) for letter in self.summed]))
        return np.ascontiguousarray(self.weight.transpose(order).reshape(rows, -1))

    def size(self, letter: str) -> int:
        """The size of an axis of the weights."""
        return int(self.weight.shape[self.own.index(letter)])


def _form_of(node: ir.Node) -> _Form | None:
    equation = node.attributes.get("equation")
    if node.op_type != "Einsum" or not is_standard(node) or equation is None or len(node.inputs) != 2:
        return None
    left, arrow, result = equation.as_string().replace(" ", "").partition("->")
    parts = left.split(",")
    places = [place for place in (0, 1) if constant(node.inputs[place]) is not None]
    if not arrow or len(parts) != 2 or len(places) != 1:
        return None
    place = places[0]
    source, weight = node.inputs[1 - place], constant(node.inputs[place])
    read, own, axes = parts[1 - place], parts[place], rank(source)
    if source is None or weight is None or weight.dtype != np.float32 or axes is None:
        return None
    if "." in read:
        missing = axes - len(read.replace("...", ""))
        leading = "".join(chr(ord("0") + i) for i in range(missing))
        read, result = read.replace("...", leading), result.replace("...", leading)
    form = _Form(source, weight, read, own, result)
    letters = (read, own, result)
    distinct = all(len(set(text)) == len(text) and "." not in text for text in letters)
    fits = len(read) == axes and len(own) == weight.ndim and weight.size > 0
    # Each axis of the weights is either summed or added, and each other axis of the activations is kept.
    complete = set(form.summed).isdisjoint(form.added) and set(own) == {*form.summed, *form.added}
    kept = set(read) - set(form.summed) == set(result) - set(form.added)
    return form if distinct and fits and complete and kept and form.summed and form.added else None


def _as_matmul(form: _Form, node: ir.Node) -> list[ir.Node] | None:
    """Nodes that compute a form over the last axes."""
    graph, label = node.graph, node.name or str(node.outputs[0].name)
    kept = form.read[: len(form.read) - len(form.summed)]
    if (
        form.read != kept + form.summed
        or form.result != kept + form.added
        or not isinstance(graph, ir.Graph)
    ):
        return None
    made, source = [], form.source
    if len(form.summed) > 1:
        shape = np.array([0] * len(kept) + [len(form.matrix)], np.int64)
        made.append(ir.node("Reshape", inputs=[source, add_initializer(graph, f"{label}.merged", shape)]))
        source = made[-1].outputs[0]
    weight = add_initializer(graph, f"{label}.weight", form.matrix)
    made.append(ir.node("MatMul", inputs=[source, weight]))
    product = made[-1].outputs[0]
    product.type = form.source.type
    if len(form.added) > 1:
        shape = np.array([0] * len(kept) + [form.size(letter) for letter in form.added], np.int64)
        made.append(ir.node("Reshape", inputs=[product, add_initializer(graph, f"{label}.split", shape)]))
    return made


def _as_conv(form: _Form, node: ir.Node) -> list[ir.Node] | None:
    """A Conv that computes a form over axis 1."""
    graph, label = node.graph, node.name or str(node.outputs[0].name)
    one = len(form.summed) == len(form.added) == 1 and len(form.read) > _CHANNEL_AXIS + 1
    if not one or form.read.index(form.summed) != _CHANNEL_AXIS or not isinstance(graph, ir.Graph):
        return None
    if form.result != form.read.replace(form.summed, form.added):
        return None
    taps = form.matrix.T.reshape(*form.matrix.T.shape, *[1] * (len(form.read) - 2))
    weight = add_initializer(graph, f"{label}.weight", np.ascontiguousarray(taps))
    return [ir.node("Conv", inputs=[form.source, weight])]
