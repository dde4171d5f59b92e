"""Masks of attention in the forms that exporters write: shortened if the outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from exporter.graphs.inference import open_model, session_options
from exporter.inspection.same_outputs import Answer
from exporter.quantization.short_masks import SHORT, with_short_masks

X = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 5 + [0]], np.float32)
LOWEST = np.float32(-3.4028235e38)
ENDS = "t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t) r = Mul(s, k)"
TAIL = "p = Softmax(z) y = MatMul(p, x)"
# How the mask reaches the scores r: nodes that compute z, and the far constant of each.
FORMS = {
    "chosen, then added": (
        "c = Greater(m, half) w = Where(c, zero, far) u = Unsqueeze(w, one) z = Add(r, u)"
    ),
    "multiplied, then added": "i = Sub(unit, m) n = Mul(i, far) u = Unsqueeze(n, one) z = Add(u, r)",
    "chosen instead of scores": "c = Greater(m, half) u = Unsqueeze(c, one) z = Where(u, r, far)",
}


def network(nodes, *, scale=0.1, far=LOWEST, tail=TAIL, **constants):
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> '
        f"g (float[N, 6, 8] x, float[N, 6] m) => (float[N, 6, 8] y) {{ {ENDS} {nodes} {tail} }}"
    )
    values = {"k": scale, "half": 0.5, "zero": 0.0, "unit": 1.0, "far": far} | constants
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def outputs(model):
    return open_model(model, session_options(1)).run(None, {"x": X, "m": MASK})[0]


def shortened(model):
    return with_short_masks(model, [Answer({"x": X, "m": MASK}, {"y": outputs(model)})])


def constants_in_use(model):
    used = {name for node in model.graph.node for name in node.input}
    return [numpy_helper.to_array(one) for one in model.graph.initializer if one.name in used]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("far", [LOWEST, -10_000.0, -np.inf])
def test_a_mask_is_shortened_and_the_outputs_stay_the_same(form, far):
    if form.startswith("multiplied") and far == -np.inf:
        pytest.skip("zero times infinity is NaN")
    model = network(FORMS[form], far=far)
    found = shortened(model)
    assert [value.min() for value in constants_in_use(found) if value.min() < -1] == [SHORT]
    np.testing.assert_allclose(outputs(found), outputs(model), rtol=0, atol=1e-6)


def test_a_constant_causal_mask_is_shortened():
    model = network("z = Add(r, causal)", causal=np.triu(np.full((6, 6), LOWEST), 1))
    found = shortened(model)
    assert min(value.min() for value in constants_in_use(found)) == SHORT
    np.testing.assert_allclose(outputs(found), outputs(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("form", "scale"), list(zip(FORMS, (60.0, 60.0, -60.0), strict=True)))
def test_scores_that_would_outweigh_the_mask_keep_it(form, scale):
    model = network(FORMS[form], scale=scale)
    assert shortened(model) is model


def test_a_constant_that_is_no_mask_stays():
    model = network("z = Add(r, far)", far=-10_000.0, tail="y = MatMul(z, x)")
    assert shortened(model) is model


def test_other_readers_of_the_constant_keep_it():
    tail = "p = Softmax(z) q = MatMul(p, x) b = Max(q, far) y = Add(b, b)"
    found = shortened(network(FORMS["chosen, then added"], tail=tail))
    inputs = {node.op_type: list(node.input) for node in found.graph.node}
    assert inputs["Max"] == ["q", "far"]
    assert inputs["Where"][2] != "far"


def test_a_network_without_softmax_stays():
    model = network("", tail="y = MatMul(r, x)")
    assert shortened(model) is model
    assert isinstance(model, onnx.ModelProto)
