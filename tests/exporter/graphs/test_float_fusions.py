"""Decomposed activations and norms stay in float, because ONNX Runtime fuses them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporter.graphs.float_fusions import float_fusions
from exporter.graphs.targets import find_target
from exporter.quantization.qdq import plan_qdq
from tests.exporter.graphs.rewrites.graphs_by_hand import build

CONSTANTS = {
    "v": np.ones((8, 8)),
    "w": np.ones((8, 8)),
    "bias": np.arange(8.0),
    "root2": np.float32(1.4142135),
    "inverse": np.float32(0.70710678),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "two": np.float32(2),
    "cubic": np.float32(0.044715),
    "slope": np.float32(0.7978845),
    "epsilon": np.float32(1e-5),
    "gain": np.arange(8.0) + 1,
    "last": np.array([-1]),
}
ERF = [("Div", ["h", "root2"], "a", {}), ("Erf", ["a"], "b", {}), ("Add", ["b", "one"], "c", {})]
TANH = [
    ("Mul", ["cubic", "p"], "q", {}),
    ("Add", ["h", "q"], "r", {}),
    ("Mul", ["r", "slope"], "s", {}),
    ("Tanh", ["s"], "b", {}),
    ("Add", ["one", "b"], "c", {}),
]
TAILS = {
    "half last": [("Mul", ["h", "c"], "d", {}), ("Mul", ["d", "half"], "z", {})],
    "half first": [("Mul", ["h", "half"], "d", {}), ("Mul", ["d", "c"], "z", {})],
    "half on the curve": [("Mul", ["half", "c"], "d", {}), ("Mul", ["h", "d"], "z", {})],
}
HEADS = {
    "erf": ERF,
    "erf of a product": [("Mul", ["h", "inverse"], "a", {}), *ERF[1:]],
    "tanh": [("Pow", ["h", "three"], "p", {}), *TANH],
    "tanh of products": [("Mul", ["h", "h"], "o", {}), ("Mul", ["o", "h"], "p", {}), *TANH],
}
CENTRE = [("ReduceMean", ["h"], "m", {"axes": [-1]}), ("Sub", ["h", "m"], "d", {})]
ENDS = {
    "divided": [("Sqrt", ["e"], "f", {}), ("Div", ["DIFF", "f"], "g", {})],
    "inverted": [("Sqrt", ["e"], "f", {}), ("Reciprocal", ["f"], "i", {}), ("Mul", ["DIFF", "i"], "g", {})],
    "one over": [("Sqrt", ["e"], "f", {}), ("Div", ["one", "f"], "i", {}), ("Mul", ["i", "DIFF"], "g", {})],
}


def norm(centred, end, biased):
    source = "d" if centred else "h"
    last = [("Mul", ["gain", "g"], "z" if not biased else "k", {})]
    return [
        *(CENTRE if centred else []),
        ("Pow", [source, "two"], "u", {}),
        ("ReduceMean", ["u"], "t", {"axes": [-1]}),
        ("Add", ["t", "epsilon"], "e", {}),
        *((kind, [source if n == "DIFF" else n for n in ins], out, more) for kind, ins, out, more in end),
        *last,
        *([("Add", ["k", "bias"], "z", {})] if biased else []),
    ]


def between_products(steps):
    """MatMul, Add of a bias, steps from h to z, MatMul."""
    first = [("MatMul", ["x", "v"], "l", {}), ("Add", ["l", "bias"], "h", {})]
    return ir.to_proto(build([*first, *steps, ("MatMul", ["z", "w"], "y", {})], CONSTANTS, ["n", 4, 8]))


def check_in_float(steps):
    model = between_products(steps)
    parts = {f"n_{out}" for _, _, out, _ in steps}
    assert float_fusions(model) == parts
    placed = plan_qdq(model, find_target("x86-avx2")).options.placement.nodes
    assert {"n_l", "n_y"} <= placed
    assert not placed & parts


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("head", HEADS)
def test_no_part_of_a_gelu_is_quantized(head, tail):
    check_in_float([*HEADS[head], *TAILS[tail]])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("centred", "biased"), [(True, True), (False, False), (True, False)])
def test_no_part_of_a_norm_is_quantized(end, centred, biased):
    check_in_float(norm(centred, ENDS[end], biased))


SILU = [("Sigmoid", ["h"], "b", {}), ("Mul", ["b", "h"], "z", {})]
QUICK = [("Mul", ["h", "slope"], "a", {}), ("Sigmoid", ["a"], "b", {}), ("Mul", ["h", "b"], "z", {})]


@pytest.mark.parametrize("steps", [SILU, QUICK], ids=["silu", "quick gelu"])
def test_no_part_of_a_silu_after_a_matrix_product_is_quantized(steps):
    check_in_float(steps)


def test_all_of_a_silu_after_a_convolution_is_quantized():
    steps = [
        ("Conv", ["x", "k"], "h", {}),
        ("Sigmoid", ["h"], "b", {}),
        ("Mul", ["h", "b"], "z", {}),
        ("Conv", ["z", "k"], "y", {}),
    ]
    model = ir.to_proto(build(steps, {"k": np.ones((4, 4, 1))}, ["n", 4, 8]))
    assert float_fusions(model) == frozenset()
    assert {"n_b", "n_z"} <= plan_qdq(model, find_target("x86-avx2")).options.placement.nodes


def test_a_gate_after_a_gelu_does_not_hide_it():
    gate = [("MatMul", ["x", "w"], "gate", {}), ("Mul", ["gelu", "gate"], "z", {})]
    steps = [*ERF, ("Mul", ["h", "half"], "d", {}), ("Mul", ["d", "c"], "gelu", {}), *gate]
    assert float_fusions(between_products(steps)) == {"n_a", "n_b", "n_c", "n_d", "n_gelu"}


@pytest.mark.parametrize(
    "steps",
    [
        [("Erf", ["h"], "z", {})],
        [("Tanh", ["h"], "b", {}), ("Add", ["b", "one"], "z", {})],
        [("Tanh", ["h"], "b", {}), ("Add", ["b", "one"], "c", {}), ("Mul", ["c", "bias"], "z", {})],
        [("Sigmoid", ["x"], "b", {}), ("Mul", ["b", "x"], "z", {})],
        [("Relu", ["h"], "a", {}), ("Sigmoid", ["a"], "b", {}), ("Mul", ["b", "h"], "z", {})],
        [("Sqrt", ["h"], "z", {})],
        [("Add", ["h", "one"], "e", {}), ("Sqrt", ["e"], "z", {})],
        [
            *ERF,
            ("Relu", ["h"], "other", {}),
            ("Mul", ["other", "c"], "d", {}),
            ("Mul", ["d", "half"], "z", {}),
        ],
    ],
    ids=[
        "erf",
        "tanh",
        "constant factor",
        "silu of the input",
        "gate",
        "root",
        "shifted root",
        "another tensor",
    ],
)
def test_other_curves_are_not_taken_for_fusions(steps):
    model = between_products(steps)
    assert float_fusions(model) == frozenset()
    assert isinstance(model, onnx.ModelProto)
