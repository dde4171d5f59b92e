"""`quantize --pin`: the result has fixed shapes, computes less, and gives the same values."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

import exporter
from bench.core.errors import DataError, UsageError
from bench.inputs.session import open_session, signature_of
from bench.metrics.parity import sqnr_db
from exporter.graphs.inference import open_exact

TRANSFORMER = """(float[batch, length, 16] x) => (float[batch, length, 16] y) {
    open = Shape<start = 0, end = 2>(x)
    heads = Constant<value_ints = [0, 0, 4, 4]>()  width = Constant<value_ints = [16]>()
    back = Concat<axis = 0>(open, width)
    q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
    q4 = Reshape(q, heads)  k4 = Reshape(k, heads)  v4 = Reshape(v, heads)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4)  kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    scores = MatMul(qt, kt)  weights = Softmax<axis = -1>(scores)  mixed = MatMul(weights, vt)
    mt = Transpose<perm = [0, 2, 1, 3]>(mixed)  m3 = Reshape(mt, back)  o = MatMul(m3, wo)  y = Add(o, x)
}"""
CONVOLUTIONAL = """(float[N, 3, H, W] x) => (float[N, 8, h, w] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, c1)  r = Relu(a)  y = Conv<pads = [1, 1, 1, 1]>(r, c2)
}"""
POSITIONS = """(float[batch, 3, height, width] x) => (float[batch, 16, a, b] y) {
    p = Conv<strides = [4, 4]>(x, patch)  shape = Shape<start = 2, end = 4>(p)
    first = Constant<value_ints = [1, 16]>()  sizes = Concat<axis = 0>(first, shape)
    t = Resize<mode = "cubic">(table, , , sizes)  s = Add(p, t)  y = Conv(s, mix)
}"""
NETWORKS = {
    "transformer": (
        TRANSFORMER,
        {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16)},
        (12, 16),
    ),
    "convolutional": (CONVOLUTIONAL, {"c1": (8, 3, 3, 3), "c2": (8, 8, 3, 3)}, (3, 10, 12)),
    "positions": (
        POSITIONS,
        {"patch": (16, 3, 4, 4), "table": (1, 16, 6, 6), "mix": (16, 16, 1, 1)},
        (3, 16, 20),
    ),
}
PINS = {
    "transformer": ["length=12"],
    "convolutional": ["H=10", "x:3=12"],
    "positions": ["height=16", "width=20"],
}


def write(folder, kind):
    """Write a network and its samples; return the files and the samples."""
    text, weights, sizes = NETWORKS[kind]
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> net {text}')
    for name, shape in weights.items():
        value = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, folder / "float.onnx")
    x = generator.standard_normal((16, *sizes)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    return folder / "float.onnx", folder / "data.npz", x


@pytest.mark.parametrize("batch", [[], ["1"]])
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_the_result_has_the_sizes_and_the_values(tmp_path, kind, batch):
    model, data, x = write(tmp_path, kind)
    out = tmp_path / "int8.onnx"
    pins = [*PINS[kind], *(f"x:0={size}" for size in batch)]
    exporter.quantize(model, out, data=data, target="x86-vnni", pin=pins)
    (given,) = signature_of(open_session(out)).inputs
    assert given.shape == (1 if batch else None, *x.shape[1:])
    before, after = (open_exact(onnx.load(each)).run(None, {"x": x[:1]})[0] for each in (model, out))
    assert before.shape == after.shape
    assert sqnr_db(before, after) > 25
    (result,) = signature_of(open_session(out)).outputs
    assert result.shape[1:] == before.shape[1:]


@pytest.mark.parametrize("kind", ["transformer", "positions"])
def test_what_no_longer_depends_on_the_input_is_computed_once(tmp_path, kind):
    model, data, _x = write(tmp_path, kind)
    operators = []
    for pins in ([], [*PINS[kind], "batch=1"]):
        exporter.quantize(model, tmp_path / "int8.onnx", data=data, target="x86-vnni", pin=pins)
        operators.append({node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node})
    assert {"Shape", "Resize"} & operators[0]
    assert not {"Shape", "Resize"} & operators[1]


def test_4_bits_take_pins(tmp_path):
    model, _data, _x = write(tmp_path, "transformer")
    exporter.quantize(model, tmp_path / "int4.onnx", bits=4, block_size=16, pin=["batch=1", "length=12"])
    assert signature_of(open_session(tmp_path / "int4.onnx")).inputs[0].shape == (1, 12, 16)


def test_samples_of_another_size_are_refused(tmp_path):
    model, data, _x = write(tmp_path, "transformer")
    with pytest.raises(DataError, match="13"):
        exporter.quantize(model, tmp_path / "int8.onnx", data=data, pin=["length=13"])
    with pytest.raises(DataError, match="3"):
        exporter.quantize(model, tmp_path / "int8.onnx", data=data, pin=["batch=3"])
    assert not (tmp_path / "int8.onnx").exists()


def test_unknown_axes_are_refused_in_one_line(tmp_path):
    model, data, _x = write(tmp_path, "convolutional")
    with pytest.raises(UsageError, match="no open axis 'width'"):
        exporter.quantize(model, tmp_path / "int8.onnx", data=data, pin=["width=12"])
    command = [sys.executable, "-m", "exporter", "quantize", str(model), "--data", str(data)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "int8.onnx"), "--pin", "width=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "choose from: H, N, W, x:0, x:2, x:3" in done.stderr
    assert "Traceback" not in done.stderr
