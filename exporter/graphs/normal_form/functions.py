"""Replace calls of a model's own functions by the nodes of the functions."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import inliner

from bench.core.errors import ModelError, one_line
from exporter.graphs.onnx_files import is_large


def inline_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model without calls of its own functions; nested calls are inlined too.

    A function may import another opset than the model. Its nodes are converted to the model's opset.
    A model above 2 GB is returned unchanged, because ONNX's inliner reads one protobuf message;
    `exporter.graphs.simplify` inlines its functions.

    Args:
        model: the model.
        path: the file of the model, named in the error.

    Raises:
        ModelError: ONNX cannot inline the functions.
    """
    if not model.functions or is_large(model):
        return model
    try:
        inlined = inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the inliner documents no exception types
        raise ModelError(
            path,
            f"ONNX cannot inline its functions ({one_line(str(error), 200)})",
            "export the model without functions",
        ) from error
    del inlined.functions[:]
    return inlined
