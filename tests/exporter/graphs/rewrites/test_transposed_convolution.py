"""ConvTranspose as an int8 convolution: the same outputs, under its name, and only where it is faster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.progress import SILENT
from bench.inputs.runtime import RuntimeVersion
from bench.metrics.parity import sqnr_db
from exporter.graphs.inference import open_exact
from exporter.graphs.rewrites.transposed_convolution import as_convolutions
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.qdq import plan_qdq
from exporter.sources.splits import ArraySamples

GENERATOR = np.random.default_rng(0)
# How the results of a convolution get to their places, if the sizes are known and borders are cut off.
MOVES = ["Transpose", "Reshape", "Transpose", "Reshape", "Slice", "Transpose"]


def network(nodes, weights, sizes, *, inputs=32, batch="N", result=None):
    constants = [
        numpy_helper.from_array((GENERATOR.standard_normal(shape) / 16).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, inputs, *sizes])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, result)
    opsets = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def up(source="x", result="y", bias="bias", **attributes):
    inputs = [source, "w", *([bias] if bias else [])]
    return helper.make_node("ConvTranspose", inputs, [result], name="up", **attributes)


def alone(kernel, sizes=(5, 4), *, bias="bias", **attributes):
    groups, outputs = attributes.get("group", 1), 16
    weights = {"w": (512, outputs, *[kernel] * len(sizes)), "bias": (outputs * groups,)}
    return network([up(bias=bias, **attributes)], weights, sizes, inputs=512)


def rewritten(model, exclude=()):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    moved = as_convolutions(copy, exclude)
    return copy, moved


def operators(model):
    return [node.op_type for node in model.graph.node]


def check_same(model, other, *, batch=2):
    sizes = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = GENERATOR.standard_normal((batch, *sizes)).astype(np.float32)
    before, after = (open_exact(each).run(None, {"x": x})[0] for each in (model, other))
    assert before.shape == after.shape
    assert np.abs(before - after).max() <= 3e-6 * max(1.0, np.abs(before).max())


@pytest.mark.parametrize("bias", ["bias", ""])
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (3, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (4, {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
        (4, {"strides": [2, 2], "pads": [2, 2, 2, 2]}),
        (4, {"strides": [4, 4]}),
        (5, {"strides": [2, 2], "pads": [2, 2, 2, 2], "output_padding": [1, 0]}),
        (4, {"strides": [3, 3], "pads": [1, 0, 0, 2]}),
        (3, {"strides": [4, 4]}),
        (3, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (3, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        (4, {"strides": [2, 2], "auto_pad": "VALID"}),
        (4, {"strides": [2, 2], "output_shape": [11, 8]}),
        (4, {"strides": [2, 2], "output_shape": [11, 8], "auto_pad": "SAME_UPPER"}),
        (4, {"strides": [2, 2], "output_padding": [1, 1], "kernel_shape": [4, 4], "dilations": [1, 1]}),
    ],
)
def test_the_outputs_are_the_same_in_all_forms(kernel, attributes, bias):
    model = alone(kernel, bias=bias, **attributes)
    other, _moved = rewritten(model)
    assert operators(other)[0] == "Conv"
    assert "ConvTranspose" not in operators(other)
    assert other.graph.node[0].name == "up"
    check_same(model, other)


@pytest.mark.parametrize("sizes", [(7,), (5, 4), (3, 4, 3)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_with_stride_1_it_is_one_convolution(sizes, padding):
    model = alone(3, sizes, pads=[padding] * 2 * len(sizes))
    other, moved = rewritten(model)
    assert operators(other) == ["Conv"]
    assert not moved
    check_same(model, other)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (16, 8, 4), (3, 2, 0), (8, 5, 2)])
def test_along_one_axis(kernel, stride, padding):
    model = alone(kernel, (9,), strides=[stride], pads=[padding, padding])
    other, _moved = rewritten(model)
    assert operators(other)[:3] == ["Conv", "Transpose", "Reshape"]
    check_same(model, other)
    model = alone(kernel, (9,), strides=[stride], pads=[padding, padding], group=2)
    other, _moved = rewritten(model)
    assert operators(other)[:4] == ["Conv", "Reshape", "Transpose", "Reshape"]
    check_same(model, other)


def test_groups_stay_apart():
    model = alone(4, strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    other, _moved = rewritten(model)
    assert operators(other) == ["Conv", "DepthToSpace", "Slice"]
    check_same(model, other)


def test_depthwise_with_stride_1_stays_depthwise():
    node = up(pads=[1, 1, 1, 1], group=32)
    model = network([node], {"w": (32, 1, 3, 3), "bias": (32,)}, (5, 4))
    other, _moved = rewritten(model)
    assert operators(other) == ["Conv"]
    check_same(model, other)


def test_open_axes_stay_open():
    model = alone(4, strides=[2, 2], pads=[1, 1, 1, 1])
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    other, _moved = rewritten(model)
    assert operators(other) == ["Conv", "DepthToSpace", "Slice"]
    assert as_convolutions(model, (), depth_to_space=False) == {}
    for sizes in ((5, 4), (1, 9)):
        x = GENERATOR.standard_normal((1, 512, *sizes)).astype(np.float32)
        before, after = (open_exact(each).run(None, {"x": x})[0] for each in (model, other))
        np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (3, {"strides": [2, 2], "dilations": [2, 2]}),
        (3, {"strides": [2, 1]}),
        (1, {"strides": [2, 2]}),  # 8 multiply-adds for each value
        (3, {"strides": [2, 2], "group": 32}),  # depthwise: four results for each channel
    ],
)
def test_other_forms_stay(kernel, attributes):
    group = attributes.get("group", 1)
    weights = {"w": (32, 1 if group > 1 else 16, kernel, kernel), "bias": (32 if group > 1 else 16,)}
    model = network([up(**attributes)], weights, (5, 4))
    other, moved = rewritten(model)
    assert operators(other) == ["ConvTranspose"]
    assert not moved


def test_computed_weights_and_biases_stay():
    node = up(strides=[2, 2])
    model = network([node], {"w": (32, 16, 4, 4), "bias": (16,)}, (5, 4))
    for name in ("w", "bias"):
        nodes = [helper.make_node("Neg", [name], ["negative"]), onnx.NodeProto()]
        nodes[1].CopyFrom(node)
        nodes[1].input[:] = ["negative" if one == name else one for one in node.input]
        other = network(nodes, {"w": (32, 16, 4, 4), "bias": (16,)}, (5, 4))
        assert "ConvTranspose" in operators(rewritten(other)[0])
    assert "ConvTranspose" in operators(rewritten(model, exclude=("up",))[0])


def test_three_axes_with_stride_2_stay():
    assert operators(rewritten(alone(4, (3, 3, 3), strides=[2, 2, 2]))[0]) == ["ConvTranspose"]


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ([helper.make_node("Relu", ["c"], ["y"], name="act")], ["Conv", "Relu", *MOVES]),
        (
            [helper.make_node("LeakyRelu", ["c"], ["y"], name="act", alpha=0.1)],
            ["Conv", "LeakyRelu", *MOVES],
        ),
        (
            [helper.make_node("Clip", ["c", "", "six"], ["y"], name="act")],
            ["Conv", "Clip", *MOVES],
        ),
        (
            [
                helper.make_node("Relu", ["c"], ["r"], name="act"),
                helper.make_node("Add", ["c", "r"], ["y"]),
            ],
            ["Conv", *MOVES, "Relu", "Add"],
        ),
    ],
)
def test_activations_move_before_the_places(after, kept):
    nodes = [up(result="c", strides=[2, 2], pads=[1, 1, 1, 1]), *after]
    model = network(nodes, {"w": (32, 16, 4, 4), "bias": (16,), "six": ()}, (5, 4))
    other, moved = rewritten(model)
    assert operators(other) == kept
    assert set(moved.values()) <= {"c", "y"}
    check_same(model, other)


def test_names_that_the_rewrite_would_add_are_kept():
    nodes = [
        up(result="c", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["c.blocks"], name="up.moved"),
        helper.make_node("Relu", ["c.blocks"], ["up.moved"], name="up.cut"),
        helper.make_node("Neg", ["up.moved"], ["y"], name="up.blocks.weight"),
    ]
    model = network(nodes, {"w": (32, 16, 4, 4), "bias": (16,)}, (5, 4))
    other, _moved = rewritten(model)
    names = [node.name for node in other.graph.node]
    assert len(set(names)) == len(names)
    check_same(model, other)


def decoder(after, *, last="d", channels=16, **weights):
    """A convolution, a ConvTranspose, the given nodes, and a convolution of their result."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="act1"),
        up("b", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
        *after,
        helper.make_node("Conv", [last, "last"], ["y"], name="last"),
    ]
    shapes = {"first": (32, 32, 1, 1), "w": (32, 16, 4, 4), "bias": (16,), "last": (16, channels, 1, 1)}
    return network(nodes, shapes | weights, (6, 5))


AFTER = {
    "nothing": decoder([], last="c"),
    "relu": decoder([helper.make_node("Relu", ["c"], ["d"], name="act2")]),
    "leaky": decoder([helper.make_node("LeakyRelu", ["c"], ["d"], name="act2")]),
    "skip": decoder(
        [
            helper.make_node("ConvTranspose", ["b", "w2"], ["e"], name="up2", strides=[2, 2], pads=[1] * 4),
            helper.make_node("Concat", ["c", "e"], ["d"], name="join", axis=1),
        ],
        channels=32,
        w2=(32, 16, 4, 4),
    ),
    "residual": decoder(
        [
            helper.make_node("Conv", ["c", "w2"], ["e"], name="side"),
            helper.make_node("Add", ["c", "e"], ["d"], name="sum"),
        ],
        w2=(16, 16, 1, 1),
    ),
    "hard swish": decoder([helper.make_node("HardSwish", ["c"], ["d"], name="act2")]),
}


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize("after", sorted(AFTER))
def test_int8_stays_close_to_float(tmp_path, after, target):
    x = GENERATOR.standard_normal((32, 32, 6, 5)).astype(np.float32)
    path = tmp_path / "int8.onnx"
    quantize_model(
        AFTER[after], path, ArraySamples({"x": x}), Int8Settings(TARGETS[target]), progress=SILENT
    )
    before, now = (open_exact(each).run(None, {"x": x})[0] for each in (AFTER[after], onnx.load(path)))
    assert sqnr_db(before, now) > 25
    if target != "arm64":  # whose form this host runs in float
        found = audit(path)
        assert "ConvTranspose" not in found.operators
        assert found.int8_mac_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_an_excluded_one_stays_as_it_is(tmp_path, method):
    x = GENERATOR.standard_normal((8, 32, 6, 5)).astype(np.float32)
    path, settings = tmp_path / "int8.onnx", Int8Settings(TARGETS["x86-vnni"], method, exclude=("up",))
    quantize_model(AFTER["relu"], path, ArraySamples({"x": x}), settings, progress=SILENT)
    assert [node.op_type for node in onnx.load(path).graph.node if node.name == "up"] == ["ConvTranspose"]


def test_ranges_come_from_the_given_network():
    plan = plan_qdq(AFTER["relu"], TARGETS["x86-vnni"])
    names = {name for node in plan.network.graph.node for name in node.output} | {"x"}
    assert set(plan.tensors) <= names
    assert set(plan.moved.values()) == {"c", "d"}


def test_where_depth_to_space_has_no_kernel_for_signed_values_open_sizes_stay():
    model = onnx.ModelProto()
    model.CopyFrom(AFTER["relu"])
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "open"
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    old, new = TARGETS["arm64"], replace(TARGETS["arm64"], runtime=RuntimeVersion(1, 28))
    assert "ConvTranspose" in operators(plan_qdq(model, old).graph)
    assert "DepthToSpace" in operators(plan_qdq(model, new).graph)
    assert "DepthToSpace" in operators(plan_qdq(model, TARGETS["x86-avx2"]).graph)


def test_the_old_weights_are_not_kept(tmp_path):
    x = GENERATOR.standard_normal((8, 32, 6, 5)).astype(np.float32)
    path = tmp_path / "int8.onnx"
    quantize_model(
        AFTER["relu"], path, ArraySamples({"x": x}), Int8Settings(TARGETS["x86-vnni"]), progress=SILENT
    )
    assert "w" not in {tensor.name for tensor in onnx.load(path).graph.initializer}
