"""Convolutions that are slower in int8 than in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.errors import ExportError
from exporter.graphs.slow_kernels import slow_in_int8, slow_nodes
from exporter.graphs.targets import TARGETS
from exporter.quantization.qdq import plan_qdq


@pytest.mark.parametrize(
    ("weights", "groups", "slow"),
    [
        ((16, 3, 3, 3), 1, False),  # the first convolution of a network for pictures
        ((64, 8, 3, 3), 8, True),
        ((64, 8, 1, 1), 8, True),
        ((64, 8, 5), 8, True),
        ((64, 16, 3, 3), 4, False),
        ((32, 1, 3, 3), 32, False),  # depthwise
        ((32, 1, 9), 32, False),
        ((32, 1, 3, 3, 3), 32, False),
        ((64, 1, 3, 3), 32, True),  # two results for each channel
        ((16, 3, 3, 3, 3), 1, True),
        ((16, 15, 1, 1, 1), 1, True),
        ((16, 16, 3, 3, 3), 1, False),
    ],
)
def test_few_channels_in_a_group_are_slow(weights, groups, slow):
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    assert (slow_in_int8(node, weights) is not None) == slow


def test_other_operators_are_not_slow():
    assert (
        slow_in_int8(onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2), (4, 2, 3)) is None
    )
    own = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=2, domain="own")
    assert slow_in_int8(own, (4, 2, 3)) is None


def grouped(body):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y)'
        f" {{ {body} }}"
    )
    for name, shape in {"w": (8, 8, 1, 1), "v": (8, 2, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def test_slow_convolutions_stay_in_float_between_fast_ones():
    model = grouped("a = Conv(x, w)  b = Conv<group = 4>(a, v)  y = Conv(b, w)")
    assert slow_nodes(model) == ("b",)
    assert plan_qdq(model, TARGETS["x86-vnni"]).options.placement.nodes == {"a", "y"}


def test_a_network_of_slow_convolutions_is_refused():
    with pytest.raises(ExportError, match="nothing that is faster in int8"):
        plan_qdq(grouped("a = Conv<group = 4>(x, v)  y = Conv<group = 4>(a, v)"), TARGETS["x86-vnni"])
