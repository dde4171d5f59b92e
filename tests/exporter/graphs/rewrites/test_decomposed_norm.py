"""Norms written as several operators become one operator of ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.inference import open_model, session_options
from exporter.graphs.rewrites import DecomposedNormPass, ResidualNormPass
from exporter.graphs.simplify import simplify
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite

REWRITES = (DecomposedNormPass(), RemoveUnusedNodesPass(), ResidualNormPass())
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 8)).astype(np.float32)
CONSTANTS = {
    "gain": RANDOM.standard_normal(8),
    "bias": RANDOM.standard_normal(8),
    "row": RANDOM.standard_normal((3, 1)),
    "epsilon": np.float32(1e-3),
    "one": np.float32(1),
    "two": np.float32(2),
    "four": np.float32(4),
    "half": np.float32(0.5),
    "minus": np.float32(-0.5),
    "last": np.array([-1]),
    "third": np.array([2]),
    "both": np.array([1, 2]),
}
SQUARES = {"pow": ("Pow", ["c", "two"]), "mul": ("Mul", ["c", "c"])}
ENDS = {
    "divided": [("Sqrt", ["e"], "r", {}), ("Div", ["c", "r"], "n", {})],
    "root as power": [("Pow", ["e", "half"], "r", {}), ("Div", ["c", "r"], "n", {})],
    "reciprocal": [("Sqrt", ["e"], "s", {}), ("Reciprocal", ["s"], "r", {}), ("Mul", ["r", "c"], "n", {})],
    "one over": [("Sqrt", ["e"], "s", {}), ("Div", ["one", "s"], "r", {}), ("Mul", ["c", "r"], "n", {})],
    "negative power": [("Pow", ["e", "minus"], "r", {}), ("Mul", ["c", "r"], "n", {})],
    "gain first": [("Sqrt", ["e"], "r", {}), ("Mul", ["gain", "c"], "g", {}), ("Div", ["g", "r"], "n", {})],
}
AFFINE = {
    "gain and bias": [("Mul", ["n", "gain"], "k", {}), ("Add", ["bias", "k"], "y", {})],
    "gain": [("Mul", ["gain", "n"], "y", {})],
    "nothing": [("Identity", ["n"], "y", {})],
}


def norm(square, end, affine, *, centred, opset=17, axes="last", keepdims=1):
    """A norm of the residual sum `h` of x and a Tanh."""

    def mean(source, result):
        if opset < 18:
            axis = CONSTANTS[axes].tolist()
            return ("ReduceMean", [source], result, {"axes": axis, "keepdims": keepdims})
        return ("ReduceMean", [source, axes], result, {"keepdims": keepdims})

    kind, inputs = SQUARES[square]
    steps = [
        ("Tanh", ["x"], "t", {}),
        ("Add", ["x", "t"], "h", {}),
        *([mean("h", "m"), ("Sub", ["h", "m"], "c", {})] if centred else []),
        (kind, inputs, "q", {}),
        mean("q", "v"),
        ("Add", ["epsilon", "v"], "e", {}),
        *ENDS[end],
        *AFFINE[affine],
    ]
    if not centred:
        steps = [(op, ["h" if n == "c" else n for n in ins], out, more) for op, ins, out, more in steps]
    return build(steps, CONSTANTS, ["n", 3, 8], opset=opset)


def optimized(model, tmp_path):
    """The operators that ONNX Runtime runs."""
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    open_model(ir.to_proto(model), options)
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("square", SQUARES)
def test_a_layer_norm_is_one_operator(tmp_path, square, end, affine):
    model = norm(square, end, affine, centred=True)
    found = [op for op in check_rewrite(model, REWRITES, X) if op != "Identity"]
    # The operator has one gain: a second one, after the division, stays apart.
    second = {"gain and bias": ["Mul", "Add"], "gain": ["Mul"], "nothing": []}[affine]
    assert found == ["Tanh", "Sum", "LayerNormalization", *(second if end == "gain first" else [])]
    assert optimized(model, tmp_path)["SkipLayerNormalization"] == 0


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("opset", [14, 18])
def test_an_rms_norm_is_one_operator_of_onnx_runtime(tmp_path, square, end, affine, opset):
    model = norm(square, end, affine, centred=False, opset=opset)
    check_rewrite(model, REWRITES, X)
    assert optimized(model, tmp_path)["SimplifiedLayerNormalization"] == 1


@pytest.mark.parametrize(("opset", "axes"), [(17, "third"), (18, "last"), (20, "third"), (22, "last")])
def test_axes_of_all_opsets_are_understood(opset, axes):
    model = norm("mul", "reciprocal", "gain and bias", centred=True, opset=opset, axes=axes)
    assert check_rewrite(model, REWRITES, X) == ["Tanh", "Sum", "LayerNormalization"]


def test_a_second_difference_is_the_same_tensor_after_simplification():
    steps = [
        ("ReduceMean", ["x"], "m", {"axes": [-1]}),
        ("Sub", ["x", "m"], "d", {}),
        ("Sub", ["x", "m"], "c", {}),
        ("Mul", ["c", "c"], "q", {}),
        ("ReduceMean", ["q"], "v", {"axes": [-1]}),
        ("Add", ["v", "epsilon"], "e", {}),
        ("Sqrt", ["e"], "r", {}),
        ("Div", ["d", "r"], "y", {}),
    ]
    model = build(steps, CONSTANTS, ["n", 3, 8])
    assert check_rewrite(model, (simplify, *REWRITES), X) == ["LayerNormalization"]


def test_a_tensor_with_other_readers_stays():
    model = norm("mul", "divided", "gain", centred=True)
    difference = next(node.outputs[0] for node in model.graph if node.op_type == "Sub")
    model.graph.outputs.append(difference)
    assert "LayerNormalization" in check_rewrite(model, REWRITES, X)
    assert "Sub" in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ("Sqrt", {"opset": 16}),  # LayerNormalization is newer
        ("Sqrt", {"axes": "both"}),
        ("fourth power", {}),
        ("another divisor", {}),
        ("another mean", {}),
        ("unknown size", {}),
    ],
)
def test_other_arithmetic_is_left_alone(change, more):
    model = norm("pow", "divided", "gain", centred=True, **more)
    nodes = {node.op_type: node for node in model.graph}
    if change == "fourth power":
        nodes["Pow"].replace_input_with(1, model.graph.initializers["four"])
    elif change == "another divisor":
        nodes["Div"].replace_input_with(0, nodes["Tanh"].outputs[0])
    elif change == "another mean":
        first = next(node for node in model.graph if node.op_type == "ReduceMean")
        first.replace_input_with(0, nodes["Tanh"].outputs[0])
    elif change == "unknown size":
        nodes["Sub"].outputs[0].shape = None
    assert "LayerNormalization" not in check_rewrite(model, REWRITES, X)


def test_a_gain_for_each_row_stays_apart():
    model = norm("mul", "divided", "gain", centred=True)
    product = next(node for node in model.graph if node.op_type == "Mul" and node.outputs[0].name == "y")
    product.replace_input_with(0, model.graph.initializers["row"])
    assert check_rewrite(model, REWRITES, X)[-2:] == ["LayerNormalization", "Mul"]
