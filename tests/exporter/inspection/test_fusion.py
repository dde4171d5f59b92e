"""Reasons for float operators, and needless conversions, in a residual network and in small graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.progress import SILENT
from bench.inputs.host import fingerprint, host_target
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit, coverage_failure
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

ON_X86 = host_target(fingerprint()).startswith("x86")
only_x86 = pytest.mark.skipif(not ON_X86, reason="signed activations fuse on Arm")


class Graph:
    """A graph builder. Each method that adds a node returns the node's output."""

    def __init__(self, *shape):
        self._nodes, self._constants = [], {}
        self._input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
        self._rng = np.random.default_rng(0)

    def op(self, op, inputs, name, **attributes):
        self._nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name, value):
        self._constants[name] = value
        return name

    def conv(self, tensor, name, sizes, stride=1):
        inputs, outputs, kernel = sizes
        spread = np.sqrt(2 / (inputs * kernel**2))
        weight = self._rng.normal(0, spread, (outputs, inputs, kernel, kernel)).astype(np.float32)
        operands = [
            tensor,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", self._rng.normal(0, 0.1, outputs).astype(np.float32)),
        ]
        return self.op("Conv", operands, name, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def rounded(self, tensor, name, scale=0.05, kind=np.uint8):
        qparams = [
            self.constant(f"{name}.scale", np.float32(scale)),
            self.constant(f"{name}.zero", kind(0)),
        ]
        quantized = self.op("QuantizeLinear", [tensor, *qparams], f"{name}.quantize")
        return self.op("DequantizeLinear", [quantized, *qparams], f"{name}.dequantize")

    def int8_conv(self, tensor, name, channels=4):
        """A convolution whose weight, input and output are quantized."""
        weight = self._rng.integers(-64, 64, (channels, channels, 3, 3)).astype(np.int8)
        qparams = [
            self.constant(f"{name}.w", weight),
            self.constant(f"{name}.ws", np.float32(0.01)),
            self.constant(f"{name}.wz", np.int8(0)),
        ]
        w = self.op("DequantizeLinear", qparams, f"{name}.weight")
        return self.rounded(self.op("Conv", [tensor, w], name, pads=[1] * 4), f"{name}.rounded")

    def model(self, output):
        graph = helper.make_graph(
            self._nodes,
            "g",
            [self._input],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in self._constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return onnx.shape_inference.infer_shapes(made)


def residual_network(width=8, side=64):
    """ResNet-18: a stem, four stages of two blocks of two convolutions, and three convolutions of 1x1."""
    g = Graph(3, side, side)
    x = g.op("Relu", [g.conv("x", "stem", (3, width, 7), 2)], "stem.relu")
    x = g.op("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(2):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = g.op("Relu", [g.conv(x, f"{name}.conv1", (inputs, outputs, 3), stride)], f"{name}.relu1")
            y = g.conv(y, f"{name}.conv2", (outputs, outputs, 3))
            if stride == 2:
                x = g.conv(x, f"{name}.downsample", (inputs, outputs, 1), 2)
            x = g.op("Relu", [g.op("Add", [y, x], f"{name}.add")], f"{name}.relu2")
            inputs = outputs
    x = g.op("Flatten", [g.op("GlobalAveragePool", [x], "mean")], "flatten")
    weight = np.random.default_rng(1).normal(0, 0.2, (10, inputs)).astype(np.float32)
    bias = g.constant("fc.bias", np.zeros(10, np.float32))
    return g.model(g.op("Gemm", [x, g.constant("fc.weight", weight), bias], "fc", transB=1))


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """Paths of the residual network, quantized for two targets."""
    folder = tmp_path_factory.mktemp("residual")
    data = np.random.default_rng(2).standard_normal((4, 3, 64, 64)).astype(np.float32)
    paths = {}
    for target in ("x86-vnni", "arm64"):
        paths[target] = folder / f"{target}.onnx"
        quantize_model(
            residual_network(),
            paths[target],
            ArraySamples({"x": data}),
            Int8Settings(TARGETS[target]),
            progress=SILENT,
        )
    return paths


@only_x86
def test_all_twenty_convolutions_of_a_residual_network_run_in_int8(residual):
    found = audit(residual["x86-vnni"])
    assert found.operators.get("QLinearConv", 0) + found.operators.get("NhwcQLinearConv", 0) == 20
    assert found.operators["QGemm"] == 1
    assert (found.int8_mac_ratio, found.float_ops, found.needless_pairs) == (1.0, (), ())
    assert found.quantized_at_load == ()
    assert coverage_failure(found, 1.0) is None


@only_x86
def test_the_same_network_with_signed_activations_fails_with_the_reason(residual, command):
    found = audit(residual["arm64"], made_for="x86-vnni")
    left = {operator.name: operator.reason for operator in found.float_ops}
    assert 0 < found.int8_mac_ratio < 0.95
    assert len(left) > 5
    assert "layer1.0.conv1" in left
    assert all("(S8S8)" in reason for reason in left.values())
    shared = left["layer1.0.conv1"]
    assert shared.startswith(
        "its input is signed and has 2 readers: ONNX Runtime converts signed activations"
    )
    model = onnx.load(residual["arm64"])
    del model.metadata_props[:]  # a model of another tool, which states no target
    path = residual["arm64"].with_name("silent.onnx")
    onnx.save(model, path)
    ran = command("inspect", path, "--min-int8", 0.95)
    assert ran.code == 1
    (line,) = ran.err.splitlines()
    assert line.startswith(
        f"FAIL: {found.int8_mac_ratio:.1%} of multiply-adds run in int8, at least 95.0% required"
    )
    assert f"{len(left)} operators stay in float, the largest is {found.float_ops[0].name}: " in line
    assert "(S8S8)" in line
    assert command("inspect", residual["x86-vnni"], "--min-int8", 0.95).code == 0


@pytest.fixture
def inspected(tmp_path):
    """Audit a graph with the given output."""

    def run(graph, output):
        onnx.save(graph.model(output), tmp_path / "model.onnx")
        return audit(tmp_path / "model.onnx")

    return run


def between_convolutions(middle):
    """A graph of an int8 convolution, the nodes that `middle` adds, and another int8 convolution."""
    g = Graph(4, 6, 6)
    tensor = g.int8_conv(g.rounded("x", "in"), "one")
    return g, g.int8_conv(middle(g, tensor), "two")


def test_int8_operators_without_anything_between_have_no_needless_pair(inspected):
    found = inspected(*between_convolutions(lambda g, tensor: tensor))
    assert (found.int8_mac_ratio, found.needless_pairs) == (1.0, ())


def test_a_float_operator_between_int8_operators_is_an_island(inspected):
    found = inspected(*between_convolutions(lambda g, t: g.rounded(g.op("Tanh", [t], "act"), "back")))
    (pair,) = found.needless_pairs
    assert (pair.name, pair.between, pair.reason) == ("act", ("one", "two"), "Tanh runs in float")
    assert found.int8_mac_ratio == 1.0


def test_an_island_of_several_operators_is_one(inspected):
    def middle(g, tensor):
        left, right = g.op("Tanh", [tensor], "left"), g.op("Erf", [tensor], "right")
        return g.rounded(g.op("Sub", [left, right], "minus"), "back")

    (pair,) = inspected(*between_convolutions(middle)).needless_pairs
    assert pair.between == ("one", "two")
    assert set(pair.name.split(", ")) == {"left", "right", "minus"}
    assert pair.reason.endswith(" runs in float")


def test_a_tensor_that_only_changes_its_type(inspected):
    found = inspected(*between_convolutions(lambda g, t: g.rounded(t, "again", kind=np.int8)))
    (pair,) = found.needless_pairs
    assert (pair.between, pair.reason) == (("one", "two"), "only the tensor's scale or type changes")


def test_a_tensor_that_is_only_rounded(inspected):
    g = Graph(4)
    output = g.op("Erf", [g.rounded(g.op("Tanh", ["x"], "first"), "rounded")], "last")
    (pair,) = inspected(g, output).needless_pairs
    assert (pair.name, pair.between) == ("first_out", ("first", "last"))
    assert pair.reason == "the tensor is only rounded: no int8 operator reads it"


def test_the_ends_of_a_model_are_named(inspected):
    g = Graph(4)
    (pair,) = inspected(g, g.rounded("x", "rounded")).needless_pairs
    assert pair.between == ("input x", "the model's output")


def test_an_output_that_is_read_in_float_too(inspected):
    g = Graph(4, 6, 6)
    tensor = g.rounded("x", "in")
    weight = g.op(
        "DequantizeLinear",
        [
            g.constant("w", np.ones((4, 4, 1, 1), np.int8)),
            g.constant("ws", np.float32(0.1)),
            g.constant("wz", np.int8(0)),
        ],
        "weight",
    )
    conv = g.op("Conv", [tensor, weight], "conv")
    output = g.op("Sub", [g.rounded(conv, "out"), g.op("Tanh", [conv], "act")], "sub")
    (operator,) = inspected(g, output).float_ops
    assert operator.reason == "its output is quantized, but it also feeds act in float"


def test_a_node_that_quantize_static_excludes_can_still_run_in_int8(tmp_path, command):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            x = np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32)
            self.feeds = iter([{"x": x}])

        def get_next(self):
            return next(self.feeds, None)

    g = Graph(4, 6, 6)
    tensor = "x"
    for name in ("first", "second", "third"):
        tensor = g.conv(tensor, name, (4, 4, 3))
    quantize_static(
        g.model(tensor),
        tmp_path / "int8.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=["second"],
    )
    found = audit(tmp_path / "int8.onnx")
    assert (found.int8_mac_ratio, found.quantized_at_load) == (1.0, ("second",))
    assert "  int8: second (float in the file; " in command("inspect", tmp_path / "int8.onnx").out


def test_a_bias_that_is_computed(inspected):
    g = Graph(4, 6, 6)
    qparams = [g.constant("ws", np.float32(0.1)), g.constant("wz", np.int8(0))]
    weight = g.op("DequantizeLinear", [g.constant("w", np.ones((4, 4, 1, 1), np.int8)), *qparams], "weight")
    bias = g.op("ReduceMax", ["x", g.constant("axes", np.array([0, 2, 3]))], "bias", keepdims=0)
    conv = g.op("Conv", [g.rounded("x", "in"), weight, bias], "conv")
    (operator,) = inspected(g, g.op("Tanh", [g.rounded(conv, "out")], "act")).float_ops
    assert operator.reason == "its bias is not quantized"


@only_x86
def test_signed_activations_with_one_reader_fuse(inspected):
    g = Graph(4)
    qparams = [g.constant("s", np.float32(0.1)), g.constant("z", np.int8(0))]
    weight = g.op("DequantizeLinear", [g.constant("w", np.ones((4, 4), np.int8)), *qparams], "weight")
    tensor = g.op("MatMul", [g.rounded("x", "in", kind=np.int8), weight], "product")
    found = inspected(g, g.rounded(tensor, "out", kind=np.int8))
    assert found.float_ops == ()
