"""ONNX Runtime's messages in plain words: the node and the cause, without codes and source files."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: "
)
# A source file with its line, and the function: its signature, or its name alone.
_SOURCE = re.compile(
    r"(?:/?(?:[\w.-]+/)+)?[\w-]+\.(?:cc|h):\d+ "
    r"(?:[^;]*?\)(?: const)?(?: \[with [^\]]*\])? (?=\S)|[\w:]+ )"
)
_BOUNDS = re.compile(
    r"out of data bounds, idx=(-?\d+) must be within the inclusive range \[-?\d+,(-?\d+)\]"
)
_INDEX = re.compile(r"invalid indi?c?e?x? found, ind\w+ = (-?\d+)|Out of range value in index tensor")

_PATH = re.compile(r'External data path does not exist: "([^"]*)"')
_SHORT = re.compile(
    r"External initializer: (.+?) offset: (-?\d+) size to read: (\d+) given file_length: (\d+)"
)
_LENGTH = re.compile(
    r"TensorProto: (.+?) external data size mismatch\. Computed size: (\d+), external_data\.length: (\d+)"
)
_NO_FILE = re.compile(r"Random-access reads require a regular file: (\S+?)\)?$")
_COPY = "copy the data file next to the model again"


def plain_words(message: str) -> str:
    """The message without its code and without source files; a node is named by type and name."""
    words = _CODE.sub("", message)
    words = _NODE.sub(lambda found: f"{_node(found[1], found[2])}: ", words)
    return _SOURCE.sub("", words).strip()


def run_failure(message: str) -> tuple[str, str] | None:
    """Cause and fix if a model fails on a sample because of an index outside a table; None otherwise."""
    node = _NODE.search(message)
    where = f"the table of {_node(node[1], node[2])}" if node else "a table"
    if bounds := _BOUNDS.search(message):
        rows = int(bounds[2]) + 1
        return (
            f"holds the index {bounds[1]}, but {where} has {rows} rows",
            f"give indices from 0 to {rows - 1}",
        )
    if index := _INDEX.search(message):
        which = f"the index {index[1]}" if index[1] else "an index"
        return f"holds {which}, which is outside {where}", "give indices of rows that the table has"
    return None


def external_failure(message: str) -> tuple[str, str] | None:
    """Cause and fix if the external data of a model is absent or has another size; None otherwise."""
    if path := _PATH.search(message):
        name = path[1].rpartition("/")[2]
        return (
            f"its external data cannot be read: {name} is missing",
            "put the data file back next to the model",
        )
    if short := _SHORT.search(message):
        name, offset, size, length = short[1], int(short[2]), int(short[3]), int(short[4])
        if offset < 0:
            return f"states the offset {offset} for the external data of {name!r}", "export it again"
        return (
            f"its external data cannot be read: {name!r} needs bytes {offset} to {offset + size}, "
            f"but the file has {length}",
            _COPY,
        )
    if stated := _LENGTH.search(message):
        return (
            f"states {stated[3]} bytes for the external data of {stated[1]!r}, which takes {stated[2]}",
            "export it again",
        )
    if no_file := _NO_FILE.search(message):
        name = no_file[1].rpartition("/")[2]
        return f"its external data cannot be read: {name} is not a file", _COPY
    return None


def _node(kind: str, name: str) -> str:
    return f"{kind} {name!r}" if name else kind
