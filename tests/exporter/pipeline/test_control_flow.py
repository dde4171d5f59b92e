"""Files with control flow: constant branches disappear, others stay in float beside an int8 network."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file
from exporter.quantization.int8_repaired import RepairSettings

R = np.random.default_rng(0)
X = R.standard_normal((16, 3, 8, 8)).astype(np.float32)
CONSTANTS = {
    "w": R.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.3,
    "v": R.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.2,
    "zero": np.float32(0),
    "one": np.int64(1),
    "three": np.int64(3),
    "four": np.int64(4),
    "eight": np.int64(8),
    "last": np.int64(-1),
    "list": np.array([2]),
    "yes": np.array(True),
    "no": np.array(False),
}

# Nodes between two convolutions, from `h` to `z`. Branches of one If may use the same names.
CONSTANT = {
    "then": "z = If (yes) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Relu(h) },"
            " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "else": "z = If (no) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Relu(h) },"
            " else_branch = b () => (float[n, 8, 8, 8] o) { t = Tanh(h) o = Neg(t) }>",
    "computed": "s = Shape(h) r = Size(s) c = Equal(r, four)"
                " z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Relu(h) },"
                " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    # PyTorch's exporter writes such conditions for networks that check the form of their input.
    "an element of a partly open shape": "s = Shape(h) e = Gather<axis = 0>(s, one) c = Equal(e, eight)"
                                         " z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o)"
                                         " { o = Relu(h) },"
                                         " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "the last element of a shape": "s = Shape(h) e = Gather<axis = 0>(s, last) c = Less(e, eight)"
                                   " z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o)"
                                   " { o = Relu(h) },"
                                   " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "a part of a shape": "s = Shape(h) e = Gather<axis = 0>(s, list) t = Squeeze(e) c = Equal(t, eight)"
                         " z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Relu(h) },"
                         " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "a computed size": "s = Shape(h) e = Gather<axis = 0>(s, one) f = Gather<axis = 0>(s, three)"
                       " g = Mul(e, f) c = Greater(g, four)"
                       " z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Relu(h) },"
                       " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "twice the same names": "g = If (yes) <then_branch = a () => (float[n, 8, 8, 8] o)"
                            " { t = Relu(h) o = Neg(t) },"
                            " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>"
                            " z = If (yes) <then_branch = a () => (float[n, 8, 8, 8] o)"
                            " { t = Tanh(g) o = Neg(t) },"
                            " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(g) }>",
    "nested": "z = If (yes) <then_branch = a () => (float[n, 8, 8, 8] o) { u = Relu(h)"
              " o = If (no) <then_branch = c () => (float[n, 8, 8, 8] q) { q = Neg(u) },"
              " else_branch = d () => (float[n, 8, 8, 8] q) { q = Tanh(u) }> },"
              " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "weights inside": "z = If (yes) <then_branch = a () => (float[n, 8, 8, 8] o)"
                      " { o = Conv<pads = [1, 1, 1, 1]>(h, v) },"
                      " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
}  # fmt: skip
FLAG = "m = ReduceMean<keepdims = 0>(h) c = Greater(m, zero) "
LIVE = {
    "If": FLAG + "z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Mul(h, h) },"
                 " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "reads a Relu": "r = Relu(h) " + FLAG.replace("(h)", "(r)") +
                    "z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { o = Mul(r, r) },"
                    " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(r) }>",
    "reads the input": FLAG + "s = If (c) <then_branch = a () => (float o)"
                              " { o = ReduceMax<keepdims = 0>(x) },"
                              " else_branch = b () => (float o) { o = ReduceMin<keepdims = 0>(x) }>"
                              " z = Add(h, s)",
    "shares weights": FLAG + "z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o)"
                             " { o = Conv<pads = [1, 1, 1, 1]>(h, v) },"
                             " else_branch = b () => (float[n, 8, 8, 8] o)"
                             " { o = Conv<pads = [1, 1, 1, 1]>(h, v) }>",
    "nested": FLAG + "z = If (c) <then_branch = a () => (float[n, 8, 8, 8] o) { u = Relu(h)"
                     " o = If (c) <then_branch = d () => (float[n, 8, 8, 8] q) { q = Mul(u, h) },"
                     " else_branch = e () => (float[n, 8, 8, 8] q) { q = Tanh(u) }> },"
                     " else_branch = b () => (float[n, 8, 8, 8] o) { o = Neg(h) }>",
    "Loop": "z = Loop (three, yes, h) <body = l (int64 i, bool c, float[n, 8, 8, 8] s) =>"
            " (bool d, float[n, 8, 8, 8] t) { d = Identity(c) t = Add(s, h) }>",
    "Loop over a Relu": "r = Relu(h) z = Loop (three, yes, h) <body = l (int64 i, bool c,"
                        " float[n, 8, 8, 8] s) => (bool d, float[n, 8, 8, 8] t)"
                        " { d = Identity(c) t = Add(s, r) }>",
    "Scan": "f = Transpose<perm = [1, 0, 2, 3]>(h) k = ReduceMean<axes = [0], keepdims = 0>(f)"
            " l, g = Scan<num_scan_inputs = 1, body = b (float[n, 8, 8] s, float[n, 8, 8] e) =>"
            " (float[n, 8, 8] t, float[n, 8, 8] o) { t = Add(s, e) o = Tanh(t) }>(k, f)"
            " z = Transpose<perm = [1, 0, 2, 3]>(g)",
}  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def write(middle, opset=17, output="y", last="y = Conv<pads = [1, 1, 1, 1]>(z, v)"):
        text = (
            f"g (float[n, 3, 8, 8] x) => (float[n, 8, 8, 8] {output}) {{ "
            f"h = Conv<pads = [1, 1, 1, 1]>(x, w) {middle} {last} }}"
        )
        model = onnx.ModelProto(ir_version=8)
        model.graph.CopyFrom(onnx.parser.parse_graph(text))
        model.opset_import.append(helper.make_opsetid("", opset))
        for name, value in CONSTANTS.items():
            if name in text.replace("(", ",").replace(")", ",").replace(" ", ",").split(","):
                model.graph.initializer.append(numpy_helper.from_array(value, name))
        onnx.save(model, tmp_path / "m.onnx")
        np.savez(tmp_path / "x.npz", x=X)
        return tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "o.onnx"

    return write


def loss(given, made):
    """Norm of the difference of the outputs, as a fraction of the norm of the outputs in float."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # the CPU may lack VNNI
    wanted, got = (
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(
            None, {"x": X}
        )[0]
        for file in (given, made)
    )
    assert wanted.shape == got.shape
    return np.linalg.norm(wanted - got) / np.linalg.norm(wanted)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("middle", CONSTANT.values(), ids=CONSTANT.keys())
def test_a_branch_that_is_always_taken_replaces_the_if(save, middle, opset):
    given, data, out = save(middle, opset)
    quantize_file(given, data, out, target="x86-vnni")
    assert "If" not in operators(out)
    assert loss(given, out) < 0.1
    assert audit(out).int8_mac_ratio == 1.0


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("middle", LIVE.values(), ids=LIVE.keys())
def test_control_flow_stays_in_float(save, middle, opset):
    given, data, out = save(middle, opset)
    quantize_file(given, data, out, target="x86-vnni")
    assert {"If", "Loop", "Scan"} & set(operators(out))
    assert loss(given, out) < 0.1
    bodies = (a.g.node for n in onnx.load(out).graph.node for a in n.attribute if a.HasField("g"))
    assert not {node.op_type for body in bodies for node in body} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_all_methods_calibrate_around_control_flow(save, method):
    given, data, out = save(LIVE["reads a Relu"])
    quantize_file(given, data, out, target="x86-vnni", method=method)
    assert loss(given, out) < 0.1


def test_repairs_work_around_control_flow(save):
    given, data, out = save(LIVE["reads a Relu"])
    quantize_file(given, data, out, target="x86-vnni", repairs=RepairSettings(("equalize", "bias")))
    assert loss(given, out) < 0.1


def test_a_body_that_reads_an_output(save):
    last = "y = Conv<pads = [1, 1, 1, 1]>(z, v) " + LIVE["If"].replace("(h", "(y").replace("z =", "q =")
    last = last.replace("h)", "y)")
    given, data, out = save("z = Relu(h)", last=last, output="q")
    quantize_file(given, data, out, target="x86-vnni")
    assert loss(given, out) < 0.1


def test_weights_of_four_bits_beside_control_flow(tmp_path):
    text = """g (float[n, 64] x) => (float[n, 64] y) {
        h = MatMul(x, w) r = Relu(h) m = ReduceMean<keepdims = 0>(r) c = Greater(m, zero)
        z = If (c) <then_branch = a () => (float[n, 64] o) { o = Mul(r, r) },
                    else_branch = b () => (float[n, 64] o) { o = MatMul(r, w) }>
        y = MatMul(z, w)
    }"""
    model = onnx.ModelProto(ir_version=8)
    model.graph.CopyFrom(onnx.parser.parse_graph(text))
    model.opset_import.append(helper.make_opsetid("", 17))
    weight = R.standard_normal((64, 64)).astype(np.float32)
    for name, value in {"w": weight, "zero": np.float32(0)}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, tmp_path / "m.onnx")
    quantize_weights_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert operators(tmp_path / "o.onnx").count("MatMulNBits") == 2
