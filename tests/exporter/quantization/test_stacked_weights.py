"""MatMul whose weights have more than two axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.inference import open_exact
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.stacked_weights import unstack_single_matrices
from exporter.sources.splits import ArraySamples

RNG = np.random.default_rng(0)


def network(body, sample, **shapes):
    sizes = ", ".join(map(str, sample))
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[N, {sizes}] x) => (float y) {{ {body} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, shape in shapes.items():
        value = (RNG.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    return model


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize(
    ("body", "sample", "shape"),
    [
        ("y = MatMul(x, w)", (3, 5, 16), (3, 16, 8)),
        ("y = MatMul(x, w)", (5, 16), (1, 16, 8)),
        ("y = MatMul(x, w)", (3, 5, 16), (1, 16, 8)),
        ("y = MatMul(x, w)", (3, 5, 16), (1, 1, 16, 8)),
        ("u = Unsqueeze(x, axis)  y = MatMul(u, w)", (5, 16), (4, 16, 8)),
        ("u = Unsqueeze(x, axis)  h = MatMul(u, w)  r = Relu(h)  y = Tanh(r)", (5, 16), (4, 16, 8)),
        ("u = Unsqueeze(x, axis)  h = MatMul(u, w)  r = Relu(h)  y = MatMul(r, w)", (5, 16), (4, 16, 16)),
    ],
)
def test_stacked_weights_run_in_int8(tmp_path, target, body, sample, shape):
    model = network(body, sample, w=shape)
    path, x = tmp_path / "int8.onnx", RNG.standard_normal((8, *sample)).astype(np.float32)
    settings = Int8Settings(TARGETS[target])
    quantize_model(model, path, ArraySamples({"x": x}), settings, progress=SILENT)
    before, after = (open_exact(m).run(None, {"x": x})[0] for m in (model, onnx.load(path)))
    assert before.shape == after.shape
    assert sqnr_db(before, after) > 27
    np.savez(tmp_path / "x.npz", x=x)
    assert audit(path, tmp_path / "x.npz", target).int8_mac_ratio == 1.0


@pytest.mark.parametrize(
    ("sample", "shape", "expected"),
    [
        ((5, 16), (1, 16, 8), [16, 8]),
        ((16,), (1, 16, 8), [1, 16, 8]),  # the result would lose an axis
        ((5, 16), (8, 16, 8), [8, 16, 8]),
        ((5, 16), (16, 8), [16, 8]),
    ],
)
def test_single_matrices_lose_their_leading_axes_only_if_the_result_does_not_change(
    sample, shape, expected
):
    model = infer_shapes(network("y = MatMul(x, w)", sample, w=shape))
    x = RNG.standard_normal((8, *sample)).astype(np.float32)
    before = open_exact(model).run(None, {"x": x})[0]
    unstack_single_matrices(model)
    assert list(model.graph.initializer[0].dims) == expected
    np.testing.assert_array_equal(open_exact(model).run(None, {"x": x})[0], before)
