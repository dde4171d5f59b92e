"""The check that placed products run in int8 in ONNX Runtime's optimized graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError
from exporter.graphs.inference import open_exact
from exporter.graphs.names import name_nodes
from exporter.graphs.ranges import Range
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.fused import not_fused
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.ort_quantizer import float_tensors
from exporter.quantization.qdq import make_qdq, plan_qdq
from exporter.quantization.repair.qdq_models import calibrated
from exporter.sources.splits import ArraySamples

RNG = np.random.default_rng(0)


def network(body):
    """A graph with square kernels `w` and `v`. Nodes have no names."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N, 4, 6, 6] x) => (float[N, 4, A, B] y)'
        f" {{ {body} }}"
    )
    for name, shape in {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)}.items():
        value = np.asarray(RNG.standard_normal(shape) / 6, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "axes"))
    return model


def lost(model, target):
    plan = plan_qdq(model, TARGETS[target])
    ranges = dict.fromkeys(float_tensors(plan.network), Range(-1.0, 1.0))
    return not_fused(make_qdq(plan, ranges), plan.options.placement, TARGETS[target])


# ONNX Runtime fuses a convolution only if its bias is a constant.
COMPUTED_BIAS = "t = ReduceMax<keepdims = 0>(x, axes)  a = Conv(x, w, t)  b = Relu(a)  y = Conv(b, v)"


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64", "portable"])
def test_products_that_stay_in_float_are_found_for_every_target(target):
    assert lost(network(COMPUTED_BIAS), target) == {"a"}
    assert lost(network("a = Conv(x, w)  b = Relu(a)  y = Conv(b, v)"), target) == frozenset()


def test_a_product_that_does_not_fuse_stays_in_float(tmp_path):
    model = network(COMPUTED_BIAS)
    path = tmp_path / "int8.onnx"
    x = RNG.standard_normal((16, 4, 6, 6)).astype(np.float32)
    quantize_model(model, path, ArraySamples({"x": x}), Int8Settings(TARGETS["x86-vnni"]), progress=SILENT)
    found = onnx.load(path)
    constants = {tensor.name for tensor in found.graph.initializer}
    assert "w" in constants
    assert "v_quantized" in constants
    before, after = (open_exact(m).run(None, {"x": x})[0] for m in (model, found))
    assert sqnr_db(before, after) > 30
    assert audit(path).quantized_at_load == ()
    assert [operator.name for operator in audit(path).float_ops] == ["a"]


def test_a_model_in_which_nothing_fuses_is_refused(tmp_path):
    model = network("t = ReduceMax<keepdims = 0>(x, axes)  y = Conv(x, w, t)")
    samples = ArraySamples({"x": RNG.standard_normal((4, 4, 6, 6)).astype(np.float32)})
    settings = Int8Settings(TARGETS["x86-vnni"])
    with pytest.raises(ExportError, match="no int8 kernel for its Conv, Gemm and MatMul"):
        quantize_model(model, tmp_path / "int8.onnx", samples, settings, progress=SILENT)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])
def test_repairs_and_fallback_see_the_products_that_stay_in_float(target):
    """Repairs are judged on models like the final one; the fallback does not try float products."""
    model = network(COMPUTED_BIAS)
    name_nodes(model)
    x = RNG.standard_normal((16, 4, 6, 6)).astype(np.float32)
    models = calibrated(model, {"x": x}, Int8Settings(TARGETS[target]), SILENT)
    assert models.settings.exclude == ("a",)
    assert "a" not in models.plan(model).options.placement.nodes
    assert not not_fused(models.make(model), models.plan(model).options.placement, TARGETS[target])
