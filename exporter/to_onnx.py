"""From a PyTorch module to one checked .onnx file."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from exporter.data import Split
from exporter.errors import ExportError
from exporter.network import takes_names
from exporter.onnx_files import write_checked
from exporter.recipe import ExportConfig
from exporter.rewrites import ReadableNamesPass, StripMetadataPass, rewrite_for_cpu

OUTPUT = "logits"
BATCH = "batch"
MAX_FILE_BYTES = 2**31 - 1  # of a protobuf message
# Two samples: the exporter takes an axis of size one for a constant.
_EXAMPLES = 2


def export(
    module: nn.Module, sample: Split, path: Path, config: ExportConfig, metadata: Mapping[str, str]
) -> int:
    """Write `module` as float ONNX: dynamic batch, BatchNorm folded, readable names, no traces.

    Args:
        module: the network.
        sample: at least two samples, whose input names become those of the model.
        path: the file to write.
        config: opset.
        metadata: provenance for `metadata_props`.

    Returns:
        The number of nodes.

    Raises:
        ExportError: with the operator or the line of code that cannot be exported.
    """
    module.eval()
    inputs = {
        name: torch.from_numpy(np.ascontiguousarray(array[:_EXAMPLES]))
        for name, array in sample.inputs.items()
    }
    batch = torch.export.Dim(BATCH)
    by_name = takes_names(module, inputs)
    shapes = {name: {0: batch} for name in inputs}
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                args=() if by_name else tuple(inputs.values()),
                kwargs=inputs if by_name else None,
                dynamo=True,
                input_names=list(inputs),
                output_names=[OUTPUT],
                opset_version=config.opset,
                dynamic_shapes=shapes if by_name else tuple(shapes.values()),
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its many parts do
            raise _export_error(error) from error
    assert program is not None
    model = program.model
    rewrite_for_cpu(model)
    for rewrite in (ReadableNamesPass(), StripMetadataPass()):
        rewrite(model)
    model.graph.name = metadata.get("edgeproof.name", "network")
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    if proto.ByteSize() > MAX_FILE_BYTES:
        raise ExportError(
            path.name, f"takes {proto.ByteSize()} bytes, more than one file can", "use a smaller network"
        )
    write_checked(proto, path)
    return len(proto.graph.node)


def _export_error(error: BaseException) -> ExportError:
    """Find the operator or the line that the exporter stumbled over, however deep it lies."""
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    text = "\n".join(str(cause) for cause in causes)
    operator = re.search(r"OpOverload\(op='([^']+)'", text) or re.search(
        r"No ONNX function found for (\S+)", text
    )
    if operator:
        return ExportError(
            f"operator {operator.group(1)}",
            "has no counterpart in ONNX",
            "replace it in the network's forward by operators that have one",
        )
    if "data-dependent" in text or "DataDependent" in text or "Dynamic control flow" in text:
        line = re.search(r"File \"([^\"]+)\", line (\d+), in forward", text) or re.search(
            r"\((\S+\.py):(\d+) in \w+\)", text
        )
        where = f"{Path(line.group(1)).name}, line {line.group(2)}" if line else "the network's forward"
        return ExportError(
            where, "decides by the values of a tensor", "use torch.where or torch.cond instead of if"
        )
    deepest = str(causes[-1]).strip().splitlines()
    return ExportError(
        "export",
        f"torch.onnx cannot export the network ({type(causes[-1]).__name__}: {' '.join(deepest[:3])})",
        "try torch.export.export on it alone",
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks on itself (torchvision is not installed, ...) from the user.

    torch.export prints whole graphs on standard error before it raises; the error says what matters.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
