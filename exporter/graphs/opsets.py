"""Bringing the opset and the IR version of models to what int8 needs and old runtimes know.

int8 with a scale for each channel came with opset 13 (DequantizeLinear). IR version 3 wants each constant
among the inputs. Versions above 10 are known to newer runtimes alone; opsets up to 22 need none of them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

from bench.core.errors import ModelError, one_line
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex

# Below, rewriting and quantizing write what the opset does not know: `DequantizeLinear.axis` is of 13,
# `Reshape.allowzero` of 14.
_OLDEST = 14
_RAISED = 17
_IR_VERSIONS = 8, 10
_LAST_OPSET_OF_IR_10 = 22


def raise_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model, or a copy in a newer opset where its own is too old for int8.

    Args:
        model: a model that ONNX Runtime can run. Its IR version is changed in place, and constants are
            taken out of its inputs.
        path: its file, for the error.

    Raises:
        ModelError: ONNX's converter cannot raise it.
    """
    opset = next((entry.version for entry in model.opset_import if is_standard(entry)), None)
    _settle_ir_version(model, opset or 1)
    if opset is None or opset >= _OLDEST:
        return model
    try:
        return version_converter.convert_version(model, _RAISED)
    except Exception as error:  # the converter raises whatever its many parts do
        raise ModelError(
            path,
            f"opset {opset} is too old for int8, and ONNX cannot raise it ({one_line(str(error), 200)})",
            f"export it with opset {_RAISED} or later",
        ) from error


def _settle_ir_version(model: onnx.ModelProto, opset: int) -> None:
    lowest, highest = _IR_VERSIONS
    model.ir_version = max(model.ir_version, lowest)
    if opset <= _LAST_OPSET_OF_IR_10:
        model.ir_version = min(model.ir_version, highest)
    fed = GraphIndex.of(model.graph).inputs
    inputs = [value for value in model.graph.input if value.name in fed]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
