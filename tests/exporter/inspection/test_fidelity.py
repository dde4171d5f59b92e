"""Closeness of an int8 model to float, and where the error begins."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.graphs.index import GraphIndex
from exporter.inspection.fidelity import before, closeness, first_bad_layers, is_low
from exporter.inspection.same_outputs import Answer
from exporter.results import Closeness, LayerError


def saved(path, scale, rank=2):
    """A model that multiplies its input; rank 2 outputs are scores of classes."""
    shape = ["n", *[3] * (rank - 1)]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "yz"],
        [helper.make_tensor("s", TensorProto.FLOAT, [3], scale)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def saved_with_mask(path):
    """A model that reads a mask and gives back `x`, whatever the mask."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[n, l, 3] x, int64[n, l] attention_mask)'
        " => (float[n, l, 3] y, int64[n, l] m) { y = Identity(x) m = Identity(attention_mask) }"
    )
    onnx.save(model, path)
    return path


def answers(x):
    return [Answer({"x": part}, {"y": part, "z": part}) for part in np.array_split(x, 2)]


def test_the_output_with_the_most_noise_counts(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    found = closeness(answers(x), saved(tmp_path / "m.onnx", [1.01] * 3))
    assert found.output == "y"
    assert found.sqnr_db == pytest.approx(40, abs=0.1)
    assert found.agreement == 1.0


def test_changed_classes_lower_the_agreement(tmp_path):
    x = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]] + 0.1
    found = closeness(answers(x), saved(tmp_path / "m.onnx", [1, -1, 1]))
    assert found.agreement == 0.75


def test_only_scores_of_classes_have_an_agreement(tmp_path):
    x = np.ones((4, 3, 3), np.float32)
    assert closeness(answers(x), saved(tmp_path / "m.onnx", [1] * 3, rank=3)).agreement is None


def test_positions_of_padding_do_not_count(tmp_path):
    x = np.ones((4, 3, 3), np.float32)
    mask = np.array([[1, 1, 0]] * 4)
    far = np.where(mask[..., None], x, 9)  # the model gives 1 at each position
    found = [
        closeness([Answer({"x": x, **extra}, {"y": far})], saved_with_mask(tmp_path / "m.onnx"))
        for extra in ({"attention_mask": mask}, {"attention_mask": np.ones_like(mask)})
    ]
    assert found[0].sqnr_db > 100
    assert found[1].sqnr_db < 10


def test_huge_and_infinite_values_do_not_count(tmp_path):
    x = np.array([[1, 2, -3e38], [1, np.inf, 2]], np.float32)
    found = closeness(answers(x), saved(tmp_path / "m.onnx", [1, 1, 0.5]))
    assert found.sqnr_db == pytest.approx(10)


@pytest.mark.parametrize(
    ("sqnr", "agreement", "low"),
    [
        (25, None, False), (19, None, True), (19, 0.99, False), (19, 0.97, True), (40, 0.95, False),
        (40, 0.89, True), (-3, None, True),
    ],
)  # fmt: skip
def test_a_fidelity_is_low_by_noise_or_by_many_changed_classes(sqnr, agreement, low):
    assert is_low(Closeness(sqnr_db=sqnr, output="y", agreement=agreement)) is low


def chain():
    nodes = [helper.make_node("Relu", [a], [b], name=b) for a, b in ("xa", "ab", "bc")]
    nodes.append(helper.make_node("Relu", ["x"], ["d"], name="d"))
    nodes.append(helper.make_node("Add", ["c", "d"], ["e"], name="e"))
    return GraphIndex.of(helper.make_graph(nodes, "g", [], []))


def error(layer, sqnr):
    return LayerError(layer=layer, op="Relu", sqnr_db=sqnr, lowest=0, highest=1, range=(0, 1))


def test_the_error_begins_where_no_layer_before_is_bad():
    layers = [error("a", 40), error("b", 10), error("c", 5), error("d", 12), error("e", 3)]
    assert first_bad_layers(layers, chain()) == ("b", "d")


def test_without_a_bad_layer_none_is_named():
    assert first_bad_layers([error("a", 40), error("e", 21)], chain()) == ()


def test_the_nodes_before_a_node_come_nearest_first():
    graph = chain()
    assert [node.name for node in before(graph.by_name["e"], graph)] == ["c", "d", "b", "a"]


@pytest.mark.parametrize(("lower", "low"), [(19.0, True), (20.5, False), (None, False)])
def test_the_lower_bound_decides_where_it_is_known(lower, low):
    found = Closeness(sqnr_db=22.0, output="y", agreement=None, sqnr_lower_db=lower)
    assert is_low(found) is low
    assert found.text() == ("SQNR 22.0 dB (at least 19.0 dB)" if lower == 19 else found.text())


def test_a_model_that_is_far_off_on_one_sample_has_a_low_bound(tmp_path):
    x = np.ones((8, 3), np.float32)
    wanted = np.where(np.arange(8)[:, None] == 5, 0.5, x + 1e-3).astype(np.float32)
    found = closeness([Answer({"x": x}, {"y": wanted})], saved(tmp_path / "m.onnx", [1, 1, 1]))
    assert found.sqnr_db > 14
    assert found.sqnr_lower_db < found.sqnr_db - 10
