"""Error by layer: rounding is seen where it happens."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.metrics.parity import sqnr_db
from exporter.inspection.layer_errors import layer_errors


def outputs_of(path, name, feeds):
    model = onnx.load(path)
    if name not in {value.name for value in model.graph.output}:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run([name], feeds)[0]


def test_the_figures_are_those_of_the_tensors(onnx_models, splits):
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


def test_layers_come_in_graph_order(onnx_models, splits):
    order = [node.name for node in onnx.load(onnx_models.float).graph.node]
    found = [error.layer for error in layer_errors(onnx_models.float, onnx_models.int8, splits.calibration)]
    assert found == sorted(found, key=order.index)


def test_a_model_without_int8_has_no_lines(onnx_models, splits):
    assert layer_errors(onnx_models.float, onnx_models.float, splits.calibration) == ()
