"""Running a model over a split."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import ModelError
from exporter.data import Split
from exporter.inference import run_model


def test_batches_are_joined_in_order(onnx_models, splits):
    whole = run_model(onnx_models.float, splits.evaluation)
    assert whole.shape == (120, 3)
    last = run_model(onnx_models.float, splits.evaluation.take(np.arange(70, 120)))
    assert np.allclose(whole[70:], last, atol=1e-6)


def test_arrays_may_lie_in_any_order(onnx_models, splits):
    turned = Split(
        {"image": np.asfortranarray(splits.evaluation.inputs["image"])}, splits.evaluation.labels
    )
    assert np.array_equal(
        run_model(onnx_models.float, turned), run_model(onnx_models.float, splits.evaluation)
    )


def test_a_missing_model_is_named(splits, tmp_path):
    with pytest.raises(ModelError, match=r"absent.onnx: there is no such file"):
        run_model(tmp_path / "absent.onnx", splits.evaluation)
