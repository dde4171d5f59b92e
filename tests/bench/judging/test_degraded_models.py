"""Operators that were added without the onnx package, checked with the onnx package."""

from __future__ import annotations

import numpy as np
import pytest

from bench.inputs.session import open_session
from bench.judging.degraded_models import PREFIX, rebuilt, with_allocation, with_product

CHANGES = {
    "rebuilt": rebuilt,
    "product": lambda model: with_product(model, "x", rows=300, width=16),
    "allocation": lambda model: with_allocation(model, "x", size_bytes=1 << 16),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("model", ["dynamic", "integers", "fixed"])
def test_a_changed_model_is_valid_and_keeps_its_outputs(models, tmp_path, model, name):
    original = getattr(models, model)
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(CHANGES[name](original.read_bytes()))
    feeds = {"x": np.arange(8).reshape(2, 4).astype(np.int64 if model == "integers" else np.float32)}
    expected = open_session(original).run(None, feeds)
    outputs = open_session(changed).run(None, feeds)
    np.testing.assert_array_equal(outputs[0], expected[0])
    assert len(outputs) == (1 if name == "rebuilt" else 2)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("model", ["dynamic", "integers", "fixed"])
def test_a_changed_model_is_valid_onnx(models, model, name):
    onnx = pytest.importorskip("onnx")
    changed = CHANGES[name](getattr(models, model).read_bytes())
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)


def test_the_product_is_computed_from_the_input(models, tmp_path):
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(with_product(models.dynamic.read_bytes(), "x", rows=2, width=8))
    session = open_session(changed)
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    for first in (0.0, 3.0):
        feeds = {"x": np.full((1, 4), first, np.float32)}
        (row,) = session.run([PREFIX + "out"], feeds)
        np.testing.assert_allclose(row[0], (1 + first) * weight.sum(axis=0), rtol=1e-5)


def test_a_rebuilt_model_has_other_bytes(models):
    content = models.dynamic.read_bytes()
    assert rebuilt(content) != content
