"""Write .onnx files that ONNX's checker accepts, and read files of other tools.

A protobuf message has at most 2 GB. The weights of a larger model are in a second file next to it, which
the model names: `model.onnx` and `model.onnx.data`.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from bench.core.errors import ModelError, StorageError
from bench.core.files import (
    DATA_SUFFIX,
    check_writable,
    storage_errors,
    sync_directory,
    sync_file,
    temporary_prefix,
)
from bench.core.model_file import external_data
from bench.inputs.session import model_error, open_session
from exporter.errors import ExportError
from exporter.graphs.edits import copy_of
from exporter.graphs.index import GraphIndex, bodies_of

# Weights with more bytes are written to a second file. 64 MiB of the message remain for the graph.
MAX_WEIGHT_BYTES = 2**31 - 2**26
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operators that only a quantized model has, in addition to QLinear*.
_INTEGER = frozenset(
    {
        "QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "QAttention", "MatMulNBits",
    }
)  # fmt: skip
_SMALL_TENSOR_BYTES = 1024  # small tensors stay in the model because shape inference reads their values


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that ONNX Runtime can load, with its external data.

    Raises:
        ModelError: the file is missing or damaged, requires features that this ONNX Runtime lacks, or reads
            files outside its folder.
    """
    external_data(path)  # rejects files outside the folder
    open_session(path)  # raises clear errors if the model cannot be loaded
    try:
        return load(path)
    except Exception as error:  # protobuf raises its own exception classes
        raise model_error(path, error) from error


def load(path: Path) -> onnx.ModelProto:
    """Read a model that ONNX Runtime has loaded, with its external data."""
    model = onnx.load(path, load_external_data=False)
    _state_lengths(model.graph)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _state_lengths(graph: onnx.GraphProto) -> None:
    """State the lengths of external data. They are optional, but without one, onnx reads the whole file."""
    for tensor in graph.initializer:
        stated = {entry.key for entry in tensor.external_data}
        if tensor.data_location == onnx.TensorProto.EXTERNAL and "length" not in stated:
            item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            tensor.external_data.add(key="length", value=str(math.prod(tensor.dims) * item))
    for node in graph.node:
        for body in bodies_of(node):
            _state_lengths(body)


def write_checked(
    proto: onnx.ModelProto, path: Path, accept: Callable[[Path], None] = lambda _written: None
) -> None:
    """Write a model after ONNX's checker and strict shape inference have accepted it.

    At any time, a reader finds either the complete old model or the complete new one. Only while a weights
    file is replaced, there is no model at `path`.

    Args:
        proto: the model.
        path: the file to write.
        accept: called with the finished file before it is moved to `path`. If it raises, nothing changes.

    Raises:
        ExportError: the checker rejects the model; the error contains its message.
        StorageError: the weights file would replace a file that belongs to another model.
    """
    check_writable(path)
    beside = path.with_name(path.name + DATA_SUFFIX)
    replaced = external_data(path)
    if is_large(proto) and beside.exists() and beside not in replaced:
        raise StorageError(beside, f"exists and does not belong to {path.name}", "choose another --out")
    with (
        storage_errors(path),
        tempfile.TemporaryDirectory(prefix=temporary_prefix(path), dir=path.parent) as folder,
    ):
        staged = Path(folder) / path.name  # same name: a large model states the name of its data file
        _write_accepted_by_onnx(proto, staged, path)
        accept(staged)
        _publish(staged, path, replaced)


def _write_accepted_by_onnx(proto: onnx.ModelProto, staged: Path, path: Path) -> None:
    try:
        if is_large(proto):
            save_large(proto, staged)
            onnx.checker.check_model(str(staged), full_check=True)
            return
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refused(path, error) from error
    staged.write_bytes(proto.SerializeToString(deterministic=True))


def _publish(staged: Path, path: Path, replaced: Sequence[Path]) -> None:
    """Replace the model at `path` by a finished one.

    Args:
        staged: the finished model in a temporary folder.
        path: the file to replace.
        replaced: the external data files of the model that is replaced.
    """
    data, beside = (file.with_name(file.name + DATA_SUFFIX) for file in (staged, path))
    files = [file for file in (staged, data) if file.exists()]
    for file in files:
        sync_file(file)
    if data in files:
        path.unlink(missing_ok=True)  # so the old model is never read with the new weights
        data.replace(beside)
    staged.replace(path)
    if data not in files and beside in replaced:  # a file that the old model did not name is kept
        beside.unlink()
    sync_directory(path.parent)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights do not fit in one file with the graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_WEIGHT_BYTES


def save_large(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, and its weights to a second file, without checks."""
    ir.save(
        ir.from_proto(model),
        path,
        external_data=path.name + DATA_SUFFIX,
        size_threshold_bytes=_SMALL_TENSOR_BYTES,
    )


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of all tensors that ONNX can infer."""
    if not is_large(model):
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    light = copy_of(model)
    contents = {}
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _SMALL_TENSOR_BYTES:
            contents[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="elsewhere")
    shaped = onnx.shape_inference.infer_shapes(light, data_prop=True)
    for tensor in shaped.graph.initializer:
        if tensor.name in contents:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = contents.pop(tensor.name)
    return shaped


def content_hash(model: onnx.ModelProto) -> str:
    """SHA-256 of a model in memory, which may be larger than a protobuf message."""
    light = copy_of(model)
    digest = hashlib.sha256()
    for tensor in light.graph.initializer:
        digest.update(hashlib.sha256(tensor.raw_data).digest())
        tensor.ClearField("raw_data")
    digest.update(light.SerializeToString(deterministic=True))
    return digest.hexdigest()


def check_quantizable(model: onnx.ModelProto, path: Path) -> None:
    """Reject models that static quantization does not support.

    Raises:
        ModelError: the model is already quantized, has no inputs or no outputs, inputs that are not tensors
            or have no shape, or maps; or weights are float64 or not finite.
    """
    nodes = [node for part in (model.graph, *model.functions) for node in part.node]
    _check_operators(nodes, model, path)
    index = GraphIndex.of(model.graph)
    given = [value for value in model.graph.input if not index.is_constant(value.name)]
    if not given:
        raise ModelError(path, "has no inputs, so its outputs are constant", "export it with its inputs")
    if not model.graph.output:
        raise ModelError(path, "has no outputs", "export it with its outputs")
    for value in (*given, *model.graph.output):
        if _has_map(value.type):
            raise ModelError(
                path,
                f"{value.name!r} is a map, but only tensors and sequences of tensors are supported",
                "export it without ZipMap (for skl2onnx: options={'zipmap': False})",
            )
    for value in given:
        if not value.type.HasField("tensor_type"):
            kind = str(value.type.WhichOneof("value")).removesuffix("_type")
            raise ModelError(
                path,
                f"input {value.name!r} has the type {kind}, but only tensors are supported",
                "export the model with tensors as inputs",
            )
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                path,
                f"input {value.name!r} has no shape",
                "export the model with a size for each axis, or a name for a dynamic axis",
            )
    for node in nodes:
        if node.op_type in _WEIGHTED:
            for name in node.input[1:3]:
                if index.is_constant(name):
                    _check_weight(index.constants[name], path)


def _has_map(kind: onnx.TypeProto) -> bool:
    """Whether a type is a map, or contains one."""
    inner = (
        holder.elem_type
        for holder in (kind.sequence_type, kind.optional_type)
        if holder.HasField("elem_type")
    )
    return kind.HasField("map_type") or any(_has_map(one) for one in inner)


def _check_operators(nodes: Sequence[onnx.NodeProto], model: onnx.ModelProto, path: Path) -> None:
    made = (node.output[0] for node in nodes if node.op_type == "Constant" and node.output)
    constants = {*GraphIndex.of(model.graph).constants, *made}
    for node in nodes:
        label = repr(node.name or node.op_type)
        # A float model may dequantize input bytes (`rewrites.processing`), but not weights.
        dequantized = node.op_type == "DequantizeLinear" and bool(constants.intersection(node.input[:1]))
        if dequantized or node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
            raise ModelError(path, f"is quantized already (node {label})", "provide the float model")


def _check_weight(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        raise ModelError(path, f"weight {tensor.name!r} is float64", "export the network in float32")
    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor)
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ModelError(
                path, f"weight {tensor.name!r} holds NaN or infinity", "train or export the network again"
            )


def _refused(path: Path, error: Exception) -> ExportError:
    return ExportError(
        path.name,
        f"ONNX's checker rejects the graph ({error})",
        "change the network, or exclude the node in this error from quantization",
    )


def carry_metadata(source: onnx.ModelProto, model: onnx.ModelProto, added: Mapping[str, str]) -> None:
    """Copy the provenance of a model to a model made from it, and drop metadata of other tools.

    Args:
        source: the model with the provenance.
        model: the model made from `source`, changed in place.
        added: additional metadata.
    """
    metadata = {entry.key: entry.value for entry in source.metadata_props} | dict(added)
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
