"""Models that spell the standard domain in two ways, or import it twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from exporter.graphs.normal_form.standard_domain import use_one_domain

X = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
RELU = "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"
CLIP = "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<max = 0.5>(x) }"  # an attribute until opset 10


def imports(model):
    return [(entry.domain, entry.version) for entry in model.opset_import]


@pytest.mark.parametrize(
    ("text", "stated", "raised"),
    [
        (RELU, [("ai.onnx", 17)], 17),
        (RELU, [("", 17), ("ai.onnx", 17)], 17),
        (RELU, [("ai.onnx", 17), ("", 17), ("", 17)], 17),
        (RELU, [("com.microsoft", 1), ("ai.onnx", 17), ("com.microsoft", 1)], 17),
        (CLIP, [("", 17), ("", 10)], 17),
        (CLIP, [("", 17), ("ai.onnx", 9)], 17),
        (RELU, [("ai.onnx", 9), ("", 14)], 17),
    ],
    ids=str,
)
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_last_import_counts(parsed, same, text, stated, raised, domain):  # noqa: PLR0917
    """ONNX Runtime loads a Clip with attributes only if the last import is an old one."""
    model = parsed(text)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in stated)
    model.graph.node[0].domain = domain
    normal = same(model, X)
    assert [version for domain, version in imports(normal) if not domain] == [raised]
    assert "ai.onnx" not in dict(imports(normal))
    assert [node.domain for node in normal.graph.node if node.op_type in {"Relu", "Clip"}] == [""]


def test_bodies_and_functions_are_renamed(parsed):
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["b"], domain="ai.onnx")], "b", [], [])
    inner = helper.make_node("If", ["x"], ["y"], domain="ai.onnx", then_branch=body, else_branch=body)
    model = parsed(RELU)
    model.graph.node.append(inner)
    twice = [helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [inner], twice))
    use_one_domain(model)
    (function,) = model.functions
    for node in (model.graph.node[-1], function.node[0]):
        assert node.domain == ""
        assert [attribute.g.node[0].domain for attribute in node.attribute] == ["", ""]
    assert imports(function) == [("", 17)]


def test_other_domains_are_kept(parsed):
    model = parsed(RELU)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.node.append(onnx.NodeProto(op_type="Scaler", domain="ai.onnx.ml"))
    use_one_domain(model)
    assert imports(model) == [("", 17), ("ai.onnx.ml", 3)]
    assert model.graph.node[-1].domain == "ai.onnx.ml"
