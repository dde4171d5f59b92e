"""Names, modules and patterns that a person gives for nodes."""

from __future__ import annotations

import pytest
from onnx import helper

from exporter.errors import ExportError
from exporter.graphs.node_patterns import matching_nodes, named_nodes


def node(name, *, scopes=None, inputs=("a",), output="y"):
    found = helper.make_node("Relu", list(inputs), [output], name=name)
    if scopes is not None:
        found.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scopes))
    return found


READABLE = [
    node("stem"),
    node("body.0.conv"),
    node("body.0.Add"),
    node("body.1.conv"),
    node("body.10.conv"),
]
OLD_EXPORTER = [node("/stem/Conv"), node("/body/body.0/conv/Conv"), node("/body/body.1/bn/BatchNorm")]
NEW_EXPORTER = [
    node("node_conv2d", scopes=["", "stem", "conv2d"], inputs=["x", "stem.weight"]),
    node("node_add_3", scopes=["", "body", "body.0", "add_3"]),
    node(
        "node_Conv_37",
        scopes=["", "body", "body.1", "body.1.bn", "norm"],
        inputs=["x", "body.1.conv.weight"],
    ),
]


@pytest.mark.parametrize(
    ("nodes", "pattern", "wanted"),
    [
        (READABLE, "stem", [0]),
        (READABLE, "body.0.conv", [1]),
        (READABLE, "body.0", [1, 2]),
        (READABLE, "body.1", [3]),  # not body.10
        (READABLE, "body", [1, 2, 3, 4]),
        (READABLE, "*.conv", [1, 3, 4]),
        (READABLE, "body.?.conv", [1, 3]),
        (READABLE, "body.[01].*", [1, 2, 3]),
        (READABLE, "bod", []),
        (READABLE, "conv", []),
        (OLD_EXPORTER, "/stem/Conv", [0]),
        (OLD_EXPORTER, "stem", [0]),
        (OLD_EXPORTER, "/body", [1, 2]),
        (OLD_EXPORTER, "body.0", [1]),
        (OLD_EXPORTER, "body.0.conv", [1]),
        (OLD_EXPORTER, "body.*.bn", [2]),
        (OLD_EXPORTER, "/body/*/Conv", [1]),
        (NEW_EXPORTER, "stem", [0]),
        (NEW_EXPORTER, "body", [1, 2]),
        (NEW_EXPORTER, "body.1", [2]),
        (NEW_EXPORTER, "body.1.conv", [2]),  # the convolution whose weights it has
        (NEW_EXPORTER, "body.*.bn", [2]),
        (NEW_EXPORTER, "node_add_3", [1]),
    ],
)
def test_names_modules_and_patterns(nodes, pattern, wanted):
    assert matching_nodes(nodes, pattern) == [nodes[index] for index in wanted]


def test_an_exact_name_is_not_a_module():
    nodes = [node("conv"), node("conv.bias")]
    assert matching_nodes(nodes, "conv") == nodes[:1]
    assert matching_nodes(nodes, "conv*") == nodes


def test_brackets_in_a_name_are_taken_as_they_are():
    nodes = [node("head[0]"), node("head0")]
    assert matching_nodes(nodes, "head[0]") == nodes[:1]


def test_a_node_without_a_name_has_that_of_its_result():
    nodes = [node("", output="first"), node("", output="second")]
    assert matching_nodes(nodes, "second") == nodes[1:]


@pytest.mark.parametrize("stated", ["[", "7", "{'a': 1}"])
def test_damaged_metadata_is_ignored(stated):
    assert matching_nodes([node("a", scopes=stated)], "body") == []


def test_names_are_in_graph_order_and_unknown_ones_get_similar_names():
    model = helper.make_model(helper.make_graph(READABLE, "g", [], []))
    assert named_nodes(model, ["body.1", "stem", "*.0.conv"]) == ("stem", "body.0.conv", "body.1.conv")
    assert named_nodes(model, []) == ()
    with pytest.raises(ExportError, match=r"no node 'body.2.conv'; .*: body.1.conv, body.0.conv"):
        named_nodes(model, ["stem", "body.2.conv"])
