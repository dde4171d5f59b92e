"""A product with a constant on the left becomes a convolution."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites import ConstantMatMulPass, FoldAfterPass
from exporter.graphs.targets import find_target
from exporter.quantization.qdq import plan_qdq
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite

REWRITES = (ConstantMatMulPass(), FoldAfterPass(), RemoveUnusedNodesPass())
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4)])
def test_a_layer_over_rows_is_a_convolution_with_its_bias(shape):
    steps = [("MatMul", ["w", "x"], "p", {}), ("Add", ["p", "bias"], "y", {})]
    constants = {"w": RANDOM.standard_normal(shape), "bias": RANDOM.standard_normal((6, 1))}
    model = build(steps, constants, ["n", 4, 5])
    assert check_rewrite(model, REWRITES, X) == ["Conv"]
    assert plan_qdq(ir.to_proto(model), find_target("x86-avx2")).options.placement.nodes == {"n_p"}


def test_a_bias_for_each_column_stays_apart():
    steps = [("MatMul", ["w", "x"], "p", {}), ("Add", ["p", "bias"], "y", {})]
    constants = {"w": RANDOM.standard_normal((6, 4)), "bias": RANDOM.standard_normal(5)}
    assert check_rewrite(build(steps, constants, ["n", 4, 5]), REWRITES, X) == ["Conv", "Add"]


def test_shared_weights_are_copied():
    steps = [
        ("MatMul", ["w", "x"], "p", {}),
        ("MatMul", ["p", "v"], "q", {}),
        ("MatMul", ["w", "q"], "y", {}),
    ]
    constants = {"w": RANDOM.standard_normal((4, 4)), "v": RANDOM.standard_normal((5, 5))}
    assert check_rewrite(build(steps, constants, ["n", 4, 5]), REWRITES, X) == ["Conv", "MatMul", "Conv"]


@pytest.mark.parametrize(
    ("left", "x"), [((2, 6, 4), (2, 4, 5)), ((6, 4), (4, 5)), ((6, 4), (2, 3, 4, 5)), ((4,), (2, 4, 5))]
)
def test_other_shapes_are_left_alone(left, x):
    model = build([("MatMul", ["w", "x"], "y", {})], {"w": RANDOM.standard_normal(left)}, list(x))
    assert check_rewrite(model, REWRITES, RANDOM.standard_normal(x).astype(np.float32)) == ["MatMul"]


def test_a_product_of_the_input_and_a_constant_is_left_alone():
    model = build([("MatMul", ["x", "w"], "y", {})], {"w": RANDOM.standard_normal((2, 5, 6))}, [2, 4, 5])
    assert check_rewrite(model, REWRITES, X) == ["MatMul"]
