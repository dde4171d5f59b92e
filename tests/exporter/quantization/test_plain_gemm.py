"""Forms of Gemm that ONNX Runtime's quantizer or optimizer does not handle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.inference import open_exact
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.plain_gemm import make_gemms_plain
from exporter.sources.splits import ArraySamples

RNG = np.random.default_rng(0)
ROWS, SIZE = 16, 12
SHAPES = {
    "none": None,
    "vector": (SIZE,),
    "row": (1, SIZE),
    "scalar": (),
    "one": (1,),
    "one by one": (1, 1),
    "column": (ROWS, 1),
    "matrix": (ROWS, SIZE),
}


def gemm(shape, attributes="", tail="y = Tanh(h)"):
    bias = "" if shape is None else ", c"
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[{ROWS}, {SIZE}] x) => (float[{ROWS}, {SIZE}] y)'
        f" {{ h = Gemm{attributes}(x, w{bias})  {tail} }}"
    )
    constants = {"w": (SIZE, SIZE)} | ({} if shape is None else {"c": shape})
    for name, sizes in constants.items():
        value = np.asarray(RNG.standard_normal(sizes) / 2, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def feeds():
    return {"x": RNG.standard_normal((ROWS, SIZE)).astype(np.float32)}


ATTRIBUTES = ("", "<alpha = 0.5, beta = 2.0>", "<beta = 0.0>", "<alpha = 3.0, transB = 1>")


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_plain_form_computes_the_same(shape, attributes):
    model = gemm(shape, attributes)
    x = feeds()
    before = open_exact(model).run(None, x)[0]
    added = make_gemms_plain(model, ())
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(open_exact(model).run(None, x)[0], before, rtol=1e-5, atol=1e-6)
    assert added == ({"h.add"} if shape in {(ROWS, 1), (ROWS, SIZE)} else frozenset())


def test_an_excluded_gemm_is_not_changed():
    model = gemm((1, SIZE), "<beta = 2.0>")
    before = model.SerializeToString()
    assert make_gemms_plain(model, ("h",)) == frozenset()
    assert model.SerializeToString() == before


@pytest.mark.parametrize("tail", ["y = Tanh(h)", "y = Gemm(h, w)", "r = Relu(h)  y = Gemm(r, w)"])
@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_form_runs_in_int8(tmp_path, shape, attributes, tail):
    model = gemm(shape, attributes, tail)
    assert_int8(model, tmp_path)


@pytest.mark.parametrize("summand", ["Gemm(x, w, t)", "Gemm(x, w, t)  i = Identity(h)"])
def test_a_gemm_with_a_computed_bias_runs_in_int8(tmp_path, summand):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[{ROWS}, {SIZE}] x) => (float[{ROWS}, {SIZE}] y)'
        f" {{ t = Tanh(x)  h = {summand}  y = Exp(h) }}"
    )
    weights = np.asarray(RNG.standard_normal((SIZE, SIZE)) / 4, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    assert_int8(model, tmp_path)


@pytest.mark.parametrize("operator", ["Add", "Sum"])
def test_a_gemm_before_a_residual_sum_runs_in_int8(tmp_path, operator):
    model = gemm(None, tail=f"t = Tanh(x)  s = {operator}(h, t)  y = Exp(s)")
    assert_int8(model, tmp_path)


def assert_int8(model, tmp_path):
    path, x = tmp_path / "int8.onnx", feeds()
    settings = Int8Settings(TARGETS["x86-vnni"], fixed_batch=ROWS)
    quantize_model(model, path, ArraySamples(x), settings, progress=SILENT)
    before, after = (open_exact(m).run(None, x)[0] for m in (model, onnx.load(path)))
    assert sqnr_db(before, after) > 30
    np.savez(tmp_path / "x.npz", **x)
    assert audit(path, tmp_path / "x.npz").int8_mac_ratio == 1.0
