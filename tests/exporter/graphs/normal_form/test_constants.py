"""Constants that nodes make become initializers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from exporter.graphs.normal_form import normalize

X = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
VALUES = {
    "value": "value = float[3] {1, 2, 3}",
    "value_float": "value_float = 0.5",
    "value_floats": "value_floats = [1.0, 2.0, 3.0]",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("opset", [12, 13, 17, 21])
def test_floats_become_initializers(parsed, same, value, opset):
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ c = Constant<{value}>() y = Mul(x, c) }}"
    normal = same(parsed(text, opset=opset), X)
    assert [tensor.name for tensor in normal.graph.initializer] == ["c"]
    assert [node.op_type for node in normal.graph.node] == ["Mul"]


@pytest.mark.parametrize("value", ["value_ints = [3, 2]", "value = int64[2] {3, 2}"])
def test_integers_become_initializers(parsed, same, value):
    text = f"g (float[2, 3] x) => (float[a, b] y) {{ s = Constant<{value}>() y = Reshape(x, s) }}"
    normal = same(parsed(text), X)
    assert numpy_helper.to_array(normal.graph.initializer[0]).tolist() == [3, 2]


def test_one_integer_becomes_a_scalar(parsed, same):
    text = "g (float[2, 3] x) => (float[b] y) { i = Constant<value_int = 1>() y = Gather(x, i) }"
    normal = same(parsed(text), X)
    assert numpy_helper.to_array(normal.graph.initializer[0]).shape == ()


def test_copies_of_constants_are_read_directly(parsed, same):
    text = """g (float[2, 3] x) => (float[2, 3] y) {
        a = Identity(w) b = Identity(a) c = Constant<value = float[3] {1, 2, 3}>() d = Identity(c)
        p = Mul(x, b) q = Add(p, d) y = Identity(q)
    }"""
    normal = same(parsed(text, {"w": np.float32([4, 5, 6])}), X)
    assert [list(node.input) for node in normal.graph.node] == [["x", "w"], ["p", "c"], ["q"]]


def test_bodies_read_the_initializer(parsed, same):
    text = """g (float[2, 3] x) => (float[2, 3] y) {
        c = Constant<value = float[3] {1, 2, 3}>() i = Identity(c)
        s = ReduceSum<keepdims = 0>(x) flag = Cast<to = 9>(s)
        y = If (flag) <
            then_branch = t () => (float[2, 3] p) { p = Mul(x, i) },
            else_branch = e () => (float[2, 3] q) { k = Constant<value = float {2.0}>() q = Mul(x, k) }
        >
    }"""
    normal = same(parsed(text), X)
    assert [node.op_type for node in normal.graph.node] == ["ReduceSum", "Cast", "If"]


def test_what_cannot_be_an_initializer_is_kept(parsed, same):
    text = """g (float[2, 3] x) => (float[2, 3] y, float[3] c, float[3] k) {
        c = Constant<value = float[3] {1, 2, 3}>() k = Identity(w) y = Mul(x, c)
    }"""
    normal = same(parsed(text, {"w": np.float32([4, 5, 6])}), X)
    assert [node.op_type for node in normal.graph.node] == ["Constant", "Identity", "Mul"]


def test_texts_are_kept(parsed):
    text = """g (float[2, 3] x) => (string[2] y) {
        a = Constant<value_strings = ["a", "b"]>() i = Constant<value_ints = [1, 0]>() y = Gather(a, i)
    }"""
    normal = normalize(parsed(text), Path("m.onnx"))
    assert [node.op_type for node in normal.graph.node] == ["Constant", "Gather"]
