"""A node's attributes as Python values."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes that a node states, by name, with bytes decoded to text.

    Defaults of the operator are not included.
    """
    found = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    # Attributes of custom operators need not be valid UTF-8.
    return {name: v.decode(errors="replace") if isinstance(v, bytes) else v for name, v in found.items()}
