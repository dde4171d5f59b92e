"""Convolutions whose int8 kernel in ONNX Runtime is slower than their float kernel."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex

# Input channels of a group from which on the int8 kernels are faster.
_ENOUGH_CHANNELS = 16
_CONV3D_RANK = 5


def slow_in_int8(node: onnx.NodeProto, weights: Sequence[int]) -> str | None:
    """The reason why a convolution is slower in int8 than in float; None if no reason is known.

    The int8 kernels first copy the window of each output value of each group. With few channels, this costs
    more than the products. Depthwise convolutions have an int8 kernel without this copy.

    Measured with ONNX Runtime 1.32, one thread, x86-64 with AVX2 without VNNI, CPU time in int8 / in float:
    kernels of 3 x 3 with 2, 4, 8, 16 and 32 channels in each group 5.6, 2.9, 1.9, 1.1 and 0.8; depthwise
    with two results for each channel 11; Conv3d with 3, 8, 16 and 32 channels 4.9, 2.2, 0.8 and 0.5. Two
    blocks of a ResNeXt with 4 and 8 channels in each group: 4.4 and 2.8 ms with all convolutions in int8,
    2.6 and 2.4 ms with the grouped ones in float, 3.5 and 3.1 ms in float. With AVX512-VNNI, groups of 2,
    4, 8 and 16 channels: 3.4, 1.8, 1.0 and 0.8.

    Args:
        node: the operator.
        weights: shape of its weights, [outputs, inputs / groups, ...].
    """
    if node.op_type != "Conv" or not is_standard(node):
        return None
    outputs, channels = weights[:2]
    groups = int(attributes_of(node).get("group", 1))
    few = channels < _ENOUGH_CHANNELS
    if few and groups > 1 and not (channels == 1 and outputs == groups):
        return f"its int8 kernel is slower: only {channels} input channels in each of {groups} groups"
    if few and groups == 1 and len(weights) == _CONV3D_RANK:
        return f"its int8 kernel is slower: three spatial axes and only {channels} input channels"
    return None


def slow_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of all operators with constant weights that are slower in int8, in graph order."""
    graph = GraphIndex.of(model.graph)
    return tuple(
        node.name
        for node in graph.nodes
        if len(node.input) > 1 and node.input[1] in graph.constants
        if slow_in_int8(node, graph.constants[node.input[1]].dims) is not None
    )
