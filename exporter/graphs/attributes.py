"""A node's attributes as Python values."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """What the node itself states, by name, text for bytes; without its operator's defaults."""
    found = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    # No custom operator need hold to UTF-8.
    return {name: v.decode(errors="replace") if isinstance(v, bytes) else v for name, v in found.items()}
