"""Functions of a model are inlined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from bench.core.errors import ModelError
from exporter.graphs.normal_form.functions import inline_functions

X = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}
TEXT = "g (float[2, 3, 4, 4] x) => (float[a, b, c, d] y) { z = own.Block(x) y = own.Block(z) }"


def model_with(parsed, functions, opset=17, text=TEXT):
    model = parsed(text, opset=opset)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(onnx.parser.parse_function(text) for text in functions)
    return model


def block(opset, body, attributes="", name="Block"):
    own = ', "own": 1' if "own." in body else ""
    return f'<domain: "own", opset_import: ["": {opset}{own}]> {name}{attributes} (a) => (b) {{ {body} }}'


CASES = {
    "plain": (17, [block(17, "c = Neg(a) b = Relu(c)")]),
    "old opset": (10, [block(10, "c = Clip<min = -0.5>(a) b = ReduceMean<axes = [3], keepdims = 1>(c)")]),
    "very old opset": (8, [block(8, 'b = Upsample<mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]>(a)')]),
    "constant inside": (17, [block(17, "two = Constant<value = float {2.0}>() b = Mul(a, two)")]),
    "function in a function": (
        17, [block(17, "c = own.Inner(a) b = own.Inner(c)"), block(17, "b = Exp(a)", name="Inner")]
    ),
    "attribute": (
        17,
        [
            block(17, "b = own.Leaky<slope = 0.3>(a)"),
            block(17, "b = LeakyRelu<alpha: float = @slope>(a)", "<slope>", "Leaky"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_functions_are_inlined(parsed, same, case):
    opset, functions = CASES[case]
    normal = same(model_with(parsed, functions, opset), X)
    assert not normal.functions
    assert {node.domain for node in normal.graph.node} == {""}
    outputs = [name for node in normal.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_a_function_in_a_branch_is_inlined(parsed, same):
    text = """g (float[2, 3, 4, 4] x) => (float[a, b, c, d] y) {
        s = ReduceSum<keepdims = 0>(x) flag = Cast<to = 9>(s)
        y = If (flag) <
            then_branch = t () => (float[a, b, c, d] p) { p = own.Block(x) },
            else_branch = e () => (float[a, b, c, d] q) { q = Neg(x) }
        >
    }"""
    normal = same(model_with(parsed, [block(17, "b = Exp(a)")], text=text), X)
    assert "own" not in {node.domain for node in normal.graph.node[-1].attribute[0].g.node}


def test_a_large_model_is_left_to_the_rewrites(parsed, monkeypatch):
    model = model_with(parsed, [block(17, "b = Exp(a)")])
    monkeypatch.setattr("exporter.graphs.normal_form.functions.is_large", lambda model: True)
    assert inline_functions(model, "m.onnx") is model


def test_functions_that_cannot_be_inlined_are_an_error(parsed, monkeypatch):
    def fail(model, convert_version):
        raise RuntimeError("no")

    monkeypatch.setattr("onnx.inliner.inline_local_functions", fail)
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX cannot inline its functions \(no\)"):
        inline_functions(model_with(parsed, [block(17, "b = Exp(a)")]), "m.onnx")
