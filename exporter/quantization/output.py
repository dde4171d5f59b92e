"""Write a quantized model with its metadata, after a last check by the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from bench.inputs.host import TARGET_KEY
from exporter.graphs.float_reasons import reasons_metadata
from exporter.graphs.kernels import state_oldest_runtime
from exporter.graphs.onnx_files import carry_metadata, write_checked
from exporter.graphs.targets import Target

# Called with the finished temporary file before it is moved to its destination. If it raises, nothing is
# written to the destination.
Accept = Callable[[Path], None]


def accept_all(_written: Path) -> None:
    """Accept every file."""


def write_quantized(
    quantized: onnx.ModelProto,
    source: onnx.ModelProto,
    destination: Path,
    target: Target,
    *,
    accept: Accept,
    reasons: Mapping[str, str],
) -> str:
    """Write a quantized model.

    Its metadata states the target, the oldest ONNX Runtime that runs it, and why nodes stay in float.

    Args:
        quantized: the model; its metadata is changed in place.
        source: the float model, whose provenance is copied.
        destination: the file to write.
        target: the kind of CPU that the model is quantized for.
        accept: called with the finished file before it is moved to `destination`; may raise to reject it.
        reasons: nodes that stay in float by choice -> reason; see `exporter.graphs.float_reasons`.

    Returns:
        The version of the oldest ONNX Runtime that runs the model.

    Raises:
        ExportError: ONNX's checker rejects the model.
    """
    carry_metadata(source, quantized, {TARGET_KEY: target.name} | reasons_metadata(reasons))
    needed = state_oldest_runtime(quantized)
    write_checked(quantized, destination, accept)
    return str(needed)
