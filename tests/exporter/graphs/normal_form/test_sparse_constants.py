"""Sparse constants become dense."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

X = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
DENSE = np.float32([[0, 2, 0, 0], [0, 0, 0, 3], [4, 0, 0, 0]])


def sparse(flat):
    positions = np.flatnonzero(DENSE) if flat else np.argwhere(DENSE)
    values = numpy_helper.from_array(DENSE[DENSE != 0], "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(positions, "positions"), DENSE.shape)


def constant(flat):
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.append(helper.make_attribute("sparse_value", sparse(flat)))
    return node


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_sparse_weights_become_initializers(parsed, same, flat, opset, stored):
    model = parsed("g (float[2, 3] x) => (float[2, 4] y) { y = MatMul(x, w) }", opset=opset)
    if stored == "initializer":
        model.graph.sparse_initializer.append(sparse(flat))
    else:
        model.graph.node.insert(0, constant(flat))
    normal = same(model, X, exact=True)
    (weight,) = normal.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), DENSE)


def test_sparse_weights_in_a_branch(parsed, same):
    text = """g (float[2, 3] x) => (float[2, a] y) {
        s = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(s)
        y = If (f) <then_branch = t () => (float[2, 4] p) { p = MatMul(x, w) },
                    else_branch = e () => (float[2, 3] q) { q = Neg(x) }>
    }"""
    model = parsed(text)
    (branch,) = (a.g for a in model.graph.node[-1].attribute if a.name == "then_branch")
    branch.node.insert(0, constant(flat=True))
    normal = same(model, X, exact=True)
    assert isinstance(normal, onnx.ModelProto)
    assert "sparse_value" not in str(normal)
