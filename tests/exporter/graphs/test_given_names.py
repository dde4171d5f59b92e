"""Nodes of a given file are found again in the simplified graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.errors import ExportError
from exporter.graphs.given_names import excluded_nodes, read_given, restore_names
from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import prepare, quantize_file, quantize_weights_file


@pytest.fixture
def given(tmp_path):
    """Write a model in ONNX's text form, and simplify it as `quantize` does."""

    def build(nodes, weights, *, shape="N, 3, 16, 16", opset=18, sizes=()):
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float y) {{ {nodes} }}'
        )
        model.graph.output[0].type.tensor_type.ClearField("shape")
        generator = np.random.default_rng(0)
        constants = {name: generator.random(size, np.float32) + 0.1 for name, size in weights.items()}
        constants |= {name: np.array(value, np.int64) for name, value in dict(sizes).items()}
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
        path = tmp_path / "given.onnx"
        onnx.save(model, path)
        index = read_given(path)
        simple = prepare(model, [])
        restore_names(simple, index)
        return path, index, simple

    return build


NORM = dict.fromkeys("gbmv", (8,))
FOLDED = """
    [conv1] c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1)
    [bn1] n = BatchNormalization(c, g, b, m, v)
    [relu1] a = Relu(n)
    [drop] d = Dropout(a)
    [conv2] e = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(d, w2, z)
    [flat] f = Flatten(e)
    [fc] y = Gemm<transB = 1>(f, w3, z3)
"""
WEIGHTS = NORM | {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "z": (8,), "w3": (10, 128), "z3": (10,)}


@pytest.mark.parametrize("opset", [14, 18, 21])
@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("conv1", ("conv1",)),
        ("bn1", ("conv1",)),  # folded into the convolution
        ("relu1", ("relu1",)),
        ("drop", ()),  # does nothing and is removed
        ("conv2", ("conv2",)),
        ("flat", ("flat",)),  # becomes a Reshape
        ("fc", ("fc",)),
        ("conv*", ("conv1", "conv2")),
        ("*", ("conv1", "relu1", "conv2", "flat", "fc")),
    ],
)
def test_names_of_the_given_file(given, opset, pattern, wanted):
    _, index, simple = given(FOLDED, WEIGHTS, opset=opset)
    assert excluded_nodes(simple, index, [pattern]) == wanted


def test_nodes_keep_the_names_of_the_given_file(given):
    _, _, simple = given(FOLDED, WEIGHTS)
    assert [node.name for node in simple.graph.node] == ["conv1", "relu1", "conv2", "flat", "fc"]


def test_nodes_without_names_are_named_by_their_results(given):
    nodes = FOLDED
    for name in ("conv1", "bn1", "relu1", "drop", "conv2", "flat", "fc"):
        nodes = nodes.replace(f"[{name}] ", "")
    _, index, simple = given(nodes, WEIGHTS)
    assert excluded_nodes(simple, index, ["c", "f", "y"]) == ("c", "f", "y")
    assert {node.name: node.op_type for node in simple.graph.node} == {
        "c": "Conv",
        "a": "Relu",
        "e": "Conv",
        "f": "Reshape",
        "y": "Gemm",
    }


def test_generated_names_that_the_given_file_also_uses(given):
    """The simplifier generates names such as `node_Conv_1`, which the file uses for other nodes."""
    nodes = FOLDED
    for number, name in enumerate(("conv1", "bn1", "relu1", "drop", "conv2", "flat", "fc")):
        nodes = nodes.replace(f"[{name}]", f"[node_Conv_{6 - number}]")
    _, index, simple = given(nodes, WEIGHTS)
    assert [node.name for node in simple.graph.node] == [f"node_Conv_{n}" for n in (6, 4, 2, 1, 0)]
    assert excluded_nodes(simple, index, ["node_Conv_5"]) == ("node_Conv_6",)


def test_a_node_that_is_computed_in_advance_excludes_nothing(given):
    nodes = "[shape] s = Identity(k)  [turn] w = Transpose<perm = [1, 0]>(t)  [mul] y = MatMul(x, w)"
    _, index, simple = given(nodes, {"t": (5, 7)}, shape="N, 7", sizes={"k": (2, 3)})
    assert excluded_nodes(simple, index, ["turn"]) == ()
    assert excluded_nodes(simple, index, ["mul", "turn"]) == ("mul",)


def test_shape_arithmetic_is_not_traced_to_layers(given):
    nodes = """
        [conv] c = Conv(x, w1)
        [shape] s = Shape(c)
        [batch] n = Gather(s, zero)
        [unsqueeze] u = Unsqueeze(n, axes)
        [join] t = Concat<axis = 0>(u, rest)
        [reshape] r = Reshape(c, t)
        [fc] y = MatMul(r, w2)
    """
    weights = {"w1": (4, 3, 1, 1), "w2": (1024, 5)}
    _, index, simple = given(nodes, weights, sizes={"zero": 0, "axes": (0,), "rest": (-1,)})
    for pattern in ("shape", "batch", "unsqueeze", "join"):
        assert not {"conv", "fc"}.intersection(excluded_nodes(simple, index, [pattern]))
    assert excluded_nodes(simple, index, ["conv"]) == ("conv",)


def test_branches_are_told_apart(given):
    """Two convolutions with norms in parallel: each becomes its own convolution."""
    nodes = """
        [left] l = Conv(x, w1)
        [left_norm] ln = BatchNormalization(l, g, b, m, v)
        [right] r = Conv(x, w2)
        [right_norm] rn = BatchNormalization(r, g, b, m, v)
        [sum] y = Add(ln, rn)
    """
    _, index, simple = given(nodes, NORM | {"w1": (8, 3, 1, 1), "w2": (8, 3, 1, 1)})
    assert [node.name for node in simple.graph.node] == ["left", "right", "sum"]
    assert excluded_nodes(simple, index, ["right_norm"]) == ("right",)


def test_unknown_names_are_refused_with_the_names_of_the_given_file(given):
    _, index, simple = given(FOLDED, WEIGHTS)
    with pytest.raises(ExportError, match=r"no node 'conv3'; .* nodes of the graph: conv2, conv1, bn1"):
        excluded_nodes(simple, index, ["conv3"])
    with pytest.raises(ExportError, match=r"no node 'head\.\*'"):
        excluded_nodes(simple, index, ["head.*"])


def test_excluded_nodes_stay_in_float(given, tmp_path):
    path, _, _ = given(FOLDED, WEIGHTS)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    out = tmp_path / "int8.onnx"
    for pattern, wanted in {"bn1": {"conv1"}, "fc": {"fc"}, "conv*": {"conv1", "conv2"}}.items():
        quantize_file(path, tmp_path / "x.npz", out, exclude=(pattern,))
        assert {operator.name for operator in audit(out).float_ops} == wanted


def test_opset_11_is_traced_through_the_converter(given, tmp_path):
    path, _, _ = given(FOLDED, WEIGHTS, opset=11)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    quantize_file(path, tmp_path / "x.npz", tmp_path / "int8.onnx", exclude=("conv1", "fc"))
    assert {operator.name for operator in audit(tmp_path / "int8.onnx").float_ops} == {"conv1", "fc"}


def test_four_bits_take_the_same_names(given, tmp_path):
    nodes = "[body_fc] h = Gemm(x, w1, z)  [body_act] a = Relu(h)  [head] y = MatMul(a, w2)"
    path, _, _ = given(nodes, {"w1": (64, 64), "z": (64,), "w2": (64, 64)}, shape="N, 64")
    out = tmp_path / "int4.onnx"
    assert quantize_weights_file(path, out).made.products == 2
    assert quantize_weights_file(path, out, exclude=("body_fc",)).made.products == 1
    assert quantize_weights_file(path, out, exclude=("h*d",)).made.products == 1
