"""Writing a quantized model: what it states of itself, and the last check before it takes its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from bench.inputs.host import TARGET_KEY
from exporter.graphs.kernels import state_oldest_runtime
from exporter.graphs.onnx_files import carry_metadata, write_checked
from exporter.graphs.targets import Target

# Called with a finished file before it takes its place; if it raises, nothing is written.
Accept = Callable[[Path], None]


def accept_all(_written: Path) -> None:
    """Accept every file."""


def write_quantized(
    quantized: onnx.ModelProto, source: onnx.ModelProto, destination: Path, target: Target, accept: Accept
) -> str:
    """Write a quantized model; it states its target and the oldest ONNX Runtime that runs it.

    Args:
        quantized: the model; its metadata is changed in place.
        source: the float model, whose provenance it carries on.
        destination: the file to write.
        target: the CPU kind that it was made for.
        accept: asked before the file takes its place.

    Returns:
        That ONNX Runtime's version.

    Raises:
        ExportError: ONNX's checker refuses the model.
    """
    carry_metadata(source, quantized, {TARGET_KEY: target.name})
    needed = state_oldest_runtime(quantized)
    write_checked(quantized, destination, accept)
    return str(needed)
