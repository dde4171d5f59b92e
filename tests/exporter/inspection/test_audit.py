"""The audit of the graph that ONNX Runtime runs, compared with counts made by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import DataError, ModelError
from bench.core.progress import SILENT
from bench.inputs.host import fingerprint, has_vnni, host_target
from exporter.graphs.targets import TARGETS
from exporter.inspection import audit as audit_module
from exporter.inspection.audit import audit, coverage_failure
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization.split import quantize_split
from exporter.recipes import QuantizeConfig
from exporter.sources.splits import Split


@pytest.fixture
def save(tmp_path):
    """Save a model from `x` to `y`; constants become initializers."""

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


CONV = 4 * 6 * 6 * 2 * 3 * 3  # output channels x positions x input channels x kernel
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


def samples(path, shape, count=12):
    """An .npz with standard normal samples."""
    np.savez(path, x=normal(count, *shape))
    return path


@pytest.fixture
def to_int8(tmp_path):
    def run(path, target="x86-vnni", exclude=()):
        shape = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim][1:]
        data = Split({"x": normal(12, *shape)}, np.arange(12) % 2)
        config = QuantizeConfig(samples=12, exclude=exclude)
        quantize_split(path, tmp_path / "int8.onnx", data, config, TARGETS[target], seed=0, progress=SILENT)
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


def test_an_excluded_node_is_reported_with_a_reason(save, to_int8):
    found = audit(to_int8(conv_net(save), exclude=("depth",)))
    (operator,) = found.float_ops
    assert (operator.name, operator.macs) == ("depth", DEPTHWISE)
    assert operator.reason == "it is excluded by name"
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
    assert found.float_ops[0].reason == "ONNX Runtime has no static int8 kernel for ConvTranspose"


def test_a_model_without_products(save):
    found = audit(save([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 3]))
    assert (found.macs, found.int8_mac_ratio, found.operators) == (0, 0.0, {"Relu": 1})


def test_large_weights_of_one_sign_may_saturate(save, to_int8):
    weight = np.ones((4, 2, 3, 3), np.float32)  # all become 127: 255 x (127 + 127) does not fit in 16 bits
    found = audit(to_int8(conv_net(save, weight)), made_for="x86-avx2")
    (layer,) = [layer for layer in found.saturation if layer.name == "conv"]
    assert layer.channels == 4
    assert layer.affects_this_host is not has_vnni(fingerprint())
    assert (layer.observed_share, layer.drift_sqnr_db, found.samples) == (None, None, 0)


def test_saturation_is_observed_on_samples(save, to_int8, tmp_path):
    path = to_int8(conv_net(save, np.ones((4, 2, 3, 3), np.float32)))
    # The values are larger than in calibration, so their bytes are 255.
    np.savez(tmp_path / "bright.npz", x=np.full((3, 2, 8, 8), 9, np.float32))
    found = audit(path, tmp_path / "bright.npz", "x86-avx2")
    layer = found.saturation[0]
    assert (layer.name, layer.channels, layer.observed_share, found.samples) == ("conv", 4, 1.0, 3)
    # With bytes of 255 and weights of 127, each of nine pairs sums to 32767 instead of 64770. The zero
    # point is subtracted later.
    model = onnx.load(path)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    zero_point = int(constants[next(n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear")])
    wanted = 20 * np.log10(18 * (255 - zero_point) * 127 / (9 * (64770 - 32767)))
    assert layer.drift_sqnr_db == pytest.approx(wanted, abs=0.01)


def test_saturation_is_observed_on_all_of_sorted_data(save, to_int8, tmp_path):
    path = to_int8(conv_net(save, np.ones((4, 2, 3, 3), np.float32)))
    level = np.repeat(np.float32([-9, 9]), 60)  # the bright half comes after the first 32 samples
    np.savez(tmp_path / "sorted.npz", x=np.ones((120, 2, 8, 8), np.float32) * level[:, None, None, None])
    found = audit(path, tmp_path / "sorted.npz", "portable")
    assert (found.samples, found.saturation[0].observed_share) == (32, 0.5)


def test_at_most_thirty_two_samples_are_observed(save, to_int8, tmp_path):
    path = to_int8(conv_net(save))
    assert audit(path, samples(tmp_path / "many.npz", (2, 8, 8), 40)).samples == 32


def test_samples_that_do_not_fit_are_rejected(save, tmp_path):
    path = conv_net(save)
    with pytest.raises(DataError, match=r"feed 'x' has shape"):
        audit(path, samples(tmp_path / "wide.npz", (2, 8, 9)))


def test_a_fixed_batch_is_filled(save, tmp_path):
    path = save([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(7, 5)}, [5, 7])
    found = audit(path, samples(tmp_path / "few.npz", (7,), 12))
    assert (found.macs, found.samples) == (5 * 7 * 5, 10)
    with pytest.raises(DataError, match="3 samples do not fill one batch of 5"):
        audit(path, samples(tmp_path / "fewer.npz", (7,), 3))


def test_opposite_signs_cancel_and_small_weights_fit(save, to_int8):
    # One large weight of each sign per channel, all others zero: no pair overflows.
    lone = np.zeros((4, 2, 3, 3), np.float32)
    lone[:, 0, 1, 1] = 1
    lone[:, 1, 1, 1] = -1
    found = audit(to_int8(conv_net(save, lone)), made_for="x86-avx2")
    assert "conv" not in {layer.name for layer in found.saturation}


def test_a_model_for_a_saturating_target_does_not_saturate_on_its_calibration_samples(
    save, to_int8, tmp_path
):
    path = conv_net(save, np.ones((4, 2, 3, 3), np.float32))
    data = samples(tmp_path / "calibration.npz", (2, 8, 8))
    assert "conv" in {layer.name for layer in audit(to_int8(path), data, "x86-avx2").saturation}
    assert audit(to_int8(path, target="x86-avx2"), data, "x86-avx2").saturation == ()


@pytest.mark.parametrize(("vnni", "target"), [(True, "x86-vnni"), (False, "x86-avx2")])
def test_saturation_is_reported_only_for_kinds_that_saturate(save, to_int8, monkeypatch, vnni, target):
    """If no kind is asked for, that of this host counts."""
    monkeypatch.setattr(audit_module, "host_target", lambda host: target)
    path = to_int8(conv_net(save, np.ones((4, 2, 3, 3), np.float32)))
    assert bool(audit(path).saturation) is not vnni
    assert bool(audit(path, made_for="z80").saturation) is not vnni
    for made_for in ("x86-vnni", "arm64"):
        assert audit(path, made_for=made_for).saturation == ()
    for made_for in ("x86-avx2", "portable"):
        assert audit(path, made_for=made_for).saturation


def test_saturation_affects_hosts_without_vnni(save, to_int8, monkeypatch):
    monkeypatch.setattr(audit_module, "has_vnni", lambda host: False)
    found = audit(to_int8(conv_net(save, np.ones((4, 2, 3, 3), np.float32))), made_for="x86-avx2")
    assert all(layer.affects_this_host for layer in found.saturation)
    assert found.saturation


def test_the_reasons_of_half_quantized_layers(save):
    """A layer with QDQ on only one side cannot be fused."""
    scale = {"s": np.float32(0.1), "z": np.uint8(0), "wz": np.int8(0), "w": np.ones((4, 2, 3, 3), np.int8)}
    weight = helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["dw"])
    rounded = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    before = save(
        [*rounded, weight, helper.make_node("Conv", ["d", "dw"], ["y"], name="conv")], scale, ["N", 2, 8, 8]
    )
    reason = "its output is not quantized: it feeds the model's output"
    assert audit(before).float_ops[0].reason == reason
    after = save(
        [
            weight,
            helper.make_node("Conv", ["x", "dw"], ["c"], name="conv"),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        scale,
        ["N", 2, 8, 8],
        name="after.onnx",
    )
    assert audit(after).float_ops[0].reason == "its input is not quantized"


@pytest.mark.skipif(fingerprint().machine != "x86_64", reason="signed activations fuse on Arm")
def test_a_quantized_layer_that_runs_in_float_is_counted_as_float(save, to_int8):
    """On x86, S8S8 is fused only if a tensor has one reader; here a tensor has two."""
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
    assert all("has 2 readers" in operator.reason for operator in found.float_ops)
    assert audit(to_int8(path)).int8_macs == 2 * each


def test_matrix_products_are_checked_for_saturation(save, to_int8):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    found = audit(to_int8(save(nodes, {"w": np.ones((7, 5), np.float32)}, ["N", 7])), made_for="x86-avx2")
    assert found.int8_mac_ratio == 1.0
    assert found.macs == 7 * 5
    assert found.saturation[0].channels == 5


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_files_that_are_not_models_are_rejected(save, content):
    path = conv_net(save)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ModelError, match=r"model.onnx: is truncated or not an ONNX model"):
        audit(path)


def test_open_dimensions_need_samples(save, tmp_path):
    path = save([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(7, 5)}, ["N", "M", 7])
    with pytest.raises(
        DataError, match=r"axis 1 of input 'x' has no fixed size; provide feeds with --data"
    ):
        audit(path)
    assert audit(path, samples(tmp_path / "real.npz", (3, 7))).macs == 3 * 7 * 5


def test_a_share_below_the_minimum_is_a_failure(save, to_int8):
    found = audit(to_int8(conv_net(save), exclude=("depth",)))
    assert coverage_failure(found, found.int8_mac_ratio) is None
    assert coverage_failure(found, 0.9) == (
        f"{found.int8_mac_ratio:.1%} of multiply-adds run in int8, at least 90.0% required; "
        f"1 operator stays in float, the largest is depth: {found.float_ops[0].reason}"
    )
    empty = audit(save([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 3]))
    assert coverage_failure(empty, 0.5) == "0.0% of multiply-adds run in int8, at least 50.0% required"


@pytest.fixture
def residual(tmp_path):
    """Quantize two convolutions and a sum. A tensor has two readers, so x86 does not fuse its S8S8 form."""
    generator = np.random.default_rng(0)
    weights = {f"w{k}": generator.standard_normal((8, 8, 3, 3)).astype(np.float32) for k in range(2)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Conv", ["r", "w1"], ["b"], name="second", pads=[1] * 4),
            helper.make_node("Add", ["r", "b"], ["y"], name="sum"),
        ],
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "float.onnx",
    )
    np.savez(tmp_path / "x.npz", x=generator.standard_normal((8, 8, 6, 6)).astype(np.float32))

    def quantized(target):
        path = tmp_path / f"{target}.onnx"
        quantize_file(tmp_path / "float.onnx", tmp_path / "x.npz", path, target=target)
        return path

    return quantized


def test_a_file_for_another_kind_of_cpu_is_fused_as_on_that_kind(residual):
    """Any host's optimizer can do this. The graph for this host would not show how the other one fuses."""
    path = residual("arm64")
    there, here = audit(path, made_for="arm64"), audit(path, made_for="x86-vnni")
    assert (there.target, there.int8_mac_ratio, there.float_ops) == ("arm64", 1.0, ())
    assert there.operators["QLinearConv"] == 2
    assert there.saturation == ()
    assert here.int8_mac_ratio < 1.0
    assert "quantize for x86-vnni" in here.float_ops[0].reason
    assert audit(residual("x86-vnni"), made_for="x86-avx2").int8_mac_ratio == 1.0


def test_inspect_uses_the_kind_of_cpu_that_the_file_states(residual, command):
    host = host_target(fingerprint())
    ran = command("inspect", residual("arm64"))
    said = ran.out.splitlines()
    words = (
        "made for arm64: operators are fused as ONNX Runtime fuses them there; its kernels were not run, "
        "because this CPU is"
    )
    assert said[:-1] == ([] if host == "arm64" else [f"{words} {host}"])
    assert said[-1].startswith("100.0% of ")
    assert "x86" not in said[-1]
    told = json.loads(command("inspect", residual("arm64"), "--json", "--min-int8", "0.95").out)
    assert (told["target"], told["host_target"], told["int8_mac_ratio"]) == ("arm64", host, 1.0)
    assert command("inspect", residual("portable")).out.splitlines()[0].startswith("100.0% of ")


def test_a_model_for_an_unknown_kind_of_cpu_is_fused_as_on_this_host(residual):
    path = residual("portable")
    for made_for in (None, "portable", "z80"):
        assert audit(path, made_for=made_for).target == host_target(fingerprint())
