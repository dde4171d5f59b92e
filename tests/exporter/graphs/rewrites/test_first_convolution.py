"""The first convolution on blocks of pixels: the sums do not change, and other nodes are not rewritten."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench.inputs.runtime import OLDEST, RuntimeVersion
from bench.metrics.parity import sqnr_db
from exporter.graphs.kernels import oldest_runtime
from exporter.graphs.rewrites.first_convolution import fold_stem
from exporter.graphs.targets import TARGETS
from exporter.pipeline.quantize_file import quantize_file


def int8_convolution(weight, size, channels=None, second_reader=None, **attributes):
    """A model that quantizes and convolves a picture; `size` may contain names of dynamic axes."""
    channels = weight.shape[1] if channels is None else channels
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(117),
        "weight": weight,
        "scales": np.linspace(0.01, 0.02, len(weight), dtype=np.float32),
        "zeros": np.zeros(len(weight), np.int8),
        "bias": np.linspace(-1, 1, len(weight), dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_q"], name="q"),
        helper.make_node("DequantizeLinear", ["image_q", "scale", "zero"], ["image_dq"], name="dq"),
        helper.make_node(
            "DequantizeLinear", ["weight", "scales", "zeros"], ["weight_dq"], name="w", axis=0
        ),
        helper.make_node("Conv", ["image_dq", "weight_dq", "bias"], ["y"], name="conv", **attributes),
    ]
    outputs = []
    if second_reader is not None:
        nodes.append(helper.make_node("Identity", [second_reader], ["other"]))
        outputs.append("other")
    graph = helper.make_graph(
        nodes,
        "stem",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (2 + len(size)))]
        + [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def weights(channels=3, kernel=(3, 3), out=5):
    return np.random.default_rng(0).integers(-127, 128, (out, channels, *kernel)).astype(np.int8)


def run(model, image):
    """Run without optimizations, in float, so no sums saturate on any CPU."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(["y"], {"image": image})[0]


@st.composite
def convolutions(draw):
    kernel = draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    size = draw(st.tuples(*(st.integers(-(-k // 2), 8).map(lambda half: 2 * half) for k in kernel)))
    return draw(st.integers(1, 4)), kernel, pads, size


@settings(deadline=None)
@given(convolutions())
def test_the_result_is_the_same(drawn):
    channels, kernel, pads, size = drawn
    model = int8_convolution(weights(channels, kernel), size, strides=[2, 2], pads=pads)
    image = np.random.default_rng(1).uniform(-3, 3, (2, channels, *size)).astype(np.float32)
    before = run(model, image)
    assert fold_stem(model, OLDEST)
    onnx.checker.check_model(model, full_check=True)
    after = run(model, image)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in model.graph.node].count("SpaceToDepth") == 1
    assert oldest_runtime(model).version == OLDEST


@pytest.mark.parametrize("stated", [{}, {"auto_pad": "NOTSET"}])  # as torch's exporter states it
def test_a_convolution_without_pads_is_rewritten(stated):
    model = int8_convolution(weights(), (8, 8), strides=[2, 2], **stated)
    image = np.random.default_rng(1).uniform(-3, 3, (1, 3, 8, 8)).astype(np.float32)
    before = run(model, image)
    assert fold_stem(model, OLDEST)
    np.testing.assert_allclose(run(model, image), before, rtol=1e-4, atol=1e-4)
    assert not fold_stem(model, OLDEST)  # it is not rewritten twice


@pytest.mark.parametrize(
    "model",
    [
        int8_convolution(weights(), (8, 8)),
        int8_convolution(weights(), (8, 8), strides=[2, 1]),
        int8_convolution(weights(), (9, 8), strides=[2, 2]),
        int8_convolution(weights(), ("h", 8), strides=[2, 2]),
        int8_convolution(weights(), (8, 8), strides=[2, 2], dilations=[2, 2]),
        int8_convolution(weights(), (8, 8), strides=[2, 2], auto_pad="SAME_UPPER"),
        int8_convolution(weights(1, out=6), (8, 8), channels=3, strides=[2, 2], group=3),
        int8_convolution(weights(5), (8, 8), strides=[2, 2]),
        int8_convolution(weights(kernel=(1, 1)), (8, 8), strides=[2, 2]),
        int8_convolution(weights(kernel=(3,)), (8,), strides=[2]),
        int8_convolution(weights(), (8, 8), strides=[2, 2], second_reader="image_q"),
        int8_convolution(weights(), (8, 8), strides=[2, 2], second_reader="image_dq"),
        int8_convolution(weights(), (8, 8), strides=[2, 2], second_reader="weight"),
        int8_convolution(weights(), (8, 8), strides=[2, 2], second_reader="weight_dq"),
    ],
)
def test_other_convolutions_are_not_rewritten(model):
    before = model.SerializeToString()
    assert not fold_stem(model, OLDEST)
    assert model.SerializeToString() == before


def test_computed_weights_are_not_rewritten():
    model = int8_convolution(weights(), (8, 8), strides=[2, 2])
    made = helper.make_node("RandomNormal", [], ["weight_dq"], shape=[5, 3, 3, 3])
    model.graph.node[2].CopyFrom(made)
    assert not fold_stem(model, OLDEST)


def test_a_picture_of_unknown_rank_is_not_rewritten():
    model = int8_convolution(weights(), (8, 8), strides=[2, 2])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert not fold_stem(model, OLDEST)


def bytes_convolution():
    """A model that dequantizes and convolves a picture of bytes, without a QuantizeLinear."""
    model = int8_convolution(weights(), (8, 8), strides=[2, 2], pads=[1] * 4)
    graph = model.graph
    graph.node.remove(graph.node[0])
    graph.node[0].input[0] = "image"
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def test_bytes_are_moved_if_the_runtime_has_the_kernel():
    model = bytes_convolution()
    image = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    before = run(model, image)
    untouched = model.SerializeToString()
    assert not fold_stem(model, RuntimeVersion(1, 27))
    assert model.SerializeToString() == untouched
    assert fold_stem(model, RuntimeVersion(1, 28))
    np.testing.assert_allclose(run(model, image), before, rtol=1e-4, atol=1e-4)
    assert oldest_runtime(model).version == (1, 28)


@pytest.mark.parametrize("target", TARGETS)
def test_the_stem_is_rewritten_only_for_the_measured_kind_of_cpu(tmp_path, target):
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], strides=[2, 2], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["y"]),
        ],
        "stem",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 1, 1])],
        [numpy_helper.from_array(generator.standard_normal((8, 3, 3, 3), dtype=np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        tmp_path / "float.onnx",
    )
    image = generator.standard_normal((8, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "samples.npz", image=image)
    path = tmp_path / "int8.onnx"
    made = quantize_file(tmp_path / "float.onnx", tmp_path / "samples.npz", path, target=target).made
    found = "SpaceToDepth" in {node.op_type for node in onnx.load(path).graph.node}
    assert found is made.stem_on_blocks is (target == "x86-vnni")
    assert made.min_onnxruntime == str(OLDEST)
    wanted, given_ = (run(onnx.load(tmp_path / name), image) for name in ("float.onnx", "int8.onnx"))
    assert sqnr_db(wanted, given_) > 30
