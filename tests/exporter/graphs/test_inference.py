"""Running a model on a split."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.errors import ModelError
from exporter.graphs.inference import run_model, session_with_outputs
from exporter.sources.splits import Split


def test_batches_are_joined_in_order(onnx_models, splits):
    whole = run_model(onnx_models.float, splits.evaluation)
    assert whole.shape == (120, 3)
    last = run_model(onnx_models.float, splits.evaluation.take(np.arange(70, 120)))
    assert np.allclose(whole[70:], last, atol=1e-6)


def test_arrays_can_have_any_memory_order(onnx_models, splits):
    turned = Split(
        {"image": np.asfortranarray(splits.evaluation.inputs["image"])}, splits.evaluation.labels
    )
    assert np.array_equal(
        run_model(onnx_models.float, turned), run_model(onnx_models.float, splits.evaluation)
    )


def test_a_missing_model_is_named(splits, tmp_path):
    with pytest.raises(ModelError, match=r"absent.onnx: there is no such file"):
        run_model(tmp_path / "absent.onnx", splits.evaluation)


def test_no_sum_saturates(tmp_path, capfd):
    """255 * 127 * 64 does not fit in 16 bits. Two layers share their weights."""
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 21]> g (float[N, 64] x) => (float[N, 64] y)
        <float one = {1}, uint8 none = {0}, int8 zero = {0}, float out = {8192}>
        {
          q = QuantizeLinear(x, one, none)
          a = DequantizeLinear(q, one, none)
          v = DequantizeLinear(w, one, zero)
          p = MatMul(a, v)
          pq = QuantizeLinear(p, out, none)
          pd = DequantizeLinear(pq, out, none)
          u = DequantizeLinear(w, one, zero)
          r = MatMul(a, u)
          y = Sub(r, pd)
        }
    """)
    weights = np.full((64, 64), 127, np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    x = np.full((4, 64), 255, np.float32)
    exact = 255 * 127 * 64
    rounded = 8192 * min(255, round(exact / 8192))
    split = Split({"x": x}, np.zeros(4, np.int64))
    np.testing.assert_array_equal(run_model(path, split), np.full((4, 64), exact - rounded, np.float32))
    assert not "".join(capfd.readouterr())


def test_optimized_sessions_keep_the_requested_outputs(onnx_models, splits):
    model = onnx.load(onnx_models.float)
    names = [node.output[0] for node in model.graph.node]
    feeds = next(splits.evaluation.batches(4))
    exact, fast = (
        session_with_outputs(model, names, optimized=optimized).run(names, feeds)
        for optimized in (False, True)
    )
    for name, wanted, found in zip(names, exact, fast, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
