"""Turn constants that nodes make into initializers.

Paddle, tf2onnx and torch.onnx write weights as `Constant` nodes, or share them through `Identity`. Folding,
placement and ONNX Runtime's quantizer look for weights among the initializers: a BatchNormalization whose
parameters are `Constant` nodes is not folded (94 of them in one recognition network).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import remove_nodes, rename_reads

_TYPES = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn results of `Constant` nodes into initializers, and read copies of initializers directly.

    Results that are outputs of the graph, texts and sparse tensors do not change. Bodies of control flow
    read the initializers; constants inside them do not change.

    Args:
        graph: the main graph, changed in place.
    """
    outputs = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    same: dict[str, str] = {}
    gone = []
    for node in graph.node:
        if not is_standard(node) or node.output[0] in outputs:
            continue
        tensor = _tensor_of(node) if node.op_type == "Constant" else None
        if tensor is not None:
            graph.initializer.append(tensor)
            constants.add(tensor.name)
            gone.append(node)
        elif node.op_type == "Identity" and (source := same.get(node.input[0], node.input[0])) in constants:
            same[node.output[0]] = source
            gone.append(node)
    rename_reads(graph.node, same)
    remove_nodes(graph, gone)


def _tensor_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node, named like its result; None for texts and sparse tensors."""
    (attribute,) = node.attribute
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return None if tensor.data_type == onnx.TensorProto.STRING else tensor
    if attribute.name not in _TYPES:
        return None
    value: Array = np.array(onnx.helper.get_attribute_value(attribute), _TYPES[attribute.name])
    return numpy_helper.from_array(value, node.output[0])
