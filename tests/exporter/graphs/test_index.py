"""The index of a graph: producers, readers, constants and shapes, for all forms that ONNX allows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs.index import GraphIndex, bodies_of, reads_of


def parse(body, constants="", inputs="float[N, 4] x", outputs="float[N, 4] y"):
    """A graph of nodes without names."""
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
    ).graph


TABLE = "float[2, 4] table = {0, 1, 2, 3, 4, 5, 6, 7}"


def branch(name, *nodes, output="out"):
    """A body of an If; it has no inputs."""
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 4])]
    )


def conditional(then, otherwise):
    """`y = If(c) ? then : otherwise` after `h = Relu(x)`."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    onnx.checker.check_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), full_check=True
    )
    return graph


def test_producers_and_readers_are_found_by_the_tensors_name():
    graph = parse("a = Relu(x)  b = Tanh(a)  y = Add(a, b)")
    index = GraphIndex.of(graph)
    relu, tanh, add = graph.node
    assert index.nodes == (relu, tanh, add)
    assert index.maker("a") is index.maker("a", "Relu") is relu
    assert index.maker("a", "Tanh") is None
    assert index.maker("x") is index.maker("x", "Relu") is None
    assert index.maker("nowhere") is None
    assert index.readers("a") == (tanh, add)
    assert index.readers("b") == (add,)
    assert index.readers("y") == index.readers("nowhere") == ()
    assert index.readers_of(relu) == (tanh, add)
    assert index.only_reader("a") is None
    assert index.only_reader("b") is add


def test_nodes_without_names_are_distinguished():
    graph = parse("a = Relu(x)  b = Relu(x)  y = Add(a, b)")
    graph.node[2].name = "sum"
    index = GraphIndex.of(graph)
    assert index.by_name == {"sum": graph.node[2]}
    assert index.maker("b") is graph.node[1]
    assert [reader is node for reader, node in zip(index.readers("x"), graph.node, strict=False)] == [
        True
    ] * 2


def test_a_tensor_that_a_node_reads_twice_has_one_reader_and_two_uses():
    index = GraphIndex.of(parse("a = Relu(x)  y = Mul(a, a)"))
    assert len(index.readers("a")) == 1
    assert index.uses("a") == 2
    assert index.only_reader("a") is None
    assert len(index.readers_of(index.nodes[0])) == 1


def test_an_output_of_the_graph_counts_as_a_use():
    index = GraphIndex.of(parse("a = Relu(x)  y = Tanh(a)", outputs="float[N, 4] y, float[N, 4] a"))
    assert index.outputs == ("y", "a")
    assert index.uses("a") == 2
    assert index.only_reader("a") is None
    assert index.uses("y") == 1
    assert index.only_reader("y") is None


def test_an_omitted_optional_tensor_is_not_a_tensor():
    nodes = [
        helper.make_node("Clip", ["x", "", "high"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y", ""], kernel_shape=[1]),
        helper.make_node("Clip", ["x", "", "high"], ["b"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    index = GraphIndex.of(graph)
    assert index.maker("") is None
    assert index.readers("") == ()
    assert index.uses("") == 0
    assert "" not in index.names()
    assert list(reads_of(nodes[0])) == ["x", "high"]


def test_a_constant_among_the_inputs_is_a_constant():
    graph = parse("y = Mul(x, w)", "float[4] w = {1, 2, 3, 4}", inputs="float[N, 4] x, float[4] w")
    index = GraphIndex.of(graph)
    assert index.inputs == ("x",)
    assert index.is_constant("w")
    assert not index.is_constant("x")
    assert index.constant("w").tolist() == [1, 2, 3, 4]
    assert list(index.constants) == ["w"]
    with pytest.raises(KeyError):
        index.constant("x")


def test_shapes_and_types_are_read_from_the_graph():
    graph = parse(
        "a = Gather(table, x)  y = Cast<to = 10>(a)", TABLE, "int64[N, 3] x", "float16[A, 3, 4] y"
    )
    graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    index = GraphIndex.of(graph)
    assert index.shape("table") == (2, 4)
    assert index.shape("x") == (None, 3)
    assert index.shape("y") == (None, 3, 4)
    assert index.shape("a") is index.shape("b") is index.shape("nowhere") is None
    assert index.element_type("table") == index.element_type("b") == TensorProto.FLOAT
    assert index.element_type("x") == TensorProto.INT64
    assert index.element_type("y") == TensorProto.FLOAT16
    assert index.element_type("a") == TensorProto.UNDEFINED


def test_a_scalar_has_no_axes_and_a_size_of_zero_is_a_size():
    graph = parse("y = Identity(x)", inputs="float x, float[0, 2] e")
    assert GraphIndex.of(graph).shape("x") == ()
    assert GraphIndex.of(graph).shape("e") == (0, 2)


def test_tensors_that_a_branch_reads_from_outside_count_as_read():
    then = branch(
        "then", helper.make_node("Mul", ["h", "w"], ["inner"]), helper.make_node("Relu", ["inner"], ["out"])
    )
    otherwise = branch("else", helper.make_node("Mul", ["h", "h"], ["out"]))
    graph = conditional(then, otherwise)
    index = GraphIndex.of(graph)
    relu, condition = graph.node
    assert index.readers("h") == (condition,)
    assert index.readers_of(relu) == (condition,)
    assert index.uses("h") == 3
    assert index.only_reader("h") is None
    assert index.only_reader("w") is condition
    assert index.readers("inner") == index.readers("out") == ()
    assert index.maker("inner") is None
    assert {"inner", "out", "h", "w", "c", "x", "y"} == index.names()
    assert sorted(body.name for body in bodies_of(condition)) == ["else", "then"]


def test_reads_of_nested_branches_count_and_a_branchs_own_constants_do_not():
    deep = branch("deep", helper.make_node("Mul", ["h", "k"], ["deep_out"]), output="deep_out")
    flat = branch("flat", helper.make_node("Relu", ["inner"], ["flat_out"]), output="flat_out")
    then = branch(
        "then",
        helper.make_node("Tanh", ["x"], ["inner"]),
        helper.make_node("If", ["c"], ["out"], then_branch=deep, else_branch=flat),
    )
    then.initializer.append(numpy_helper.from_array(np.float32(2), "k"))
    graph = conditional(then, branch("else", helper.make_node("Identity", ["x"], ["out"])))
    index = GraphIndex.of(graph)
    relu, condition = graph.node
    assert index.readers("h") == (condition,)
    assert index.readers("x") == (relu, condition)
    assert index.readers("k") == index.readers("inner") == ()
    assert index.uses("c") == 2
    assert {"k", "deep_out", "flat_out"} <= index.names()


def test_tensors_that_a_loop_body_reads_from_outside_count_as_read():
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, [4]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [4])],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    index = GraphIndex.of(helper.make_graph([loop], "g", [], []))
    assert list(reads_of(loop)) == ["n", "x", "w"]
    assert index.readers("w") == (loop,)
    assert index.readers("state") == index.readers("go") == ()


def test_an_index_is_a_snapshot():
    graph = parse("a = Relu(x)  y = Tanh(a)")
    index = GraphIndex.of(graph)
    graph.node.append(helper.make_node("Exp", ["a"], ["b"]))
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "k"))
    assert len(index.nodes) == 2
    assert len(index.readers("a")) == 1
    assert not index.is_constant("k")
    assert len(GraphIndex.of(graph).readers("a")) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        index.nodes = ()


def test_the_nodes_of_an_index_are_those_of_the_graph():
    graph = parse("a = Relu(x)  y = Tanh(a)")
    GraphIndex.of(graph).maker("y").input[0] = "x"
    assert list(graph.node[1].input) == ["x"]
