"""MatMul with weights of three or more axes: stacked matrices [..., K, N].

ONNX Runtime's kernel multiplies stacked int8 matrices if they share one scale. With a scale for each
channel, which the quantizer would choose, the model is loaded but fails when it runs.

Measured with 4 matrices [128, 128] and 64 rows, one thread, x86-64 with AVX2 without VNNI, CPU time: 0.135
ms in float, 0.086 ms in int8; with 16 matrices [64, 64]: 0.137 and 0.099 ms.
"""

from __future__ import annotations

import onnx

from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex
from exporter.inspection.saturation import Overrides
from exporter.quantization.placement import Placement

_MATRIX_RANK = 2


def unstack_single_matrices(model: onnx.ModelProto) -> None:
    """Make matrices of weights [1, ..., 1, K, N], in place; they can have a scale for each channel.

    This is exact if the activations have at least as many axes, because the result then has the same shape.

    Args:
        model: the float model with stated shapes.
    """
    graph = GraphIndex.of(model.graph)
    for node in graph.nodes:
        if node.op_type != "MatMul" or not is_standard(node):
            continue
        weights, activations = graph.constants.get(node.input[1]), graph.shape(node.input[0])
        if weights is None or activations is None or graph.uses(weights.name) != 1:
            continue
        stack = list(weights.dims[:-_MATRIX_RANK])
        if stack and all(size == 1 for size in stack) and len(activations) >= len(weights.dims):
            del weights.dims[: len(stack)]


def shared_scales(model: onnx.ModelProto, placement: Placement) -> Overrides:
    """Options for the quantizer: one scale for all stacked matrices of a quantized MatMul."""
    graph = GraphIndex.of(model.graph)
    return {
        node.input[1]: [{"symmetric": True}]
        for node in graph.nodes
        if node.op_type == "MatMul" and node.name in placement.nodes
        if len(graph.constants[node.input[1]].dims) > _MATRIX_RANK
    }
