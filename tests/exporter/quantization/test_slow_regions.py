"""Candidates for float, from made-up profiles."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter.inspection.operator_times import OperatorTime
from exporter.quantization.slow_regions import has_int8_products, slow_candidates


def model(nodes):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", 1, [1, 4, 8, 8])],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "w")],
        )
    )


def conversions(tensor):
    """A tensor rounded and back, `<tensor>_dq`."""
    return [
        helper.make_node("QuantizeLinear", [tensor, "s"], [f"{tensor}_q"], name=f"{tensor}_QuantizeLinear"),
        helper.make_node(
            "DequantizeLinear", [f"{tensor}_q", "s"], [f"{tensor}_dq"], name=f"{tensor}_DequantizeLinear"
        ),
    ]


@pytest.fixture
def network():
    return model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("AveragePool", ["r"], ["p"], name="pool", kernel_shape=[1, 1]),
            helper.make_node("Exp", ["p"], ["e"], name="exp"),
            helper.make_node("Conv", ["e", "w"], ["y"], name="last"),
        ]
    )


@pytest.fixture
def quantized():
    weights = helper.make_node("DequantizeLinear", ["w", "s"], ["w_dq"], name="weights")
    return model(
        [
            weights,
            *conversions("x"),
            helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            *conversions("r"),
            helper.make_node("AveragePool", ["r_dq"], ["p"], name="pool", kernel_shape=[1, 1]),
            helper.make_node("Exp", ["p"], ["e"], name="exp"),
            *conversions("e"),
            helper.make_node("Conv", ["e_dq", "w_dq"], ["y"], name="last"),
        ]
    )


def profile(**times):
    return tuple(
        OperatorTime(name=name, op_type=name.rpartition("_")[2], median_us=us, share=0.0)
        for name, us in times.items()
    )


FLOAT = profile(r_nchwc=50.0, p_nchwc=10.0, exp=5.0, last=50.0)


def names(found):
    return [set(one.ratios) for one in found]


def test_a_slow_kernel_is_a_candidate_alone(network, quantized):
    times = profile(conv_token_1=30.0, pool=100.0, exp=5.0, last_token_2=40.0)
    first, *_ = slow_candidates(network, quantized, FLOAT, times)
    assert first.ratios == {"pool": pytest.approx(10.0)}
    assert first.excess_us == pytest.approx(90.0)


def test_an_activation_belongs_to_the_layer_before_it(network, quantized):
    times = profile(conv_token_1=80.0, pool=10.0, exp=5.0, last_token_2=40.0)
    assert names(slow_candidates(network, quantized, FLOAT, times))[0] == {"conv", "relu"}


def test_conversions_count_for_the_region_that_needs_them(network, quantized):
    times = profile(
        conv_token_1=30.0, pool=9.0, exp=5.0, e_QuantizeLinear=30.0, last_token_2=40.0, x_QuantizeLinear=5.0
    )
    assert names(slow_candidates(network, quantized, FLOAT, times)) == [{"last"}]


def test_a_fast_network_has_no_candidates(network, quantized):
    times = profile(conv_token_1=30.0, pool=9.0, exp=5.0, e_QuantizeLinear=1.0, last_token_2=40.0)
    assert slow_candidates(network, quantized, FLOAT, times) == ()
    assert slow_candidates(network, quantized, (), ()) == ()


def test_products_in_int8_are_found(network, quantized):
    assert has_int8_products(quantized)
    assert not has_int8_products(network)
    del quantized.graph.node[0]
    assert not has_int8_products(quantized)
    assert isinstance(quantized, onnx.ModelProto)
