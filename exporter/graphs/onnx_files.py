"""Writing .onnx files that ONNX's own checker has accepted, and reading those of others.

A protobuf message ends at 2 GB. Above, the weights lie in a second file beside the model, which the model
names: `model.onnx` and `model.onnx.data`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

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

# Weights of more bytes go to a file of their own; 64 MiB of the message stay for the graph.
MAX_WEIGHT_BYTES = 2**31 - 2**26
_HALVES: dict[int, str] = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Beside QLinear*: operators that only a quantized model has.
_INTEGER = frozenset(
    {
        "QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "QAttention", "MatMulNBits",
    }
)  # fmt: skip
_SMALL_TENSOR_BYTES = 1024  # stays in the model: shape inference looks into it


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that ONNX Runtime can load, with its external data.

    Raises:
        ModelError: it is missing, damaged, wants what this runtime lacks, or reads files elsewhere.
    """
    external_data(path)  # refuses files elsewhere
    open_session(path)  # for its clear errors
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own exceptions
        raise model_error(path, error) from error


def write_checked(
    proto: onnx.ModelProto, path: Path, accept: Callable[[Path], None] = lambda _written: None
) -> None:
    """Write a model once ONNX's checker and strict shape inference have accepted it.

    A reader finds the old model or the new one, whole; while a second file of weights is replaced, none.

    Args:
        proto: the model.
        path: the file to write.
        accept: called with the finished file before it takes its place. If it raises, all stays as it was.

    Raises:
        ExportError: in the checker's words.
        StorageError: the second file would replace one that belongs to another model.
    """
    check_writable(path)
    beside = path.with_name(path.name + DATA_SUFFIX)
    replaced = external_data(path)
    if is_large(proto) and beside.exists() and beside not in replaced:
        raise StorageError(beside, f"is there and does not belong to {path.name}", "choose another --out")
    with (
        storage_errors(path),
        tempfile.TemporaryDirectory(prefix=temporary_prefix(path), dir=path.parent) as folder,
    ):
        staged = Path(folder) / path.name  # of the same name: a large model names its data after itself
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
    """Let a finished model take the place of the one at `path`, whose weights were `replaced`."""
    data, beside = (file.with_name(file.name + DATA_SUFFIX) for file in (staged, path))
    files = [file for file in (staged, data) if file.exists()]
    for file in files:
        sync_file(file)
    if data in files:
        path.unlink(missing_ok=True)  # or it would be there with the weights of the new one
        data.replace(beside)
    staged.replace(path)
    if data not in files and beside in replaced:  # another file of that name is not ours
        beside.unlink()
    sync_directory(path.parent)


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
    """SHA-256 of a model in memory, of any size."""
    light = copy_of(model)
    digest = hashlib.sha256()
    for tensor in light.graph.initializer:
        digest.update(hashlib.sha256(tensor.raw_data).digest())
        tensor.ClearField("raw_data")
    digest.update(light.SerializeToString(deterministic=True))
    return digest.hexdigest()


def check_quantizable(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what static quantization cannot take.

    Raises:
        ModelError: the model is quantized already, decides by the values of tensors, holds float16, or has
            inputs without a shape; or weights are not float32, or not finite.
    """
    nodes = [node for part in (model.graph, *model.functions) for node in part.node]
    _check_operators(nodes, model, path)
    for tensor in _tensors(nodes, model.graph.initializer):
        if tensor.data_type in _HALVES:
            what = f"weight {tensor.name!r}" if tensor.name else "a constant"
            kind = _HALVES[tensor.data_type]
            raise ModelError(path, f"{what} is {kind}", "export the network in float32")
    index = GraphIndex.of(model.graph)
    for value in model.graph.input:
        if index.is_constant(value.name):
            continue
        if value.type.tensor_type.elem_type in _HALVES:
            kind = _HALVES[value.type.tensor_type.elem_type]
            raise ModelError(path, f"input {value.name!r} is {kind}", "export the network in float32")
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                path, f"input {value.name!r} has no shape", "export it with sizes, or names for open ones"
            )
    for node in nodes:
        if node.op_type in _WEIGHTED:
            for name in node.input[1:3]:
                if index.is_constant(name):
                    _check_weight(index.constants[name], path)


def _check_operators(nodes: Sequence[onnx.NodeProto], model: onnx.ModelProto, path: Path) -> None:
    made = (node.output[0] for node in nodes if node.op_type == "Constant" and node.output)
    constants = {*GraphIndex.of(model.graph).constants, *made}
    for node in nodes:
        label = repr(node.name or node.op_type)
        # Bytes that enter the graph may be dequantized there (`rewrites.processing`); weights are not.
        dequantized = node.op_type == "DequantizeLinear" and bool(constants.intersection(node.input[:1]))
        if dequantized or node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
            raise ModelError(path, f"is quantized already (node {label})", "give the float model")
        if node.op_type in {"If", "Loop", "Scan"}:
            raise ModelError(
                path,
                f"node {label} is a {node.op_type}, whose branches have no fixed ranges",
                "export the network without control flow",
            )


def _check_weight(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        raise ModelError(path, f"weight {tensor.name!r} is float64", "export the network in float32")
    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor)
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ModelError(
                path, f"weight {tensor.name!r} holds NaN or infinity", "train or export the network again"
            )


def _tensors(
    nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> Iterator[onnx.TensorProto]:
    """All constants: initializers, attributes, and those of branches."""
    yield from initializers
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for body in bodies_of(node):
            yield from _graph_tensors(body)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors(graph.node, graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


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
