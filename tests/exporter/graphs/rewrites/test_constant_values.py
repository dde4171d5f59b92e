"""Values that do not depend on the input are computed once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites import ConstantValuesPass
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite, operators

REWRITES = (ConstantValuesPass(), RemoveUnusedNodesPass())
TABLE = np.random.default_rng(0).standard_normal((1, 8, 3, 3))
LAST = 2**62
# How exporters read height and width of x [batch, 8, 4, 6] as int64 [2], with the constants that they need.
SIZES = {
    "gather": ([("Shape", ["x"], "s", {}), ("Gather", ["s", "places"], "hw", {})], {"places": [2, 3]}),
    "from the end": (
        [("Shape", ["x"], "s", {}), ("Gather", ["s", "places"], "hw", {})],
        {"places": [-2, -1]},
    ),
    "slice": (
        [("Shape", ["x"], "s", {}), ("Slice", ["s", "two", "last"], "hw", {})],
        {"two": [2], "last": [LAST]},
    ),
    "part": ([("Shape", ["x"], "hw", {"start": 2})], {}),
    "one by one": (
        [
            ("Shape", ["x"], "s", {}),
            ("Gather", ["s", "two"], "h0", {}),
            ("Gather", ["s", "three"], "w0", {}),
            ("Unsqueeze", ["h0", "axis"], "h", {}),
            ("Unsqueeze", ["w0", "axis"], "w", {}),
            ("Concat", ["h", "w"], "hw", {"axis": 0}),
        ],
        {"two": 2, "three": 3, "axis": [0]},
    ),
    "computed": (
        [
            ("Shape", ["x"], "s", {}),
            ("Slice", ["s", "two", "last"], "big", {}),
            ("Mul", ["big", "four"], "more", {}),
            ("Div", ["more", "four"], "hw", {}),
        ],
        {"two": [2], "last": [LAST], "four": 4},
    ),
    "int32": (
        [
            ("Shape", ["x"], "s", {}),
            ("Cast", ["s"], "narrow", {"to": 6}),
            ("Slice", ["narrow", "two", "last"], "part", {}),
            ("Cast", ["part"], "hw", {"to": 7}),
        ],
        {"two": [2], "last": [1000]},
    ),
    "after a node": (
        [("Relu", ["x"], "r", {}), ("Shape", ["r"], "s", {}), ("Gather", ["s", "places"], "hw", {})],
        {"places": [2, 3]},
    ),
}


def resized(sizes, **more):
    """A table of positions, resized to the size of x and added to it."""
    steps, constants = SIZES[sizes]
    steps = [
        *steps,
        ("Concat", ["lead", "hw"], "size", {"axis": 0}),
        ("Resize", ["table", "", "", "size"], "resized", {"mode": "cubic"}),
        ("Add", ["x", "resized"], "y", {}),
    ]
    constants = {name: np.array(value, np.int64) for name, value in constants.items()}
    return build(steps, {**constants, "lead": np.array([1, 8], np.int64), "table": TABLE}, **more)


X = np.random.default_rng(1).standard_normal((2, 8, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_table_resized_to_known_axes_becomes_a_constant(sizes):
    model = resized(sizes, shape=["batch", 8, 4, 6])
    assert check_rewrite(model, REWRITES, X) == ["Add"]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_table_resized_to_an_open_axis_is_computed_in_every_run(sizes):
    model = resized(sizes, shape=["batch", 8, "height", 6])
    assert "Resize" in check_rewrite(model, REWRITES, X)


def test_open_and_known_axes_of_a_shape_are_told_apart():
    steps = [
        ("Shape", ["x"], "s", {}),
        ("Gather", ["s", "zero"], "n", {}),
        ("Gather", ["s", "one"], "c", {}),
        ("Concat", ["n", "c", "rest"], "size", {"axis": 0}),
        ("Reshape", ["x", "size"], "y", {}),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([24])}
    model = build(steps, constants, ["batch", 8, 4, 6])
    assert check_rewrite(model, REWRITES, X) == ["Shape", "Gather", "Concat", "Reshape"]


@pytest.mark.parametrize(
    "step",
    [
        ("RandomNormalLike", ["table"], "c", {}),
        ("ConstantOfShape", ["large"], "c", {}),
        ("Expand", ["one", "large"], "c", {}),
        ("DequantizeLinear", ["bytes", "one"], "c", {}),
    ],
    ids=["random", "large", "broadcast", "bytes"],
)
def test_values_that_are_random_large_or_bytes_are_kept(step):
    constants = {
        "table": np.ones((4, 6)),
        "large": np.array([10**9, 8, 4, 6]),
        "one": np.float32(1),
        "bytes": np.ones((4, 6), np.uint8),
    }
    model = build([step, ("Add", ["x", "c"], "y", {})], constants, ["batch", 8, 4, 6])
    ConstantValuesPass()(model)
    assert operators(model) == [step[0], "Add"]


def test_a_division_of_integers_by_zero_is_kept():
    steps = [("Div", ["a", "zero"], "c", {}), ("Cast", ["c"], "f", {"to": 1}), ("Add", ["x", "f"], "y", {})]
    model = build(steps, {"a": np.array([1]), "zero": np.array([0])}, ["batch", 1])
    ConstantValuesPass()(model)
    assert operators(model) == ["Div", "Cast", "Add"]


def test_weights_computed_from_constants_become_constants():
    steps = [
        ("Transpose", ["w"], "t", {}),
        ("Cast", ["t"], "wide", {"to": 1}),
        ("MatMul", ["x", "wide"], "p", {}),
        ("Sqrt", ["one"], "same", {}),
        ("Mul", ["p", "same"], "y", {}),
    ]
    model = build(steps, {"w": np.ones((3, 4), np.float16), "one": np.float32(1)}, ["batch", 4])
    x = np.ones((2, 4), np.float32)
    assert check_rewrite(model, REWRITES, x) == ["MatMul", "Mul"]


def test_a_constant_output_keeps_its_node():
    steps = [("Sqrt", ["c"], "z", {}), ("Relu", ["x"], "y", {})]
    model = build(steps, {"c": np.ones(3)}, ["batch", 4], outputs=("y", "z"))
    assert check_rewrite(model, REWRITES, np.ones((2, 4), np.float32)) == ["Sqrt", "Relu"]
    assert not ConstantValuesPass()(model).modified
    assert isinstance(model, ir.Model)
