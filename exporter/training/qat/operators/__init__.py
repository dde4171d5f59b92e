"""ONNX operators in PyTorch, to run an exported graph with gradients.

Each operator follows the ONNX specification (opset 18 to 23), and is one function of the node's attributes
and its inputs; an omitted input is None. The files group them by idea. An operator that is not in the table
cannot be trained: control flow (If, Loop, Scan), sequences, texts, random numbers, and operators outside
ONNX's own domain.
"""

from __future__ import annotations

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.training.qat.operators import (
    constants,
    convolutions,
    elementwise,
    moves,
    norms,
    picks,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    signals,
)
from exporter.training.qat.operators.table import Attributes, Node, Operator

__all__ = ["OPERATORS", "Attributes", "Operator", "is_known"]

OPERATORS: dict[str, Operator] = {
    **constants.OPERATORS,
    **convolutions.OPERATORS,
    **elementwise.OPERATORS,
    **moves.OPERATORS,
    **norms.OPERATORS,
    **picks.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **signals.OPERATORS,
}

# Operators with further outputs that only training or unpooling reads; these are not computed.
_FIRST_OUTPUT = frozenset(
    {"AveragePool", "BatchNormalization", "Dropout", "LayerNormalization", "MaxPool", "Attention"}
)


def is_known(node: Node) -> bool:
    """Whether `OPERATORS` can run this node with its attributes."""
    if not is_standard(node) or node.op_type not in OPERATORS:
        return False
    if node.op_type in _FIRST_OUTPUT and any(node.output[1:]):
        return False
    attributes = attributes_of(node)
    if node.op_type in recurrent.OPERATORS:
        return recurrent.is_known(attributes)
    if node.op_type == "Attention":
        return products.is_known_attention(attributes, node.input)
    if node.op_type in {"Cast", "EyeLike"}:
        return constants.is_known_type(attributes)
    return not attributes.get("training_mode")
