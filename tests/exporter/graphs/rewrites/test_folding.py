"""Scales, shifts and norms of constants become part of the products before and after them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites import FoldAfterPass, FoldBeforePass, GemmPass
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite, operators

RANDOM = np.random.default_rng(0)
# name -> operator, shape of x, shape of the weights, input channels, output channels, attributes, inputs
PRODUCTS = {
    "conv": ("Conv", [2, 4, 6, 6], (6, 4, 3, 3), 4, 6, {}),
    "strided": ("Conv", ["n", 4, 7, 7], (6, 4, 3, 3), 4, 6, {"strides": [2, 2], "dilations": [2, 2]}),
    "grouped": ("Conv", [2, 4, 6, 6], (6, 2, 3, 3), 4, 6, {"group": 2}),
    "depthwise": ("Conv", [2, 4, 6, 6], (4, 1, 3, 3), 4, 4, {"group": 4}),
    "series": ("Conv", [2, 4, 9], (6, 4, 3), 4, 6, {}),
    "volume": ("Conv", [2, 4, 3, 4, 5], (6, 4, 2, 2, 2), 4, 6, {}),
    "transposed": ("ConvTranspose", [2, 4, 5, 5], (4, 3, 3, 3), 4, 6, {"group": 2, "strides": [2, 2]}),
    "gemm": ("Gemm", ["n", 4], (4, 6), 4, 6, {}),
    "gemm of rows": ("Gemm", [3, 4], (6, 4), 4, 6, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "matmul": ("MatMul", ["n", 5, 4], (4, 6), 4, 6, {}),
    "matmul of a matrix": ("MatMul", [3, 4], (4, 6), 4, 6, {}),
}
STEPS = ("add", "add before", "sub", "sub from", "mul", "mul number", "div", "div number", "neg", "norm")


def affine(step, source, out, shape, constants):
    """One operator that scales and shifts, and its constants."""
    name, norm = f"c_{out}", [f"{part}_{out}" for part in ("gain", "bias", "mean", "variance")]
    if step == "norm":
        for part in norm:
            constants[part] = RANDOM.random(shape).reshape(-1) + 0.5
        return ("BatchNormalization", [source, *norm], out, {"epsilon": 0.1})
    if step == "neg":
        return ("Neg", [source], out, {})
    constants[name] = np.float32(1.5) if "number" in step else RANDOM.random(shape) + 0.5
    order = [name, source] if "before" in step or "from" in step else [source, name]
    return (step.split()[0].capitalize(), order, out, {})


def case(product, before=(), after=(), *, biased=False, shape=None, **attributes):
    """Steps, product, steps; `shape` is that of the constants, one number for each channel by default."""
    kind, x, weight, inputs, outputs, more = PRODUCTS[product]
    rank, constants, steps, value = len(x), {"w": RANDOM.standard_normal(weight)}, [], "x"

    def apply(chain, channels, label):
        nonlocal value
        axis = [channels] if kind in {"Gemm", "MatMul"} else [channels, *[1] * (rank - 2)]
        for index, step in enumerate(chain):
            out = f"{label}{index}"
            steps.append(affine(step, value, out, axis if shape is None else shape, constants))
            value = out

    apply(before, inputs, "b")
    if biased:
        constants["bias"] = RANDOM.standard_normal(outputs)
    steps.append((kind, [value, "w", *["bias"] * biased], "p", {**more, **attributes}))
    value = "p"
    apply(after, outputs, "a")
    last = steps[-1]
    steps[-1] = (last[0], last[1], "y", last[3])
    size = [2 if isinstance(axis, str) else axis for axis in x]
    return build(steps, constants, x), RANDOM.standard_normal(size).astype(np.float32)


def left(product, *, biased):
    kind, x, *_ = PRODUCTS[product]
    if kind == "MatMul" and biased:
        return ["Gemm"] if len(x) == 2 else ["MatMul", "Add"]
    return [kind]


REWRITES = (FoldAfterPass(), FoldBeforePass(), GemmPass(), RemoveUnusedNodesPass())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_step_after_a_product_is_folded(product, step):
    kind = PRODUCTS[product][0]
    if step == "norm" and product == "matmul":
        pytest.skip("BatchNormalization of three axes normalizes axis 1, which is not the channels")
    model, x = case(product, after=[step], biased=kind not in {"MatMul"})
    shifts = kind != "MatMul" or step in {"add", "add before", "sub", "sub from", "norm"}
    assert check_rewrite(model, REWRITES, x) == left(product, biased=shifts)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_step_before_a_product_is_folded(product, step):
    kind = PRODUCTS[product][0]
    shifts = step in {"add", "add before", "sub", "sub from", "norm"}
    if step == "norm" and product == "matmul":
        pytest.skip("BatchNormalization of three axes normalizes axis 1, which is not the channels")
    model, x = case(product, before=[step])
    expected = left(product, biased=shifts)
    if shifts and kind == "ConvTranspose":
        expected = [operators(model)[0], "ConvTranspose"]
    assert check_rewrite(model, REWRITES, x) == expected


@pytest.mark.parametrize("product", ["conv", "grouped", "gemm of rows", "matmul of a matrix"])
def test_whole_chains_are_folded(product):
    model, x = case(product, before=["sub", "div", "norm"], after=["add", "mul", "norm", "add"])
    assert check_rewrite(model, REWRITES, x) == left(product, biased=True)


@pytest.mark.parametrize("shape", [[], [1], [1, 1, 1, 1], [6, 1, 1], [1, 6, 1, 1]])
def test_constants_of_all_broadcast_shapes_are_folded(shape):
    model, x = case("conv", after=["add", "mul"], shape=shape)
    assert check_rewrite(model, REWRITES, x) == ["Conv"]


@pytest.mark.parametrize(
    "pads", [{"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}]
)
def test_zeros_around_a_picture_are_not_shifted(pads):
    model, x = case("conv", before=["mul"], **pads)
    assert check_rewrite(model, REWRITES, x) == ["Conv"]
    model, x = case("conv", before=["add"], **pads)
    assert check_rewrite(model, REWRITES, x) == ["Add", "Conv"]


@pytest.mark.parametrize("shape", [[6], [4, 4], [6, 1, 4], [1, 1, 6, 1, 1], [2, 6, 1, 1]])
def test_constants_that_differ_along_other_axes_are_left_alone(shape):
    if shape == [6]:
        PRODUCTS["wide"] = ("Conv", [2, 4, 8, 8], (6, 4, 3, 3), 4, 6, {})
    model, x = case("wide" if shape == [6] else "conv", after=["add"], shape=shape)
    assert check_rewrite(model, REWRITES, x) == ["Conv", "Add"]


def test_a_constant_that_broadcasts_one_channel_to_many_is_left_alone():
    constants = {"c": RANDOM.random((1, 3, 1, 1)), "w": RANDOM.random((5, 3, 2, 2))}
    steps = [("Mul", ["x", "c"], "b", {}), ("Conv", ["b", "w"], "y", {})]
    x = RANDOM.random((2, 1, 4, 4)).astype(np.float32)
    assert check_rewrite(build(steps, constants, ["n", 1, 4, 4]), REWRITES, x) == ["Mul", "Conv"]
    unknown = build(steps, constants, ["n", "c", 4, 4])
    assert check_rewrite(unknown, REWRITES, x) == ["Mul", "Conv"]


def test_a_result_with_other_readers_is_kept():
    constants = {"w": RANDOM.random((4, 4, 1, 1)), "c": RANDOM.random((4, 1, 1))}
    steps = [("Conv", ["x", "w"], "p", {}), ("Add", ["p", "c"], "a", {}), ("Mul", ["a", "p"], "y", {})]
    x = RANDOM.random((2, 4, 3, 3)).astype(np.float32)
    assert check_rewrite(build(steps, constants, list(x.shape)), REWRITES, x) == ["Conv", "Add", "Mul"]
    steps = [("Conv", ["x", "w"], "p", {}), ("Add", ["p", "c"], "y", {})]
    both = build(steps, constants, list(x.shape), outputs=("y", "p"))
    assert check_rewrite(both, REWRITES, x) == ["Conv", "Add"]


def test_a_step_before_several_products_is_folded_into_all_or_none():
    constants = {"v": RANDOM.random((4, 3)), "w": RANDOM.random((4, 3)), "c": RANDOM.random(4)}
    steps = [("Mul", ["x", "c"], "b", {}), *((("MatMul", ["b", name], f"p_{name}", {})) for name in "vw")]
    x = RANDOM.random((2, 5, 4)).astype(np.float32)
    model = build([*steps, ("Add", ["p_v", "p_w"], "y", {})], constants, ["n", 5, 4])
    assert check_rewrite(model, REWRITES, x) == ["MatMul", "MatMul", "Add"]
    model = build([*steps, ("Add", ["p_v", "p_w"], "y", {})], constants, ["n", 5, 4], outputs=("y", "b"))
    assert check_rewrite(model, REWRITES, x) == ["Mul", "MatMul", "MatMul", "Add"]


def test_shared_weights_are_copied():
    constants = {"w": RANDOM.random((4, 4)), "c": RANDOM.random(4), "d": RANDOM.random(4)}
    steps = [
        ("MatMul", ["x", "w"], "p", {}),
        ("Mul", ["p", "c"], "q", {}),
        ("Add", ["q", "d"], "r", {}),
        ("MatMul", ["r", "w"], "s", {}),
        ("Add", ["s", "d"], "y", {}),
    ]
    x = RANDOM.random((2, 4)).astype(np.float32)
    assert check_rewrite(build(steps, constants, ["n", 4]), REWRITES, x) == ["Gemm", "Gemm"]


@pytest.mark.parametrize("value", [0.0, 1e-39, np.nan])
def test_steps_without_a_finite_result_are_left_alone(value):
    constants = {"w": 1e3 * RANDOM.random((4, 4)), "c": np.float32(value)}
    steps = [("MatMul", ["x", "w"], "p", {}), ("Div", ["p", "c"], "q", {}), ("Relu", ["q"], "y", {})]
    model = build(steps, constants, ["n", 4])
    for rewrite in REWRITES:
        rewrite(model)
    assert operators(model) == ["MatMul", "Div", "Relu"]


def test_computed_weights_and_biases_are_left_alone():
    constants = {"c": RANDOM.random(4)}
    steps = [("Transpose", ["x"], "t", {}), ("MatMul", ["x", "t"], "p", {}), ("Mul", ["p", "c"], "y", {})]
    x = RANDOM.random((4, 4)).astype(np.float32)
    assert check_rewrite(build(steps, constants, [4, 4]), REWRITES, x) == ["Transpose", "MatMul", "Mul"]
    constants["w"] = RANDOM.random((4, 4))
    steps = [("Gemm", ["x", "w", "x"], "p", {}), ("Mul", ["p", "c"], "y", {})]
    assert check_rewrite(build(steps, constants, [4, 4]), REWRITES, x) == ["Gemm", "Mul"]


@pytest.mark.parametrize("inside", ["Erf", "Tanh", "Sqrt", "Sigmoid"])
def test_the_end_of_a_decomposed_activation_or_norm_is_kept(inside):
    constants = {"w": RANDOM.random((4, 3)), "c": np.float32(0.5)}
    steps = [
        (inside, ["x"], "e", {}),
        ("Mul", ["x", "e"], "m", {}),
        ("Mul", ["m", "c"], "h", {}),
        ("MatMul", ["h", "w"], "y", {}),
    ]
    x = RANDOM.random((2, 4)).astype(np.float32)
    assert check_rewrite(build(steps, constants, ["n", 4]), REWRITES, x) == [inside, "Mul", "Mul", "MatMul"]


def test_the_bias_of_a_product_is_not_moved_to_the_next_product():
    constants = {"v": RANDOM.random((4, 4)), "c": RANDOM.random(4), "w": RANDOM.random((4, 3))}
    steps = [("MatMul", ["x", "v"], "p", {}), ("Add", ["p", "c"], "a", {}), ("MatMul", ["a", "w"], "y", {})]
    x = RANDOM.random((2, 5, 4)).astype(np.float32)
    assert check_rewrite(build(steps, constants, ["n", 5, 4]), REWRITES, x) == ["MatMul", "Add", "MatMul"]


def test_nodes_keep_their_names():
    model, _ = case("matmul", after=["add", "mul"])
    FoldAfterPass()(model)
    assert [node.name for node in model.graph] == ["n_p", "n_a0"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert isinstance(model, ir.Model)
