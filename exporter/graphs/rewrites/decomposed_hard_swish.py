"""Recognize HardSwish that an exporter wrote as several operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.graphs.domains import is_standard
from exporter.graphs.rewrites.symbols import constant, producer, scalar

_OLDEST = 14
# Exporters round a sixth to float32.
_TOLERANCE = 1e-6


class DecomposedHardSwishPass(ir.passes.InPlacePass):
    """Replace x * clip(x + 3, 0, 6) / 6 by HardSwish, which may run in int8 (`hard_swish`).

    Paddle, Keras and PyTorch before opset 14 write HardSwish as several operators. Measured on six
    convolutions of 48 channels at 32 px, one thread, AVX2 without VNNI, interleaved: the int8 model takes
    0.84 x the time with the rewrite (`tests/perf/folding.py`).

    These forms are known, with operands in any order, and with a division by 6 or a product with 1 / 6 in
    any place:

    1. x * clip(x + 3, 0, 6) / 6, with the two limits as constants, and
    2. x * HardSigmoid(x) with alpha = 1 / 6 and beta = 1 / 2.

    HardSwish exists since opset 14; in older models nothing is rewritten.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite all matching nodes."""
        modified = False
        if (model.opset_imports.get("") or model.opset_imports.get("ai.onnx") or 0) < _OLDEST:
            return ir.passes.PassResult(model, modified)
        for node in list(model.graph):
            source = _activated(node)
            if source is None or node.graph is None:
                continue
            made = ir.node("HardSwish", inputs=[source], name=node.name)
            made.metadata_props.update(node.metadata_props)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [made], [node.outputs[0]], [made.outputs[0]]
            )
            modified = True
        return ir.passes.PassResult(model, modified)


def _activated(node: ir.Node) -> ir.Value | None:
    """The tensor x whose HardSwish a node computes, or None."""
    value = node.outputs[0] if node.outputs and is_standard(node) else None
    if node.op_type not in {"Mul", "Div"} or value is None:
        return None
    inner, factor = _without_factor(value)
    product = producer(inner, "Mul")
    if product is None:
        return None
    for source, gate in (product.inputs, reversed(product.inputs)):
        source_alone, first = _without_factor(source)
        curve, second = _without_factor(gate)
        found = _gate(curve, source_alone)
        if found is not None and abs(found * factor * first * second - 1) < _TOLERANCE:
            return source_alone
    return None


def _gate(value: ir.Value | None, source: ir.Value | None) -> float | None:
    """How many times HardSigmoid of the source a value is: 6 for clip(x + 3, 0, 6); None for others."""
    if source is None:
        return None
    sigmoid = producer(value, "HardSigmoid")
    if sigmoid is not None and sigmoid.inputs[0] is source:
        slope, offset = (sigmoid.attributes.get(name) for name in ("alpha", "beta"))
        given = (0.2 if slope is None else slope.as_float(), 0.5 if offset is None else offset.as_float())
        return 1.0 if np.allclose(given, (1 / 6, 0.5), atol=_TOLERANCE) else None
    clip = producer(value, "Clip")
    if clip is None or [scalar(limit) for limit in clip.inputs[1:]] != [0.0, 6.0]:
        return None
    shifted = producer(clip.inputs[0], "Add")
    if shifted is None:
        return None
    terms = {id(term): scalar(term) for term in shifted.inputs}
    return 6.0 if terms.get(id(source), 0.0) is None and 3.0 in terms.values() else None


def _without_factor(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before its product with one constant number, and that number (1 if there is none)."""
    division = producer(value, "Div")
    if division is not None:
        number = _number(division.inputs[1])
        return (division.inputs[0], 1 / number) if number else (value, 1.0)
    product = producer(value, "Mul")
    if product is not None:
        for source, other in (product.inputs, reversed(product.inputs)):
            number = _number(other)
            if number is not None and constant(source) is None:
                return source, number
    return value, 1.0


def _number(value: ir.Value | None) -> float | None:
    """The number in a constant without axes or with one; None for others."""
    content = constant(value)
    return None if content is None or content.ndim > 1 else scalar(value)
