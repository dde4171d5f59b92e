"""Operators that ONNX Runtime runs for small networks of unlike kinds, and the conversions among them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.graphs.inference import open_model, session_options
from exporter.pipeline.quantize_file import quantize_file

CONSTANTS = {
    "w": (32, 32), "v": (32, 32), "b": (32,), "g": (32,), "k": (32, 32, 3, 3), "l": (32, 32, 1, 1),
    "e": np.float32(1e-5), "half": np.float32(0.5), "one": np.float32(1), "root2": np.float32(2**0.5),
    "two": np.float32(2),
}  # fmt: skip
MEAN = "m = ReduceMean<axes = [-1]>(h)  d = Sub(h, m)  q = Mul(d, d)  s = ReduceMean<axes = [-1]>(q)"
GELU = "i = Div(h, root2)  j = Erf(i)  n = Add(j, one)  o = Mul(h, n)  z = Mul(o, half)"
CONV = "k1 = Conv<pads = [1, 1, 1, 1]>"
TOKENS, PICTURE = "N, 8, 32", "N, 32, 8, 8"
# Body, shape of x, operators after optimization.
NETWORKS = {
    "residual sum and a decomposed layer norm": (
        f"p = MatMul(x, w)  a = Add(p, b)  h = Add(a, x)  {MEAN}  t = Add(s, e)  r = Sqrt(t)"
        "  c = Reciprocal(r)  n = Mul(d, c)  o = Mul(n, g)  z = Add(o, b)  y = MatMul(z, v)",
        TOKENS,
        {"QuantizeLinear": 2, "MatMulIntegerToFloat": 2, "Sum": 1, "LayerNormalization": 1},
    ),
    "decomposed RMS norm": (
        "q = Mul(x, x)  s = ReduceMean<axes = [-1]>(q)  t = Add(s, e)  r = Sqrt(t)  c = Reciprocal(r)"
        "  n = Mul(x, c)  z = Mul(n, g)  y = MatMul(z, v)",
        TOKENS,
        {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "SimplifiedLayerNormalization": 1},
    ),
    "decomposed GELU": (
        f"p = MatMul(x, w)  h = Add(p, b)  {GELU}  y = MatMul(z, v)",
        TOKENS,
        {"QuantizeLinear": 2, "MatMulIntegerToFloat": 2, "BiasGelu": 1},
    ),
    "gated layer": (
        "h = MatMul(x, w)  s = Sigmoid(h)  a = Mul(h, s)  u = MatMul(x, v)  z = Mul(a, u)"
        "  y = MatMul(z, w)",
        TOKENS,
        {"QuantizeLinear": 2, "QLinearMatMul": 1, "MatMulIntegerToFloat": 2, "QuickGelu": 1,
         "QLinearMul": 1},
    ),
    "Einsum": (
        'y = Einsum<equation = "bsd,hd->bsh">(x, w)',
        TOKENS,
        {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1},
    ),
    "constant on the left": (
        "y = MatMul(w, x)",
        "N, 32, 8",
        {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1, "Transpose": 2},
    ),
    "residual block with pools": (
        f"{CONV}(x, k)  k2 = Relu(k1)  k3 = Conv<pads = [1, 1, 1, 1]>(k2, k)  k4 = Add(k2, k3)"
        "  k5 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(k4)  k6 = Conv(k5, l)"
        "  y = GlobalAveragePool(k6)",
        PICTURE,
        {"QuantizeLinear": 1, "DequantizeLinear": 1, "QLinearConv": 3, "QLinearAdd": 1, "NhwcMaxPool": 1,
         "GlobalAveragePool": 1, "Transpose": 2},
    ),
    "joined branches": (
        f"{CONV}(x, k)  k2 = Relu(k1)  k3 = Conv(x, l)  k4 = Concat<axis = 1>(k2, k3)"
        "  k5, k6 = Split<axis = 1>(k4)  k7 = Add(k5, k6)  y = Conv(k7, l)",
        PICTURE,
        {"QuantizeLinear": 1, "DequantizeLinear": 1, "QLinearConv": 3, "QLinearConcat": 1, "Split": 1,
         "QLinearAdd": 1, "Transpose": 2},
    ),
}  # fmt: skip


def optimized(body, shape, folder):
    """The operators of the int8 model that ONNX Runtime runs."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float y) {{ {body} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    for name, given in CONSTANTS.items():
        shaped = isinstance(given, tuple)
        content = random.standard_normal(given) / np.sqrt(np.prod(given[1:])) if shaped else given
        model.graph.initializer.append(numpy_helper.from_array(np.float32(content), name))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    x = random.standard_normal((16, *map(int, shape.split(",")[1:]))).astype(np.float32)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", x=x)
    quantize_file(folder / "model.onnx", folder / "data.npz", folder / "int8.onnx", target="x86-avx2")
    options = session_options(1)
    options.add_session_config_entry("session.qdqisint8allowed", "0")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    open_model(onnx.load(folder / "int8.onnx"), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_operators_that_run(tmp_path, name):
    body, shape, wanted = NETWORKS[name]
    assert optimized(body, shape, tmp_path) == wanted
