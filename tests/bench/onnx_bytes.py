"""Write small .onnx files without the onnx package.

The tests of `bench` must run on the base install, which has no onnx. An .onnx file is one protobuf message.
Field numbers are those of onnx.proto (IR version 3 and later); the encoding is that of protobuf.dev,
"Encoding". `test_onnx_bytes.py` compares the result with the onnx package.

Protobuf merges concatenated messages: a repeated field is appended, and the last value of a single field
counts. So `metadata` and `producer` return bytes that a caller appends to a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# TensorProto.DataType.
FLOAT, INT64, STRING, BOOL, BFLOAT16 = 1, 7, 8, 9, 16
_KINDS = {"float32": FLOAT, "int64": INT64}
_EXTERNAL = 1


def model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    initializers: Sequence[bytes] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> bytes:
    """A whole model; it may use operators of ONNX and of `ai.onnx.ml`."""
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _text(2, "tiny"),
            *(_bytes(5, initializer) for initializer in initializers),
            *(_bytes(11, value) for value in inputs),
            *(_bytes(12, value) for value in outputs),
        ]
    )
    opsets = [_number(2, opset), _text(1, "ai.onnx.ml") + _number(2, 3)]
    return _number(1, ir_version) + _bytes(7, graph) + b"".join(_bytes(8, one) for one in opsets)


def producer(name: str) -> bytes:
    """The field that names the tool that wrote a model."""
    return _text(2, name)


def metadata(entries: Mapping[str, str]) -> bytes:
    """The `metadata_props` of a model."""
    return b"".join(_bytes(14, _text(1, key) + _text(2, value)) for key, value in entries.items())


def node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    domain: str = "",
    **attributes: int | str,
) -> bytes:
    """A node whose attributes are integers and texts."""
    parts = [
        *(_text(1, name) for name in inputs),
        *(_text(2, name) for name in outputs),
        _text(4, operator),
    ]
    for name, value in attributes.items():
        content = (
            _number(3, value) + _number(20, 2)
            if isinstance(value, int)
            else _text(4, value) + _number(20, 3)
        )
        parts.append(_bytes(5, _text(1, name) + content))
    return b"".join(parts) + (_text(7, domain) if domain else b"")


def constant(name: str, value: np.ndarray) -> bytes:
    """An initializer that holds its value."""
    return _tensor(name, value) + _bytes(9, value.tobytes())


def external_constant(name: str, value: np.ndarray, file: Path) -> bytes:
    """An initializer whose value is in `file`, which is written; it must be in the model's folder."""
    file.write_bytes(value.tobytes())
    entries = {"location": file.name, "offset": "0", "length": str(value.nbytes)}
    places = (_bytes(13, _text(1, key) + _text(2, text)) for key, text in entries.items())
    return _tensor(name, value) + b"".join(places) + _number(14, _EXTERNAL)


def value(name: str, kind: bytes) -> bytes:
    """An input or output with its type."""
    return _text(1, name) + _bytes(2, kind)


def tensor(kind: int = FLOAT, shape: Sequence[int | str | None] | None = None) -> bytes:
    """The type of a tensor. A dimension is a size, a name, or None. Without a shape, the rank is open."""
    content = _number(1, kind)
    if shape is not None:
        content += _bytes(2, b"".join(_bytes(1, _dimension(size)) for size in shape))
    return _bytes(1, content)


def sequence(kind: bytes) -> bytes:
    """The type of a sequence of `kind`."""
    return _bytes(4, _bytes(1, kind))


def mapping(key: int, kind: bytes) -> bytes:
    """The type of a map from `key`, an element type, to `kind`."""
    return _bytes(5, _number(1, key) + _bytes(2, kind))


def optional(kind: bytes) -> bytes:
    """The type of an optional `kind`."""
    return _bytes(9, _bytes(1, kind))


def _tensor(name: str, value: np.ndarray) -> bytes:
    sizes = b"".join(_number(1, size) for size in value.shape)
    return sizes + _number(2, _KINDS[value.dtype.name]) + _text(8, name)


def _dimension(size: int | str | None) -> bytes:
    if size is None:
        return b""
    return _number(1, size) if isinstance(size, int) else _text(2, size)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value % (1 << 64))


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*pieces, value])
