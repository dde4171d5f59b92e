"""Single rewrites, on graphs written by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from exporter.graphs.rewrites import GlobalAveragePoolPass, ReadableNamesPass, StripMetadataPass

MEAN = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[N, 2, 3, 4] x) => (float[N, A, B, C] y)
<int64[2] axes = {AXES}>
{ h = Relu(x)  y = ReduceMean<keepdims = KEEP>(h, axes) }
"""


def parse(text, **values):
    """A graph with inferred shapes; `__` in names represents a dot, which the syntax does not allow."""
    for name, value in values.items():
        text = text.replace(name, value)
    proto = onnx.parser.parse_model(text)
    for initializer in proto.graph.initializer:
        initializer.name = initializer.name.replace("__", ".")
    for node in proto.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def operators(model):
    return [node.op_type for node in model.graph]


def run(model, x):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("axes", ["2, 3", "3, 2", "-1, -2", "2, -1"])
def test_a_spatial_mean_becomes_a_pool(axes):
    model = parse(MEAN, AXES=axes, KEEP="1")
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    before = run(model, x)
    result = GlobalAveragePoolPass()(model)
    assert result.modified
    assert operators(result.model) == ["Relu", "GlobalAveragePool"]
    assert np.allclose(run(result.model, x), before, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        MEAN.replace("AXES", "1, 2").replace("KEEP", "1"),
        MEAN.replace("AXES", "2, 2").replace("KEEP", "1"),
        MEAN.replace("AXES", "2, 3").replace("KEEP", "0").replace("[N, A, B, C]", "[N, A]"),
        MEAN.replace("AXES", "2, 3").replace("KEEP", "1").replace("ReduceMean", "ReduceMax"),
        MEAN.replace("AXES", "2, 3").replace("KEEP", "1").replace("[N, 2, 3, 4]", "[N, 2, 5, 3, 4]"),
        MEAN.replace("int64[2] axes = {AXES}", "int64[1] axes = {3}").replace("KEEP", "1"),
        """
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[N, 2, 3, 4] x, int64[2] axes) => (float[N, A, B, C] y)
        { h = Relu(x)  y = ReduceMean(h, axes) }
        """,
        """
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[N, 2, 3, 4] x) => (float[1, 1, 1, 1] y)
        { h = Relu(x)  y = ReduceMean(h) }
        """,
    ],
    ids=["channels", "twice", "dropped axes", "maximum", "volume", "one axis", "open axes", "all axes"],
)
def test_other_means_are_left_alone(text):
    model = parse(text)
    before = operators(model)
    assert not GlobalAveragePoolPass()(model).modified
    assert operators(model) == before


NAMES = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] fc__weight = {1,2,3,4,5,6}, float[2] fc__weight_bias = {1,2}>
{
  a = Relu(x)  b = Relu(a)  first, second = Split<axis = 1, num_outputs = 2>(b)
  c = Concat<axis = 1>(first, second)  y = Gemm(c, fc__weight, fc__weight_bias)
}
"""


def named(scopes=None):
    model = parse(NAMES)
    for node in model.graph:
        if scopes is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    ReadableNamesPass()(model)
    return model


def test_nodes_are_named_after_their_module():
    model = named("['', 'features.0', 'relu']")
    assert [node.name for node in model.graph] == [
        "features.0.Relu",
        "features.0.Relu_2",
        "features.0.Split",
        "features.0.Concat",
        "fc",
    ]
    split = list(model.graph)[2]
    assert [value.name for value in split.outputs] == ["features.0.Split", "features.0.Split:1"]
    assert {value.name for value in (*model.graph.inputs, *model.graph.outputs)} == {"x", "y"}
    assert "fc.bias" in {value.name for value in model.graph.initializers.values()}


@pytest.mark.parametrize("scopes", [None, "no list [", "['']"])
def test_without_scopes_the_operator_is_the_name(scopes):
    assert [node.name for node in named(scopes).graph] == ["Relu", "Relu_2", "Split", "Concat", "fc"]


def test_the_renamed_graph_computes_the_same():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    assert np.array_equal(run(named(), x), run(parse(NAMES), x))


def test_used_names_get_a_number():
    model = parse(NAMES)
    nodes = list(model.graph)
    nodes[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'x', 'call']"
    model.graph.initializers["fc.weight"].name = "Relu"
    ReadableNamesPass()(model)
    assert nodes[0].name == "x.Relu"
    assert nodes[1].name == "Relu_2"


def test_all_metadata_is_removed():
    model = parse(NAMES)
    model.metadata_props["a"] = model.graph.metadata_props["a"] = "secret"
    model.doc_string = model.graph.doc_string = "secret"
    for node in model.graph:
        node.metadata_props["stack"] = node.doc_string = "secret"
        node.outputs[0].metadata_props["a"] = "secret"
    next(iter(model.graph.initializers.values())).metadata_props["a"] = "secret"
    model.graph.inputs[0].metadata_props["a"] = "secret"
    assert b"secret" in ir.to_proto(model).SerializeToString()
    StripMetadataPass()(model)
    assert b"secret" not in ir.to_proto(model).SerializeToString()
    assert operators(model) == operators(parse(NAMES))
