"""Raising the opset of old models: int8 with a scale a channel came with opset 13 (DequantizeLinear)."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter

from bench.errors import ModelError, one_line

# Below, rewriting and quantizing write what the opset does not know: `DequantizeLinear.axis` is of 13,
# `Reshape.allowzero` of 14.
_OLDEST = 14
_RAISED = 17


def raise_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model, or a copy in a newer opset where its own is too old for int8.

    Args:
        model: a model that ONNX Runtime can run.
        path: its file, for the error.

    Raises:
        ModelError: ONNX's converter cannot raise it.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), None)
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
