"""Writing .onnx files that ONNX's own checker has accepted, and reading those of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from bench.errors import ModelError
from bench.files import atomic_file
from bench.session import model_error, open_session
from exporter.errors import ExportError


def read_model(path: Path) -> onnx.ModelProto:
    """Read a model that ONNX Runtime can load.

    Raises:
        ModelError: it is missing, damaged, or wants what this runtime lacks.
    """
    open_session(path)  # for its clear errors
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own exceptions
        raise model_error(path, error) from error


def write_checked(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model once ONNX's checker and strict shape inference have accepted it.

    Raises:
        ExportError: in the checker's words.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            path.name, f"ONNX's checker refuses the graph ({error})", "report this as a bug"
        ) from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def check_quantizable(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what static quantization cannot take.

    Raises:
        ModelError: the model is quantized already, decides by the values of tensors, or holds float16.
    """
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}:
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
