"""Metadata and external-data locations of an .onnx file, without the onnx package and without its weights.

An .onnx file is one protobuf message. The reader walks over its fields in place and skips the other fields
by their length, so a file of gigabytes is read in milliseconds. Field numbers are from onnx.proto (IR
version 3 and later); the encoding is described at protobuf.dev, "Encoding".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import ModelError

# Message -> field number -> message in that field. Only fields that lead to tensors are listed.
_MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_METADATA, _EXTERNAL_DATA = 14, 13
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
# protobuf itself refuses messages that are nested deeper.
_MAX_DEPTH = 100
_MAX_ENTRY_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """Metadata and external-data locations of a model.

    Attributes:
        metadata: the model's `metadata_props`.
        locations: the files that the model names for its weights, exactly as written there, in order.
    """

    metadata: dict[str, str]
    locations: tuple[str, ...]


NOTHING_SAID = ModelFile({}, ())


def read_model_file(path: Path) -> ModelFile:
    """Read a model's metadata and locations; both are empty if the file is absent or not an ONNX model.

    ONNX Runtime reports the reason when it opens the file.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = dict(_entry(content, *span) for span in _fields(content, 0, len(content), _METADATA))
            names = dict.fromkeys(_locations(content, 0, len(content), "model"))
            return ModelFile(entries, tuple(names))
    except (OSError, ValueError, IndexError, RecursionError):  # an empty file cannot be mapped
        return NOTHING_SAID


def external_data(model: Path) -> list[Path]:
    """Return the weights files that an .onnx names and that exist.

    Raises:
        ModelError: the model names a file outside its own folder.
    """
    # In a store that names files by their hash, the model and its weights are links into another folder.
    folders = (model.parent.resolve(), model.resolve().parent)
    found = []
    for location in read_model_file(model).locations:
        path = model.parent / location
        inside = any(path.resolve().is_relative_to(folder) for folder in folders)
        if not inside or "\\" in location or ":" in location[:2]:
            raise ModelError(
                model,
                f"reads its weights from {location!r}, outside its folder",
                "keep external data next to the model",
            )
        if path.is_file():
            found.append(path)
    return found


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int = 0) -> Iterator[str]:
    """Yield the external-data locations of all tensors in a message and in its nested messages."""
    if depth > _MAX_DEPTH:
        raise ValueError("messages are nested too deeply")
    if message == "tensor":
        for span in _fields(content, start, end, _EXTERNAL_DATA):
            key, value = _entry(content, *span)
            if key == "location":
                yield value
        return
    below = _MESSAGES[message]
    for number, first, last in _walk(content, start, end):
        if number in below:
            yield from _locations(content, first, last, below[number], depth + 1)


def _fields(content: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    for number, first, last in _walk(content, start, end):
        if number == wanted:
            yield first, last


def _entry(content: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """Read a StringStringEntryProto: its key and value."""
    if end - start > _MAX_ENTRY_BYTES:
        raise ValueError("a metadata entry is too long")
    parts = {number: content[first:last].decode() for number, first, last in _walk(content, start, end)}
    return parts.get(_KEY, ""), parts.get(_VALUE, "")


def _walk(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first byte and byte after the last of each length-delimited field of a message."""
    position = start
    while position < end:
        tag, position = _varint(content, position, end)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(content, position, end)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        elif kind == _LENGTH:
            size, position = _varint(content, position, end)
            yield tag >> 3, position, position + size
            position += size
        else:
            raise ValueError(f"unknown wire type {kind}")
        if position > end:
            raise ValueError("a field exceeds its message")


def _varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Read a varint (groups of seven bits, the lowest first); return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint does not end")
