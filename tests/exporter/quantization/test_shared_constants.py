"""Constants that int8 and float operators share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.inference import open_exact, open_model, session_options
from exporter.graphs.targets import TARGETS
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

RNG = np.random.default_rng(0)
SIZE = 16

BODIES = {
    "tied embedding": (
        "e = Gather(w, x)  n = LayerNormalization(e, g, z)  m = ReduceMean<axes = [1], keepdims = 0>(n)"
        "  y = Gemm<transB = 1>(m, w, z)",
        "int64[N, 5] x",
    ),
    "bias of a norm": (
        "h = Gemm(x, w, z)  n = LayerNormalization(h, g, z)  y = Gemm(n, w, z)",
        f"float[N, {SIZE}] x",
    ),
    "weights as summand": ("h = Gemm(x, w, z)  n = Sub(h, g)  y = Gemm(n, w, g)", f"float[N, {SIZE}] x"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_float_readers_of_a_quantized_constant_read_it_in_float(tmp_path, kind):
    body, inputs = BODIES[kind]
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g ({inputs}) => (float[N, {SIZE}] y) {{ {body} }}'
    )
    for name, shape in {"w": (SIZE, SIZE), "g": (SIZE,), "z": (SIZE,)}.items():
        value = (RNG.standard_normal(shape) / 4).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    numbers = RNG.integers(0, SIZE, (32, 5)), RNG.standard_normal((32, SIZE)).astype(np.float32)
    feeds = {"x": numbers["float" in inputs]}
    path = tmp_path / "int8.onnx"
    settings = Int8Settings(TARGETS["x86-vnni"])
    quantize_model(model, path, ArraySamples(feeds), settings, progress=SILENT)
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    found = onnx.load(path)
    open_model(found, options)
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    constants = {tensor.name for tensor in found.graph.initializer}
    assert "QGemm" in {node.op_type for node in nodes}
    # Rows of an embedding table are dequantized after they are chosen, not before.
    assert not [n.name for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    before, after = (open_exact(m).run(None, feeds)[0] for m in (model, found))
    assert sqnr_db(before, after) > 30
