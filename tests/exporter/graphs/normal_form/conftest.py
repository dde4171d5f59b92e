"""Models as text, and their outputs before and after they are normalized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from exporter.graphs.normal_form import normalize


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


@pytest.fixture
def parsed():
    """Build a model from ONNX's text syntax and named constants."""

    def build(text, constants=None, opset=17, ir_version=8):
        model = onnx.ModelProto(ir_version=ir_version)
        model.graph.CopyFrom(onnx.parser.parse_graph(text))
        model.opset_import.append(helper.make_opsetid("", opset))
        for name, value in (constants or {}).items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return model

    return build


@pytest.fixture
def same():
    """Normalize a model, and check that names, types and values of its outputs do not change."""

    def check(model, feeds, *, exact=False):
        before = run(model, feeds)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        normal = normalize(copy, Path("model.onnx"))
        onnx.checker.check_model(normal)
        assert [value.name for value in normal.graph.output] == [value.name for value in model.graph.output]
        for wanted, got in zip(before, run(normal, feeds), strict=True):
            assert wanted.dtype == got.dtype
            assert wanted.shape == got.shape
            np.testing.assert_allclose(got, wanted, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
        return normal

    return check
