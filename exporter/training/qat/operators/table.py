"""The types of the tables of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from torch import Tensor

Node = onnx.NodeProto
Attributes = Mapping[str, Any]
# A function of the attributes and the inputs of a node; an omitted input is None.
Operator = Callable[..., Tensor | tuple[Tensor, ...]]
