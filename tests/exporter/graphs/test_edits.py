"""Edits of graphs on protobuf."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs.edits import (
    add_constant,
    add_outputs,
    copy_of,
    remove_constants,
    remove_nodes,
    rename_reads,
    replace_nodes,
    set_constant,
    sort_nodes,
    with_outputs,
)


def parse(body, constants=""):
    return onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]>'
        f" g (float[4] x) => (float[4] y) <{constants}> {{ {body} }}"
    )


def run(model, names=None):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"x": np.array([-1, 0, 1, 2], np.float32)})


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_a_change_to_a_copy_does_not_change_the_model():
    model = parse("y = Relu(x)")
    copy = copy_of(model)
    assert copy == model
    copy.graph.node[0].op_type = "Tanh"
    assert operators(model) == ["Relu"]


def test_nodes_are_replaced_by_new_ones_and_by_those_of_the_graph_itself():
    model = parse("a = Relu(x)  b = Neg(a)  y = Exp(b)")
    relu, neg, exp = model.graph.node
    inserted = helper.make_node("Abs", ["b"], ["c"])
    exp.input[0] = "c"
    before = [node.SerializeToString() for node in (relu, neg, inserted, exp)]
    replace_nodes(model.graph, (node for node in (relu, neg, inserted, exp)))
    assert [node.SerializeToString() for node in model.graph.node] == before
    np.testing.assert_allclose(run(model)[0], np.exp([0, 0, 1, 2]), rtol=1e-6)


def test_nodes_are_sorted_by_what_their_bodies_read():
    model = parse(
        """c = Cast<to = 9>(first)
        y = If (c) <then_branch = t () => (float[4] p) { p = Neg(late) },
                    else_branch = e () => (float[4] q) { q = Abs(later) }>
        first = ReduceSum<keepdims = 0>(x)  later = Exp(late)  late = Relu(x)"""
    )
    sort_nodes(model.graph)
    assert operators(model) == ["ReduceSum", "Cast", "Relu", "Exp", "If"]
    np.testing.assert_array_equal(run(model)[0], [0, 0, -1, -2])


def test_sorted_nodes_keep_their_order():
    model = parse("a = Relu(x)  b = Neg(x)  c = Abs(b)  y = Add(a, c)")
    sort_nodes(model.graph)
    assert operators(model) == ["Relu", "Neg", "Abs", "Add"]


def test_nodes_can_be_reordered_and_old_nodes_do_not_belong_to_the_graph():
    model = parse("a = Relu(x)  b = Neg(x)  y = Add(a, b)")
    relu, neg, add = model.graph.node
    replace_nodes(model.graph, [neg, relu, add])
    assert operators(model) == ["Neg", "Relu", "Add"]
    relu.op_type = "Tanh"
    assert operators(model) == ["Neg", "Relu", "Add"]


def test_among_equal_nodes_the_given_object_is_removed():
    model = parse("a = Relu(x)  y = Neg(x)")
    model.graph.node.append(model.graph.node[0])
    first, _, last = model.graph.node
    assert first == last
    remove_nodes(model.graph, [last])
    assert operators(model) == ["Relu", "Neg"]
    remove_nodes(model.graph, [first])
    assert operators(model) == ["Neg"]


def test_inputs_are_renamed_and_outputs_are_not():
    model = parse("a = Relu(x)  b = Neg(a)  y = Add(a, b)")
    rename_reads(model.graph.node, {"a": "x"})
    assert [list(node.input) for node in model.graph.node] == [["x"], ["x"], ["x", "b"]]
    assert [list(node.output) for node in model.graph.node] == [["a"], ["b"], ["y"]]


def test_bodies_read_the_new_tensor_too():
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])
    then = helper.make_graph([helper.make_node("Neg", ["a"], ["out"])], "then", [], [value])
    otherwise = helper.make_graph([helper.make_node("Identity", ["a"], ["out"])], "else", [], [value])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    model = parse("y = Relu(x)")
    replace_nodes(model.graph, nodes)
    np.testing.assert_array_equal(run(model)[0], [0, 0, -1, -2])
    rename_reads(model.graph.node, {"a": "x"})
    remove_nodes(model.graph, [model.graph.node[0]])
    np.testing.assert_array_equal(run(model)[0], [1, 0, -1, -2])


def test_constants_are_added_changed_and_removed():
    model = parse("y = Mul(x, k)", "float[1] unused = {1}, float[1] k = {2}")
    assert add_constant(model.graph, "three", np.float32(3)) == "three"
    set_constant(model.graph.initializer[1], np.array([5], np.float32))
    remove_constants(model.graph, {"unused"})
    assert [tensor.name for tensor in model.graph.initializer] == ["k", "three"]
    assert numpy_helper.to_array(model.graph.initializer[1]) == np.float32(3)
    np.testing.assert_array_equal(run(model)[0], [-5, 0, 5, 10])


def test_outputs_are_added_once_and_to_a_copy():
    model = parse("a = Relu(x)  y = Neg(a)")
    more = with_outputs(model, ["x", "a", "y", "a"])
    assert [value.name for value in more.graph.output] == ["y", "a"]
    assert [value.name for value in model.graph.output] == ["y"]
    onnx.checker.check_model(model)
    add_outputs(model.graph, ["a"])
    assert model == more


def test_an_output_that_was_added_can_be_run():
    more = with_outputs(parse("a = Relu(x)  y = Neg(a)"), ["a"])
    session = onnxruntime.InferenceSession(more.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["a"], {"x": np.array([-1, 0, 1, 2], np.float32)})
    np.testing.assert_array_equal(found, [0, 0, 1, 2])
