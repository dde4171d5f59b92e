"""The error of each layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.targets import TARGETS
from exporter.inspection.layer_errors import layer_errors
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples


def outputs_of(path, name, feeds):
    model = onnx.load(path)
    if name not in {value.name for value in model.graph.output}:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run([name], feeds)[0]


def test_the_figures_equal_those_computed_from_the_tensors(onnx_models, splits):
    sample = splits.evaluation.take(np.arange(20))
    found = layer_errors(onnx_models.float, onnx_models.int8, sample)
    assert found
    assert {"layer", "op", "sqnr_db", "lowest", "highest", "range"} == found[0].model_dump().keys()
    names = {node.name: node for node in onnx.load(onnx_models.float).graph.node}
    for error in found:
        node = names[error.layer]
        assert error.op == node.op_type
        tensor = node.output[0]
        before = outputs_of(onnx_models.float, tensor, dict(sample.inputs))
        after = outputs_of(onnx_models.int8, f"{tensor}_DequantizeLinear_Output", dict(sample.inputs))
        assert error.sqnr_db == pytest.approx(sqnr_db(before, after), abs=0.05)
        assert (error.lowest, error.highest) == (before.min(), before.max())
        lowest, highest = error.range
        assert lowest <= after.min() <= after.max() <= highest + 1e-6
        assert lowest <= 0 <= highest


def test_a_picture_on_blocks_has_the_error_of_the_picture(tmp_path):
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 3, 8, 8] x) => (float[N, 4, A, B] y)'
        " { [m] m = Mul(x, k)  [c] c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(m, w)  [y] y = Relu(c) }"
    )
    for name, shape in {"w": (4, 3, 3, 3), "k": (1, 3, 1, 1)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "float.onnx")
    samples = ArraySamples({"x": generator.standard_normal((16, 3, 8, 8)).astype(np.float32)})
    found = []
    for on_blocks in (False, True):
        target = replace(TARGETS["x86-vnni"], stem_on_blocks=on_blocks)
        path = tmp_path / f"{on_blocks}.onnx"
        made = quantize_model(model, path, samples, Int8Settings(target), progress=SILENT)
        assert made.stem_on_blocks is on_blocks
        found.append(layer_errors(tmp_path / "float.onnx", path, samples))
    plain, moved = found
    assert [error.layer for error in plain] == ["m"]
    assert moved == plain


def test_layers_are_in_graph_order(onnx_models, splits):
    order = [node.name for node in onnx.load(onnx_models.float).graph.node]
    found = [error.layer for error in layer_errors(onnx_models.float, onnx_models.int8, splits.calibration)]
    assert found == sorted(found, key=order.index)


def test_a_float_model_has_no_layer_errors(onnx_models, splits):
    assert layer_errors(onnx_models.float, onnx_models.float, splits.calibration) == ()
