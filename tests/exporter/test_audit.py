"""What ONNX Runtime really runs, against counts made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import ModelError
from bench.host import fingerprint, has_vnni
from bench.progress import SILENT
from exporter import audit as audit_module
from exporter.audit import audit
from exporter.data import Split
from exporter.quantize import quantize
from exporter.recipe import QuantizeConfig
from exporter.targets import TARGETS


@pytest.fixture
def save(tmp_path):
    """A model from `x` to `y`; constants become initializers."""

    def write(nodes, constants, shape, *, name="model.onnx", outputs=("y",), opset=18):
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / name)
        return tmp_path / name

    return write


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONV = 4 * 6 * 6 * 2 * 3 * 3  # output channels x places x input channels x kernel
DEPTHWISE = 4 * 6 * 6 * 1 * 3 * 3
GEMM = 4 * 6 * 6 * 5


def conv_net(save, weight=None):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2", "b1"], ["d"], name="depth", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["d"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    constants = {
        "w1": normal(4, 2, 3, 3) if weight is None else weight,
        "b1": normal(4),
        "w2": normal(4, 1, 3, 3, seed=1),
        "w3": normal(5, 144, seed=2),
        "b3": normal(5),
    }
    return save(nodes, constants, ["N", 2, 8, 8])


@pytest.fixture
def to_int8(tmp_path):
    def run(path, target="x86-vnni", exclude=()):
        shape = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim][1:]
        data = Split({"x": normal(12, *shape)}, np.arange(12) % 2)
        config = QuantizeConfig(samples=12, exclude=exclude)
        quantize(path, tmp_path / "int8.onnx", data, config, TARGETS[target], seed=0, progress=SILENT)
        return tmp_path / "int8.onnx"

    return run


def test_a_float_model_is_counted_exactly(save):
    found = audit(conv_net(save))
    assert (found.macs, found.int8_macs, found.int8_mac_ratio) == (CONV + DEPTHWISE + GEMM, 0, 0.0)
    assert {operator.name: operator.macs for operator in found.float_ops} == {
        "conv": CONV,
        "depth": DEPTHWISE,
        "fc": GEMM,
    }
    assert [operator.macs for operator in found.float_ops] == sorted((CONV, DEPTHWISE, GEMM), reverse=True)
    assert {operator.reason for operator in found.float_ops} == {"it was not quantized"}
    assert found.saturation == ()


def test_a_quantized_model_runs_wholly_in_int8(save, to_int8):
    found = audit(to_int8(conv_net(save)))
    assert (found.macs, found.int8_mac_ratio) == (CONV + DEPTHWISE + GEMM, 1.0)
    assert found.float_ops == ()
    assert found.operators.get("QLinearConv", 0) + found.operators.get("NhwcQLinearConv", 0) == 2
    assert "Conv" not in found.operators


def test_an_exported_net_runs_in_int8(onnx_models):
    assert audit(onnx_models.float).int8_mac_ratio == 0.0
    found = audit(onnx_models.int8)
    assert found.int8_mac_ratio == 1.0
    # stem, body and head of the tiny network at a batch of one
    assert found.macs == 8 * 64 * 9 + 8 * 16 * 8 * 9 + 8 * 3


def test_an_excluded_node_is_told_with_a_reason(save, to_int8):
    found = audit(to_int8(conv_net(save), exclude=("depth",)))
    (operator,) = found.float_ops
    assert (operator.name, operator.macs) == ("depth", DEPTHWISE)
    assert operator.reason
    assert found.int8_mac_ratio == pytest.approx((CONV + GEMM) / (CONV + DEPTHWISE + GEMM))


def test_products_of_two_activations_are_counted(save):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="product"),
    ]
    assert audit(save(nodes, {}, ["N", 3, 7])).macs == 3 * 3 * 7
    nodes[1].input[:] = ["t", "x"]
    assert audit(save(nodes, {}, ["N", 3, 7])).macs == 7 * 7 * 3


@pytest.mark.parametrize("name", ["MatMul", "Gemm"])
def test_matrices_are_counted_either_way_round(save, name):
    nodes = [helper.make_node(name, ["x", "w"], ["y"], name="product")]
    assert audit(save(nodes, {"w": normal(7, 5)}, ["N", 7])).macs == 7 * 5


def test_transposed_convolutions_are_counted_by_their_input(save):
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])]
    found = audit(save(nodes, {"w": normal(2, 3, 2, 2)}, ["N", 2, 4, 4]))
    assert found.macs == 2 * 4 * 4 * 3 * 2 * 2
    assert found.float_ops[0].reason == "ONNX Runtime's CPU kernels have no int8 form of it"


def test_a_model_without_products(save):
    found = audit(save([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 3]))
    assert (found.macs, found.int8_mac_ratio, found.operators) == (0, 0.0, {"Relu": 1})


def test_large_weights_of_one_sign_may_saturate(save, to_int8):
    weight = np.ones((4, 2, 3, 3), np.float32)  # 127 each: 255 x (127 + 127) does not fit in 16 bits
    found = audit(to_int8(conv_net(save, weight)))
    (layer,) = [layer for layer in found.saturation if layer.name == "conv"]
    assert layer.channels == 4
    assert layer.affects_this_host is not has_vnni(fingerprint())


def test_opposite_signs_cancel_and_small_weights_fit(save, to_int8):
    # One large weight per channel, all others below half a step of 8 bits: no two of them overflow.
    lone = np.zeros((4, 2, 3, 3), np.float32)
    lone[:, 0, 1, 1] = 1
    lone[:, 1, 1, 1] = -1
    found = audit(to_int8(conv_net(save, lone)))
    assert "conv" not in {layer.name for layer in found.saturation}


def test_reduced_range_never_saturates(save, to_int8):
    weight = np.ones((4, 2, 3, 3), np.float32)
    assert audit(to_int8(conv_net(save, weight), target="x86-avx2")).saturation == ()


def test_hosts_without_vnni_are_told(save, to_int8, monkeypatch):
    monkeypatch.setattr(audit_module, "has_vnni", lambda host: False)
    found = audit(to_int8(conv_net(save, np.ones((4, 2, 3, 3), np.float32))))
    assert all(layer.affects_this_host for layer in found.saturation)
    assert found.saturation


def test_the_reasons_of_half_quantized_layers(save):
    """QDQ on one side only cannot be fused."""
    scale = {"s": np.float32(0.1), "z": np.uint8(0)}
    rounded = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    before = save(
        [*rounded, helper.make_node("Conv", ["d", "w"], ["y"], name="conv")],
        {**scale, "w": normal(4, 2, 3, 3)},
        ["N", 2, 8, 8],
    )
    assert audit(before).float_ops[0].reason == "its output is not quantized"
    behind = save(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {**scale, "w": normal(4, 2, 3, 3)},
        ["N", 2, 8, 8],
        name="behind.onnx",
    )
    assert audit(behind).float_ops[0].reason == "its input is not quantized"


@pytest.mark.skipif(fingerprint().machine != "x86_64", reason="signed activations fuse on Arm")
def test_a_layer_that_could_run_in_int8_and_does_not_is_counted_and_told(save, to_int8):
    """S8S8 is fused on x86 only where a tensor has one reader; here two layers share one."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    path = save(nodes, {"w1": normal(4, 4, 3, 3), "w2": normal(4, 4, 3, 3, seed=1)}, ["N", 4, 6, 6])
    found = audit(to_int8(path, target="arm64"))
    each = 4 * 36 * 4 * 9
    assert found.macs == 2 * each
    assert {operator.name: operator.macs for operator in found.float_ops} == {"one": each, "two": each}
    assert "keep ONNX Runtime from fusing it" in found.float_ops[0].reason
    assert audit(to_int8(path)).int8_macs == 2 * each


def test_quantized_matrices_are_looked_through_for_saturation(save, to_int8):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    found = audit(to_int8(save(nodes, {"w": np.ones((7, 5), np.float32)}, ["N", 7])))
    assert found.int8_mac_ratio == 1.0
    assert found.macs == 7 * 5
    assert found.saturation[0].channels == 5


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_files_that_are_no_model(save, content):
    path = conv_net(save)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ModelError, match=r"model.onnx: is truncated or no ONNX model"):
        audit(path)


def test_open_dimensions_are_refused(save):
    path = save([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(7, 5)}, ["N", "M"])
    with pytest.raises(ModelError, match="cannot be run to count its work"):
        audit(path)
