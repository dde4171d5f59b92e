"""Add operators to an existing .onnx file without the onnx package.

An .onnx file is one protobuf message. A protobuf parser merges concatenated messages: it appends repeated
fields, for example the nodes of a graph ("Encoding: Last One Wins", protobuf.dev). So a few bytes at the
end of a copy add real operators, which ONNX Runtime executes. `certify` uses this to slow models down by
known amounts.

Field numbers are from onnx.proto (IR version 3 and later).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.core.arrays import Array

_MODEL_PRODUCER_VERSION, _MODEL_GRAPH = 3, 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_TYPES = {"float32": 1, "int64": 7}
_INT_ATTRIBUTE = 2
PREFIX = "edgeproof_certify_"


def rebuilt(model: bytes) -> bytes:
    """The same network in other bytes: only the field `producer_version` changes."""
    return model + _text(_MODEL_PRODUCER_VERSION, "rebuilt by edgeproof certify")


def with_product(model: bytes, input_name: str, rows: int, width: int) -> bytes:
    """A copy that also multiplies a [rows, width] by a [width, width] matrix in every inference.

    The product depends on the input's first element, so an optimizer cannot fold it into a constant. It
    feeds an additional model output, so an optimizer cannot remove it.

    Args:
        model: the file's bytes.
        input_name: a numeric input of the model.
        rows, width: size of the product, which costs rows * width**2 multiply-adds.
    """
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    nodes = [
        *_first_element(input_name),
        _node("Add", ["ones", "scalar"], ["left"]),
        _node("MatMul", ["left", "weight"], ["product"]),
        _node("Slice", ["product", "zero", "one"], ["out"]),
    ]
    constants = {"ones": np.ones((rows, width), np.float32), "weight": weight, **_INDICES}
    return model + _graph(nodes, constants, ("out", (1, width)))


def with_allocation(model: bytes, input_name: str, size_bytes: int) -> bytes:
    """A copy that also fills `size_bytes` of memory in every inference."""
    nodes = [
        *_first_element(input_name),
        _node("Expand", ["scalar", "count"], ["filled"]),
        _node("Slice", ["filled", "zero", "one"], ["out"]),
    ]
    constants = {"count": np.array([size_bytes // 4]), **_INDICES}
    return model + _graph(nodes, constants, ("out", (1,)))


_INDICES = {"flat": np.array([-1]), "zero": np.array([0]), "one": np.array([1])}


def _first_element(input_name: str) -> list[bytes]:
    to_float = _text(1, "to") + _number(3, _TYPES["float32"]) + _number(20, _INT_ATTRIBUTE)
    return [
        _node("Reshape", [input_name, "flat"], ["elements"], own=(False, True)),
        _node("Slice", ["elements", "zero", "one"], ["first"]),
        _node("Cast", ["first"], ["scalar"], attribute=to_float),
    ]


def _graph(nodes: Sequence[bytes], constants: dict[str, Array], output: tuple[str, Sequence[int]]) -> bytes:
    name, shape = output
    parts = [_bytes(_GRAPH_NODE, node) for node in nodes]
    parts += [_bytes(_GRAPH_INITIALIZER, _tensor(key, value)) for key, value in constants.items()]
    dimensions = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor_type = _number(1, _TYPES["float32"]) + _bytes(2, dimensions)
    parts.append(_bytes(_GRAPH_OUTPUT, _text(1, PREFIX + name) + _bytes(2, _bytes(1, tensor_type))))
    return _bytes(_MODEL_GRAPH, b"".join(parts))


def _node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    own: Sequence[bool] | None = None,
    attribute: bytes = b"",
) -> bytes:
    """A serialized NodeProto.

    Names get `PREFIX`, except inputs whose `own` is False, because these are tensors of the model.
    """
    ours = own or [True] * len(inputs)
    names = [PREFIX + name if is_ours else name for name, is_ours in zip(inputs, ours, strict=True)]
    content = b"".join(_text(1, name) for name in names)
    content += b"".join(_text(2, PREFIX + name) for name in outputs) + _text(4, kind)
    return content + (_bytes(5, attribute) if attribute else b"")


def _tensor(name: str, value: Array) -> bytes:
    dimensions = b"".join(_number(1, size) for size in value.shape)
    little = value.astype(value.dtype.newbyteorder("<"))
    return (
        dimensions
        + _number(2, _TYPES[value.dtype.name])
        + _text(8, PREFIX + name)
        + _bytes(9, little.tobytes())
    )


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Encode as a protobuf varint: 7 bits per byte, lowest first; the high bit is set if more follow."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])
