"""HardSwish written as several operators is recognized."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites import DecomposedHardSwishPass
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite

REWRITES = (DecomposedHardSwishPass(), RemoveUnusedNodesPass())
X = 4 * np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
NUMBERS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6}
CLIP = [("Relu", ["x"], "r", {}), ("Add", ["r", "three"], "a", {}), ("Clip", ["a", "zero", "six"], "g", {})]
SIGMOID = [("Relu", ["x"], "r", {}), ("HardSigmoid", ["r"], "g", {"alpha": 1 / 6, "beta": 0.5})]
FORMS = {
    "divided last": [*CLIP, ("Mul", ["r", "g"], "p", {}), ("Div", ["p", "six"], "y", {})],
    "multiplied last": [*CLIP, ("Mul", ["g", "r"], "p", {}), ("Mul", ["sixth", "p"], "y", {})],
    "divided gate": [*CLIP, ("Div", ["g", "six"], "q", {}), ("Mul", ["r", "q"], "y", {})],
    "multiplied gate": [*CLIP, ("Mul", ["g", "sixth"], "q", {}), ("Mul", ["q", "r"], "y", {})],
    "divided tensor": [*CLIP, ("Div", ["r", "six"], "q", {}), ("Mul", ["q", "g"], "y", {})],
    "sum in the other order": [
        CLIP[0],
        ("Add", ["three", "r"], "a", {}),
        CLIP[2],
        ("Mul", ["r", "g"], "p", {}),
        ("Div", ["p", "six"], "y", {}),
    ],
    "hard sigmoid": [*SIGMOID, ("Mul", ["r", "g"], "y", {})],
}


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_become_one_operator(form, shape):
    # The limits of a Clip have no axes.
    numbers = {n: np.full(() if n in {"zero", "six"} else shape, v) for n, v in NUMBERS.items()}
    model = build(FORMS[form], numbers, list(X.shape))
    assert check_rewrite(model, REWRITES, X) == ["Relu", "HardSwish"]


@pytest.mark.parametrize(
    "change",
    [
        {"three": 2.5},
        {"six": 5.0},
        {"zero": 0.5},
        {"sixth": 0.2},
        {"three": np.full((1, 3, 1, 1), 3.0)},
        {"sixth": np.full((1, 1, 1, 1, 1), 1 / 6)},
    ],
    ids=["shift", "limit", "zero", "factor", "channels", "another rank"],
)
def test_other_activations_are_left_alone(change):
    steps = FORMS["multiplied last"]
    model = build(steps, {**NUMBERS, **change}, list(X.shape))
    assert check_rewrite(model, REWRITES, X) == [kind for kind, *_ in steps]


def test_another_slope_and_another_tensor_are_left_alone():
    steps = [SIGMOID[0], ("HardSigmoid", ["r"], "g", {"alpha": 0.2}), ("Mul", ["r", "g"], "y", {})]
    assert "HardSigmoid" in check_rewrite(build(steps, {}, list(X.shape)), REWRITES, X)
    steps = [*SIGMOID, ("Mul", ["x", "g"], "y", {})]
    assert "HardSigmoid" in check_rewrite(build(steps, {}, list(X.shape)), REWRITES, X)


def test_opsets_without_the_operator_are_left_alone():
    model = build(FORMS["divided last"], NUMBERS, list(X.shape), opset=13)
    assert "HardSwish" not in check_rewrite(model, REWRITES, X)
