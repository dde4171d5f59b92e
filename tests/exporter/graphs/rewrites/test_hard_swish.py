"""HardSwish in int8: it has the same outputs and runs in int8 kernels, and no factor of six remains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError
from exporter.graphs.inference import open_exact
from exporter.graphs.rewrites.hard_swish import candidates, hide_factor, split
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples


def parse(body):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 8, 6, 6] x) => (float[N, A, B, C] y)'
        f" <float[8, 8, 1, 1] w = {{{', '.join(['0'] * 64)}}}> {{ {body} }}"
    )
    for node in model.graph.node:
        node.name = node.output[0]
    weights = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    return model


BLOCK = "a = Conv(x, w)  h = HardSwish(a)  b = Conv(h, w)  i = HardSwish(b)  y = Conv(i, w)"


def quantized(model, path, target="x86-vnni", exclude=()):
    x = np.random.default_rng(1).standard_normal((64, 8, 6, 6)).astype(np.float32)
    quantize_model(
        model,
        path,
        ArraySamples({"x": x}),
        Int8Settings(TARGETS[target], exclude=exclude),
        progress=SILENT,
    )
    sessions = [open_exact(m) for m in (model, onnx.load(path))]
    before, after = (session.run(None, {"x": x})[0] for session in sessions)
    return sqnr_db(before, after)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_outputs_stay_close_to_float(tmp_path, target):
    assert quantized(parse(BLOCK), tmp_path / "int8.onnx", target) > 25


def test_nothing_runs_in_float(tmp_path):
    path = tmp_path / "int8.onnx"
    quantized(parse(BLOCK), path)
    operators = audit(path).operators
    assert "HardSwish" not in operators
    assert operators["QLinearMul"] == operators["QLinearAdd"] == 2
    assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == 1


@pytest.mark.parametrize(
    ("body", "exclude"),
    [
        ("a = Conv(x, w)  h = HardSwish(a)  y = Tanh(h)", ()),
        ("a = Tanh(x)  h = HardSwish(a)  y = Conv(h, w)", ()),
        (BLOCK, ("h", "i")),
    ],
    ids=["read in float", "made in float", "excluded"],
)
def test_other_hard_swishes_are_not_split(tmp_path, body, exclude):
    model, path = parse(body), tmp_path / "int8.onnx"
    assert quantized(model, path, exclude=exclude) > 20
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert names.count("HardSwish") == [node.op_type for node in model.graph.node].count("HardSwish")


def test_a_float_reader_reads_the_activation_without_the_factor(tmp_path):
    model = parse("a = Conv(x, w)  h = HardSwish(a)  b = Conv(h, w)  t = Tanh(h)  y = Add(b, t)")
    assert quantized(model, tmp_path / "int8.onnx") > 25


def test_a_product_that_is_not_quantized_is_an_error():
    model = parse(BLOCK)
    gates = split(model, candidates(model))
    assert sorted(gates) == ["h.gate", "i.gate"]
    with pytest.raises(ExportError, match="only 0 of 2 split nodes are quantized"):
        hide_factor(model, gates)
