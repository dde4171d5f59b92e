"""A model's own names may be those that edgeproof or a quantizer gives to what it adds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file

R = np.random.default_rng(0)
PIXELS, IDS = R.standard_normal((16, 3, 8, 8)).astype(np.float32), R.integers(0, 300, (16, 4))


def normal(*shape):
    return (R.standard_normal(shape) * 0.3).astype(np.float32)


PICTURES = (
    "pictures (float[n, 3, 8, 8] x) => (float[n, 32, 8, 8] y) {"
    " a = Conv<pads = [1, 1, 1, 1]>(x, w) b = HardSwish(a) c = Conv<pads = [1, 1, 1, 1]>(b, v)"
    " d = Relu(c) s = Tanh(d) e = ConvTranspose<strides = [2, 2]>(d, u) o = Relu(e)"
    " p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(o) q = Conv(p, z, f) m = Add(q, s) y = Erf(m) }",
    {"w": normal(32, 3, 3, 3), "v": normal(32, 32, 3, 3), "u": normal(32, 32, 2, 2),
     "z": normal(32, 32, 1, 1), "f": normal(32)},
    PIXELS,
)  # fmt: skip
WORDS = (
    "words (int64[n, 4] x) => (float[n, 4, 64] y) {"
    " e = Gather(t, x) h = MatMul(e, w) k = Add(h, b) r = Relu(k) g = Erf(r)"
    " l = MatMul(g, v) y = Add(l, c) }",
    {"t": normal(300, 64), "w": normal(64, 64), "v": normal(64, 64), "b": normal(64), "c": normal(64)},
    IDS,
)


def model_of(text, constants, old, new):
    """The model; its tensor `old` has the name `new`. Each node has the name of its result."""
    model = onnx.ModelProto(ir_version=8)
    model.graph.CopyFrom(onnx.parser.parse_graph(text))
    model.opset_import.append(helper.make_opsetid("", 17))
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    return model


@pytest.mark.parametrize(
    ("network", "old", "new", "bits"),
    [
        *(
            (PICTURES, old, new, 8)
            for old, new in [
                ("v", "b.gate"), ("c", "b.three"), ("z", "b.zero"), ("s", "b.six_scale"),
                ("d", "b.shifted_QuantizeLinear_Output"), ("m", "b_scale.product"),
                ("w", "e.blocks.weight"), ("p", "e.blocks.weight_quantized"),
                ("a", "o.blocks_zero_point"), ("v", "f_quantized_scale"),
            ]
        ),
        *((WORDS, old, new, 8) for old, new in [("h", "e.int8"), ("w", "e.rows"), ("b", "e.scales")]),
        *((WORDS, old, new, 4) for old, new in [("r", "w_Q4"), ("e", "w_scales"), ("b", "v_zero_points")]),
    ],
)  # fmt: skip
def test_quantized_models_are_as_close_to_float_as_with_other_names(network, old, new, bits, tmp_path):
    text, constants, samples = network
    np.savez(tmp_path / "x.npz", x=samples)
    closeness = []
    for name in (old, new):
        onnx.save(model_of(text, constants, old, name), tmp_path / "m.onnx")
        if bits == 4:
            quantize_weights_file(tmp_path / "m.onnx", tmp_path / "o.onnx", target="portable")
        else:
            made = quantize_file(
                tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "o.onnx", target="portable", goal="size"
            ).made
            closeness.append(made.fidelity.sqnr_db)
    assert not closeness or abs(closeness[0] - closeness[1]) < 0.1


def test_an_output_keeps_its_name(tmp_path):
    """The node whose name leads to the name of an output is renamed instead."""
    text, constants, samples = PICTURES
    model = model_of(text, constants, "y", "b.gate")
    model.graph.output[0].name = "b.gate"
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "other"  # the node alone is called b
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=samples)
    quantize_file(
        tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "o.onnx", target="portable", goal="size"
    )
    assert onnx.load(tmp_path / "o.onnx").graph.output[0].name == "b.gate"
