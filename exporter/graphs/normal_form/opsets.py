"""Convert models to an opset and an IR version that int8 requires and old ONNX Runtimes support.

int8 with a scale for each channel requires opset 13 (DequantizeLinear). IR version 3 requires each constant
to be an input too. Only newer ONNX Runtimes support IR versions above 10, and opsets up to 22 do not need
them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper, version_converter

from bench.core.errors import ModelError, one_line
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex, bodies_of
from exporter.graphs.normal_form.constants import lift_constants

# Rewrites and quantization write attributes that older opsets lack: `DequantizeLinear.axis` is new in 13,
# `Reshape.allowzero` in 14.
_OLDEST = 14
# A rewrite writes LayerNormalization, which this opset brought.
_RAISED = 17
# Between these two, operators only got more types and optional attributes, with this exception.
_CHANGED = frozenset({"RoiAlign"})
_IR_VERSIONS = 8, 10
_LAST_OPSET_OF_IR_10 = 22
# From opset 11 on, Resize states how it maps positions.
_LAST_WITHOUT_MAPPING = 10


def raise_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model, or a copy in a newer opset if its opset is too old for int8.

    Opsets 14 to 16 are stated as 17, whose operators are the same, unless the model has an exception.

    Args:
        model: a model that ONNX Runtime can run. Its IR version is changed in place, and constants are
            removed from its inputs.
        path: the file of the model, named in the error.

    Raises:
        ModelError: ONNX's converter cannot convert the model.
    """
    opset = next((entry.version for entry in model.opset_import if is_standard(entry)), None)
    _settle_ir_version(model, opset or 1)
    if opset is None or opset >= _OLDEST:
        if opset in range(_OLDEST, _RAISED) and not _has_changed_operators(model.graph):
            _state_opset(model, _RAISED)
        return model
    try:
        if opset <= _LAST_WITHOUT_MAPPING:
            model = version_converter.convert_version(model, _LAST_WITHOUT_MAPPING)
            lift_constants(model.graph)  # the scales of Upsample were an attribute
            _state_mapping(model.graph)
        return version_converter.convert_version(model, _RAISED)
    except Exception as error:  # the converter documents no exception types
        raise ModelError(
            path,
            f"opset {opset} is too old for int8, and ONNX cannot convert it ({one_line(str(error), 200)})",
            f"export the model with opset {_RAISED} or later",
        ) from error


def _has_changed_operators(graph: onnx.GraphProto) -> bool:
    bodies = (body for node in graph.node for body in bodies_of(node))
    changed = any(node.op_type in _CHANGED and is_standard(node) for node in graph.node)
    return changed or any(_has_changed_operators(body) for body in bodies)


def _state_opset(model: onnx.ModelProto, opset: int) -> None:
    for entry in model.opset_import:
        if is_standard(entry):
            entry.version = opset


def _state_mapping(graph: onnx.GraphProto) -> None:
    """State how each Resize maps positions, which opset 10 cannot express, in place and in bodies too.

    ONNX Runtime (1.32, `core/providers/cpu/tensor/upsamplebase.h`) maps `x / scale` in Upsample and Resize
    of these opsets, and takes the nearest value below, or above if the tensor shrinks. ONNX's converter
    keeps attributes, but adds none. Without them, the default of opset 11 is `half_pixel`, another
    function: the outputs of a network with a linear Upsample had an SQNR of 10 dB.
    """
    index = GraphIndex.of(graph)
    for node in graph.node:
        if node.op_type == "Resize" and is_standard(node):
            scales = index.constant(node.input[1]) if index.is_constant(node.input[1]) else None
            shrinks = scales is not None and scales.max() <= 1
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))
        for body in bodies_of(node):
            _state_mapping(body)


def _settle_ir_version(model: onnx.ModelProto, opset: int) -> None:
    lowest, highest = _IR_VERSIONS
    model.ir_version = max(model.ir_version, lowest)
    if opset <= _LAST_OPSET_OF_IR_10:
        model.ir_version = min(model.ir_version, highest)
    fed = GraphIndex.of(model.graph).inputs
    inputs = [value for value in model.graph.input if value.name in fed]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
