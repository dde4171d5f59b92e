"""Layers of a graph. Only weights that no other node reads can be changed for a layer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs.index import GraphIndex
from exporter.graphs.layers import find_layers, with_own_biases


def build(nodes, constants, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def gemm(**attributes):
    return helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="gemm", **attributes)


def constants():
    return {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}


def branching(*read):
    """An If with a branch that reads tensors from outside."""
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4])
    then = helper.make_graph([helper.make_node("Sum", read, ["out"])], "then", [], [value])
    otherwise = helper.make_graph([helper.make_node("Identity", ["h"], ["out"])], "else", [], [value])
    return helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=otherwise)


def found(model):
    return find_layers(GraphIndex.of(model.graph))


def test_weights_that_a_branch_reads_too_are_not_a_layers_own():
    assert [layer.node for layer in found(build([gemm(), branching("h", "h")], constants()))] == ["gemm"]
    assert found(build([gemm(), branching("h", "w")], constants())) == []


def test_weights_that_are_a_model_output_are_not_a_layers_own():
    assert found(build([gemm()], constants(), outputs=("h", "w"))) == []


def test_a_bias_that_a_branch_reads_too_is_copied():
    model = build([gemm(), branching("h", "b")], constants())
    own = with_own_biases(model)
    assert [tensor.name for tensor in own.graph.initializer] == ["w", "b", "gemm.bias"]
    assert list(own.graph.node[0].input) == ["x", "w", "gemm.bias"]
    assert own.graph.node[1] == model.graph.node[1]


def test_a_new_bias_gets_an_unused_name():
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="gemm"),
        helper.make_node("Relu", ["h"], ["gemm.bias"]),
        branching("h", "h"),
    ]
    own = with_own_biases(build(nodes, {"w": np.eye(4, dtype=np.float32)}, outputs=("y", "gemm.bias")))
    onnx.checker.check_model(own)
    assert list(own.graph.node[0].input) == ["x", "w", "gemm.bias_2"]
