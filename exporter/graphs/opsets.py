"""Convert models to an opset and an IR version that int8 requires and old ONNX Runtimes support.

int8 with a scale for each channel requires opset 13 (DequantizeLinear). IR version 3 requires each constant
to be an input too. Only newer ONNX Runtimes support IR versions above 10, and opsets up to 22 do not need
them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

from bench.core.errors import ModelError, one_line
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex

# Rewrites and quantization write attributes that older opsets lack: `DequantizeLinear.axis` is new in 13,
# `Reshape.allowzero` in 14.
_OLDEST = 14
_RAISED = 17
_IR_VERSIONS = 8, 10
_LAST_OPSET_OF_IR_10 = 22


def raise_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model, or a copy in a newer opset if its opset is too old for int8.

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
        return model
    try:
        return version_converter.convert_version(model, _RAISED)
    except Exception as error:  # the converter documents no exception types
        raise ModelError(
            path,
            f"opset {opset} is too old for int8, and ONNX cannot convert it ({one_line(str(error), 200)})",
            f"export the model with opset {_RAISED} or later",
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
