"""Writing .onnx files that ONNX's own checker has accepted, and reading those of others.

A protobuf message ends at 2 GB. Above, the weights lie in a second file beside the model, which the model
names: `model.onnx` and `model.onnx.data`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from bench.errors import ModelError
from bench.files import (
    TEMPORARY_PREFIX,
    atomic_file,
    check_writable,
    storage_errors,
    sync_directory,
    sync_file,
)
from bench.session import model_error, open_session
from exporter.errors import ExportError

DATA_SUFFIX = ".data"
# Weights of more bytes go to a file of their own; 64 MiB of the message stay for the graph.
MAX_WEIGHT_BYTES = 2**31 - 2**26
_SMALL_TENSOR_BYTES = 1024  # stays in the model: shape inference looks into it


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that ONNX Runtime can load, with its external data.

    Raises:
        ModelError: it is missing, damaged, wants what this runtime lacks, or reads files elsewhere.
    """
    if path.is_file():
        _check_locations(path)
    open_session(path)  # for its clear errors
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own exceptions
        raise model_error(path, error) from error


def write_checked(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model once ONNX's checker and strict shape inference have accepted it.

    A reader finds the old model or the new one, whole; while a second file of weights is replaced, none.

    Raises:
        ExportError: in the checker's words.
    """
    beside = path.with_name(path.name + DATA_SUFFIX)
    if is_large(proto):
        _write_large(proto, path, beside)
        return
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refused(path, error) from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    beside.unlink(missing_ok=True)  # of a larger model that was here


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights do not fit in one file with the graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_WEIGHT_BYTES


def save_large(model: onnx.ModelProto, path: Path) -> None:
    """Write a model and, beside it, its weights; without checks."""
    ir.save(
        ir.from_proto(model),
        path,
        external_data=path.name + DATA_SUFFIX,
        size_threshold_bytes=_SMALL_TENSOR_BYTES,
    )


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of all its tensors, as far as ONNX can tell."""
    if not is_large(model):
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    light = onnx.ModelProto()
    light.CopyFrom(model)
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
    """SHA-256 of a model in memory, of any size."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    digest = hashlib.sha256()
    for tensor in light.graph.initializer:
        digest.update(hashlib.sha256(tensor.raw_data).digest())
        tensor.ClearField("raw_data")
    digest.update(light.SerializeToString(deterministic=True))
    return digest.hexdigest()


def check_quantizable(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what static quantization cannot take.

    Raises:
        ModelError: the model is quantized already, decides by the values of tensors, or holds float16.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    for node in model.graph.node:
        # Bytes that enter the graph may be dequantized there (`exporter.processing`); weights are not.
        quantized = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if quantized or node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"}:
            raise ModelError(path, f"is quantized already (node {node.name!r})", "give the float model")
        if node.op_type in {"If", "Loop", "Scan"}:
            raise ModelError(
                path,
                f"node {node.name!r} is a {node.op_type}, whose branches have no fixed ranges",
                "export the network without control flow",
            )
    halves = [i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16]
    if halves:
        raise ModelError(path, f"weight {halves[0]!r} is float16", "export the network in float32")


def _write_large(proto: onnx.ModelProto, path: Path, beside: Path) -> None:
    check_writable(path)
    with storage_errors(path):
        prefix = f"{TEMPORARY_PREFIX}{path.name}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
            staged = Path(folder) / path.name  # of the same name: the model names its data after itself
            save_large(proto, staged)
            try:
                onnx.checker.check_model(str(staged), full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise _refused(path, error) from error
            data = staged.with_name(beside.name)
            for file in (staged, data):
                sync_file(file)
            path.unlink(missing_ok=True)  # or it would be there with the weights of the new one
            data.replace(beside)
            staged.replace(path)
            sync_directory(path.parent)


def _check_locations(path: Path) -> None:
    """Refuse a model that reads files outside its own folder.

    Raises:
        ModelError: with the location that it names.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise model_error(path, error) from error
    folder = path.parent.resolve()
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            absolute = PurePosixPath(entry.value).is_absolute() or PureWindowsPath(entry.value).drive
            if absolute or not (folder / entry.value).resolve().is_relative_to(folder):
                raise ModelError(
                    path,
                    f"reads its weights from {entry.value!r}, outside its folder",
                    "keep external data beside the model",
                )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph: initializers, attributes, and those of branches."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for branch in (attribute.g, *attribute.graphs):
                if branch.node or branch.initializer:
                    yield from _tensors(branch)


def _refused(path: Path, error: Exception) -> ExportError:
    return ExportError(path.name, f"ONNX's checker refuses the graph ({error})", "report this as a bug")


def carry_metadata(source: onnx.ModelProto, model: onnx.ModelProto, added: Mapping[str, str]) -> None:
    """Give a model made of another its provenance and some more; marks of the tools between are dropped.

    Args:
        source: where the provenance is.
        model: the model made of it, changed in place.
        added: what it has beside.
    """
    metadata = {entry.key: entry.value for entry in source.metadata_props} | dict(added)
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
