"""An Einsum with constant weights becomes a MatMul or a Conv."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporter.graphs.rewrites import EinsumPass, FoldAfterPass, GemmPass
from exporter.graphs.targets import find_target
from exporter.quantization.qdq import plan_qdq
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite

RANDOM = np.random.default_rng(0)
# Equation of x and w, shape of x, shape of w, operators of the result.
FORMS = [
    ("bsd,dh->bsh", (2, 3, 4), (4, 5), ["MatMul"]),
    ("b s d, h d -> b s h", (2, 3, 4), (5, 4), ["MatMul"]),
    ("bd,hd->bh", (2, 4), (5, 4), ["MatMul"]),
    ("...d,dh->...h", (2, 3, 4), (4, 5), ["MatMul"]),
    ("...d,dh->...h", (2, 6, 3, 4), (4, 5), ["MatMul"]),
    ("bsd,dhk->bshk", (2, 3, 4), (4, 5, 2), ["MatMul", "Reshape"]),
    ("bsd,hkd->bshk", (2, 3, 4), (5, 2, 4), ["MatMul", "Reshape"]),
    ("bsd,hdk->bskh", (2, 3, 4), (5, 4, 2), ["MatMul", "Reshape"]),
    ("bshk,hkd->bsd", (2, 3, 4, 5), (4, 5, 6), ["Reshape", "MatMul"]),
    ("bshk,dkh->bsd", (2, 3, 4, 5), (6, 5, 4), ["Reshape", "MatMul"]),
    ("bshk,hkde->bsde", (2, 3, 4, 5), (4, 5, 6, 2), ["Reshape", "MatMul", "Reshape"]),
    ("bchw,oc->bohw", (2, 4, 3, 5), (6, 4), ["Conv"]),
    ("bchw,co->bohw", (2, 4, 3, 5), (4, 6), ["Conv"]),
    ("bct,oc->bot", (2, 4, 3), (6, 4), ["Conv"]),
]


def einsum(equation, x, w, *, weights_first=False):
    first, second, result = equation.replace("->", ",").split(",")
    inputs = ["x", "w"]
    if weights_first:
        inputs, equation = ["w", "x"], f"{second},{first}->{result}"
    constants = {"w": RANDOM.standard_normal(w)}
    steps = [("Einsum", inputs, "y", {"equation": equation})]
    return build(steps, constants, ["n", *x[1:]])


@pytest.mark.parametrize("weights_first", [False, True])
@pytest.mark.parametrize(("equation", "x", "w", "operators"), FORMS)
def test_weights_are_a_matrix(equation, x, w, operators, weights_first):
    model = einsum(equation, x, w, weights_first=weights_first)
    sample = RANDOM.standard_normal(x).astype(np.float32)
    assert check_rewrite(model, (EinsumPass(),), sample) == operators
    planned = plan_qdq(ir.to_proto(model), find_target("x86-avx2")).options.placement.nodes
    assert len(planned) >= 1


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("bsd,sdh->bsh", (2, 3, 4), (3, 4, 5)),  # another matrix for each row
        ("bsd,dh->bhs", (2, 3, 4), (4, 5)),  # the added axis is not where the sum was
        ("bsd,dh->bs", (2, 3, 4), (4, 5)),  # sums over the weights alone
        ("bsd,dh->bh", (2, 3, 4), (4, 5)),  # sums over the activations alone
        ("bsd,hk->bsdhk", (2, 3, 4), (5, 6)),  # no sum
        ("bsd,d->bs", (2, 3, 4), (4,)),  # no matrix
        ("bdd,dh->bh", (2, 4, 4), (4, 5)),  # a diagonal
        ("bsd,dh", (2, 3, 4), (4, 5)),  # the result is implied
    ],
)
def test_other_sums_are_left_alone(equation, x, w):
    model = build(
        [("Einsum", ["x", "w"], "y", {"equation": equation})],
        {"w": RANDOM.standard_normal(w)},
        ["n", *x[1:]],
    )
    assert check_rewrite(model, (EinsumPass(),), RANDOM.standard_normal(x).astype(np.float32)) == ["Einsum"]


@pytest.mark.parametrize(("equation", "w"), [("ij,kj->ik", None), ("ij,jk,kl->il", (4, 4))])
def test_products_of_activations_and_of_three_are_left_alone(equation, w):
    inputs = ["x", "x"] if w is None else ["x", "w", "w"]
    constants = {} if w is None else {"w": RANDOM.standard_normal(w)}
    model = build([("Einsum", inputs, "y", {"equation": equation})], constants, ["n", 4])
    sample = RANDOM.standard_normal((3, 4)).astype(np.float32)
    assert check_rewrite(model, (EinsumPass(),), sample) == ["Einsum"]


def test_a_bias_after_it_is_folded():
    steps = [
        ("Einsum", ["x", "w"], "p", {"equation": "bd,dh->bh"}),
        ("Add", ["p", "bias"], "q", {}),
        ("Relu", ["q"], "y", {}),
    ]
    constants = {"w": RANDOM.standard_normal((4, 5)), "bias": RANDOM.standard_normal(5)}
    model = build(steps, constants, ["n", 4])
    sample = RANDOM.standard_normal((3, 4)).astype(np.float32)
    assert check_rewrite(model, (EinsumPass(), FoldAfterPass(), GemmPass()), sample) == ["Gemm", "Relu"]
