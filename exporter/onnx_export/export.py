"""Export a PyTorch module to one checked .onnx file."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass
from torch import nn

from bench.core.errors import DataError
from bench.inputs.session import FATAL_ONLY
from exporter.errors import ExportError
from exporter.graphs.kernels import state_oldest_runtime
from exporter.graphs.onnx_files import write_checked
from exporter.graphs.rewrites import ReadableNamesPass, StripMetadataPass, rewrite_for_cpu
from exporter.graphs.rewrites.processing import give_classes, take_bytes
from exporter.networks.network import takes_names
from exporter.onnx_export.torch_exporter import torch_exporter
from exporter.recipes import ExportConfig
from exporter.sources.splits import Split

OUTPUT = "logits"
BATCH = "batch"
MIN_IR_VERSION = 8  # the IR version of opset 18, the lowest opset that a recipe can set
# Lowest SQNR of two equal graphs. Another summation order gives 100 dB or more, a wrong graph far less.
SAME_SQNR_DB = 60.0
# The exporter treats an axis of size one as a constant, so the example batch has two samples.
_EXAMPLES = 2
_MEANWHILE = "until then, all stages except shrink, qat and export work"


def export(
    module: nn.Module,
    sample: Split,
    path: Path,
    config: ExportConfig,
    metadata: Mapping[str, str],
    *,
    unfolded: Path | None = None,
) -> int:
    """Write `module` as float ONNX: dynamic batch, BatchNorm folded, readable names, no exporter metadata.

    Args:
        module: the network.
        sample: at least two samples; the model gets the names of their inputs.
        path: the file to write.
        config: opset, dynamic axes besides the batch, and preprocessing and postprocessing in the graph.
        metadata: provenance for `metadata_props`.
        unfolded: where to write the graph too as it is before constants are folded, with every computation
            on parameters; None for nowhere.

    Returns:
        The number of nodes.

    Raises:
        ExportError: an operator or a line of code cannot be exported; the error names it.
        DataError: the recipe sets a dynamic axis that the data do not have.
    """
    module.eval()
    # Copy the samples to get contiguous strides: the exporter makes decisions based on strides, and a
    # transposed grey picture has unusual strides along its axis of size one.
    inputs = {
        name: torch.from_numpy(np.array(array[:_EXAMPLES], order="C"))
        for name, array in sample.inputs.items()
    }
    args, kwargs, shapes = _arguments(module, inputs, open_axes(sample, config))
    with torch_exporter():
        try:
            program = torch.onnx.export(
                module,
                args=args,
                kwargs=kwargs,
                dynamo=True,
                input_names=list(inputs),
                output_names=[OUTPUT],
                opset_version=config.opset,
                dynamic_shapes=shapes,
                external_data=False,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            if unfolded is not None:
                _save_unfolded(program.model, unfolded)
            program.optimize()
        except Exception as error:  # the exporter may raise any exception
            raise _export_error(error) from error
    model = program.model
    _rewrite(model)
    if config.preprocess is not None:
        take_bytes(model, config.preprocess)
    if config.postprocess is not None:
        give_classes(model, config.postprocess)
    model.graph.name = metadata.get("edgeproof.name", "network")
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    state_oldest_runtime(proto)
    write_checked(proto, path)
    return len(proto.graph.node)


def _save_unfolded(model: ir.Model, path: Path) -> None:
    """Write the graph as the exporter made it; results with the name of a parameter get another one."""
    copy = model.clone()
    NameFixPass()(copy)
    onnx.save(ir.to_proto(copy), path)


def export_program(source: Path, path: Path, opset: int) -> None:
    """Write a `.pt2` program as float ONNX, with the inputs and dynamic axes of the program.

    Raises:
        ModelError: the program cannot be read, or contains more than tensors and operators
            (`exporter.onnx_export.program`).
        ExportError: an operator cannot be exported; the error names it.
    """
    from exporter.onnx_export.program import read_program

    program = read_program(source)
    with torch_exporter():
        try:
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, external_data=False, optimize=True, verbose=False
            )
        except Exception as error:  # the exporter may raise any exception
            raise _export_error(error) from error
    assert exported is not None
    _rewrite(exported.model)
    exported.model.graph.name = source.stem
    write_checked(ir.to_proto(exported.model), path)


def _rewrite(model: ir.Model) -> None:
    rewrite_for_cpu(model, fold=False)
    for rewrite in (ReadableNamesPass(), StripMetadataPass()):
        rewrite(model)


def check_opset(opset: int) -> None:
    """Check that the installed ONNX Runtime supports an opset, by loading a model of one node.

    Raises:
        ExportError: ONNX Runtime does not support the opset.
    """
    import onnxruntime

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=MIN_IR_VERSION
    )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL_ONLY
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ExportError(
            "export.opset",
            f"ONNX Runtime {onnxruntime.__version__} does not support opset {opset}",
            "lower export.opset, or install a newer onnxruntime",
        ) from error


def open_axes(sample: Split, config: ExportConfig) -> dict[str, dict[int, str]]:
    """The dynamic axes of each input: input name -> axis -> name of its size.

    Axes with equal names have equal sizes.

    Raises:
        DataError: an axis does not exist in the data, or has a single element, which the exporter treats as
            a constant.
    """
    axes = {name: {0: BATCH} for name in sample.inputs}
    for name, opened in config.dynamic.items():
        place = f"export.dynamic.{name}"
        if name not in sample.inputs:
            raise DataError(
                place, f"the data have no input {name!r}", f"choose one of: {', '.join(sample.inputs)}"
            )
        shape = sample.inputs[name].shape
        for axis, size_name in opened.items():
            if int(axis) >= len(shape):
                raise DataError(
                    place,
                    f"axis {axis} does not exist, the data have {len(shape)} axes",
                    "count the axes from 0",
                )
            if shape[int(axis)] < _EXAMPLES:
                raise DataError(
                    place,
                    f"the data have {shape[int(axis)]} element along axis {axis}",
                    f"provide samples with at least {_EXAMPLES} elements along this axis",
                )
            axes[name][int(axis)] = size_name
    return axes


def _arguments(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], axes: Mapping[str, dict[int, str]]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor] | None, dict[str, Any]]:
    """Arguments for the network as in `network.call`, and the dynamic axes in the same structure."""
    signature = inspect.signature(module.forward)
    try:
        if takes_names(module, inputs):
            return (), dict(inputs), dict(signature.bind(**axes).arguments)
        shapes = dict(signature.bind(*(axes[name] for name in inputs)).arguments)
    except TypeError as error:
        raise ExportError(
            "the network's forward",
            f"has the parameters {signature}, but the data have the inputs {', '.join(inputs)} ({error})",
            "give the data's inputs the names of the parameters",
        ) from error
    return tuple(inputs.values()), None, shapes


def _export_error(error: BaseException) -> ExportError:
    """The error that names the operator or the line of code that the exporter failed on."""
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
            "has no equivalent in ONNX",
            "replace it in the network's forward by operators that have an equivalent",
        )
    if "data-dependent" in text or "DataDependent" in text or "Dynamic control flow" in text:
        return ExportError(
            _users_line(causes),
            "branches on the values of a tensor",
            f"use torch.where or torch.cond instead of if; {_MEANWHILE}",
        )
    fixed = re.search(r"inferred a static shape of (\d+) for dimension inputs(\S+?)\.shape\[(\d+)\]", text)
    if fixed:
        size, name, axis = fixed.groups()
        return ExportError(
            f"axis {axis} of input {name}",
            f"is dynamic, but the network's forward only works for size {size}",
            "change the forward, or remove the axis from export.dynamic",
        )
    deepest = str(causes[-1]).strip().splitlines()
    return ExportError(
        "export",
        f"torch.onnx cannot export the network ({type(causes[-1]).__name__}: {' '.join(deepest[:3])})",
        f"run torch.export.export on the network to see the cause; {_MEANWHILE}",
    )


def _users_line(causes: Iterable[BaseException]) -> str:
    """The innermost line in the exceptions' tracebacks that is neither in torch nor in this package."""
    foreign = (Path(torch.__file__).parent, Path(__file__).parents[1])
    line = "the network's forward"
    for cause in causes:
        for frame in traceback.extract_tb(cause.__traceback__):
            path = Path(frame.filename)
            if path.is_file() and not any(path.is_relative_to(folder) for folder in foreign):
                line = f"{path.name}, line {frame.lineno}"
    return line
