"""Float operators after int8 products: ONNX Runtime's optimizer must not fuse them into float products."""

from __future__ import annotations

from collections import Counter

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


def network(body, inputs, outputs, constants, opset=18):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for name, shape in constants.items():
        size = np.sqrt(shape[0]) if len(shape) > 1 else 2.0
        value = np.float32(shape) if not isinstance(shape, tuple) else RNG.standard_normal(shape) / size
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    return model


def limits(low, high):
    return [numpy_helper.from_array(np.float32(value), name) for name, value in (("lo", low), ("hi", high))]


def quantized(model, tmp_path, *sample, target="x86-vnni", exclude=()):
    """The number of each operator in the optimized int8 graph, and the SQNR of each output in dB."""
    x = RNG.standard_normal((16, *sample)).astype(np.float32)
    path = tmp_path / "int8.onnx"
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
    settings = Int8Settings(TARGETS[target], exclude=exclude, fixed_batch=fixed)
    quantize_model(model, path, ArraySamples({"x": x}), settings, progress=SILENT)
    found = onnx.load(path)
    feeds = {"x": x[: fixed or 16]}
    before, after = (open_exact(m).run(None, feeds) for m in (model, found))
    assert [a.shape for a in after] == [b.shape for b in before]
    return optimized(found, tmp_path, target), [sqnr_db(b, a) for b, a in zip(before, after, strict=True)]


def optimized(model, tmp_path, target):
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", "1" if target == "arm64" else "0")
    open_model(model, options)
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


FLOAT_PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def float_products(found):
    return sum(found[operator] for operator in FLOAT_PRODUCTS)


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize(
    ("shape", "sample"),
    [
        ("1, 4, 16", (4, 16)),
        ("N, 4, 16", (4, 16)),
        ("2, 3, 4, 16", (3, 4, 16)),
        ("1, 16", (16,)),
        ("N, 16", (16,)),
    ],
)
@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_a_bias_after_a_product_leaves_it_in_int8(tmp_path, target, shape, sample, order):
    body = f"m = MatMul(x, w)  a = Add({order})  t = Tanh(a)  n = MatMul(t, v)  y = Add(n, b)"
    result = f"float[{shape}] y"
    model = network(body, f"float[{shape}] x", result, {"w": (16, 16), "v": (16, 16), "b": (16,)})
    found, quality = quantized(model, tmp_path, *sample, target=target)
    assert float_products(found) == 0
    assert found["MatMulIntegerToFloat"] == 2
    assert min(quality) > 30


@pytest.mark.parametrize("shape", ["1, 4, 16", "1, 16", "N, 16"])
def test_a_computed_summand_after_a_product_leaves_it_in_int8(tmp_path, shape):
    body = "m = MatMul(x, w)  t = Tanh(x)  a = Add(m, t)  y = Exp(a)"
    model = network(body, f"float[{shape}] x", f"float[{shape}] y", {"w": (16, 16)})
    found, _ = quantized(model, tmp_path, *(int(s) for s in shape.split(",")[1:]))
    assert found["MatMulIntegerToFloat"] == 1


def test_an_open_batch_keeps_the_fusion_of_bias_and_gelu(tmp_path):
    body = "m = MatMul(x, w)  a = Add(m, b)  y = Gelu(a)"
    for shape, operator in (("N, 4, 16", "Add"), ("1, 4, 16", "Sum")):
        model = network(
            body, f"float[{shape}] x", f"float[{shape}] y", {"w": (16, 16), "b": (16,)}, opset=20
        )
        quantized(model, tmp_path, 4, 16)
        assert operator in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}


TAILS = {
    "batch norm": "y = BatchNormalization(a, g, z, z, o)",
    "layer norm": "y = LayerNormalization(a, g)",
    "tanh": "y = Tanh(a)",
    "softmax": "y = Softmax(a)",
    "difference": "y = Sub(a, z)",
    "skip": "s = Tanh(x)  y = Add(a, s)",
    "output": "y = Identity(a)",
}


ACTIVATIONS = ("Relu(h)", "Clip(h, lo, hi)", "Clip(h, lo)", "Clip(h, , hi)", "Clip(h)")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "activation", ["Relu(h)", "Clip(h, lo, hi)", "Clip(h, lo)", "Clip(h, , hi)", "Clip(h)"]
)
@pytest.mark.parametrize("product", ["Gemm(x, w, b)", "Gemm<transB = 1>(x, w)", "MatMul(x, w)"])
def test_an_activation_before_a_float_operator_leaves_the_product_in_int8(
    tmp_path, product, activation, tail
):
    body = f"h = {product}  a = {activation}  {TAILS[tail]}"
    model = network(body, "float[N, 16] x", "float[N, 16] y", {"w": (16, 16), "b": (16,)})
    model.graph.initializer.extend(limits(-0.5, 0.7))
    for name, value in (("g", 1), ("z", 0), ("o", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(16, value, np.float32), name))
    found, quality = quantized(model, tmp_path, 16)
    assert float_products(found) == 0
    assert found["DequantizeLinear"] == 0
    assert min(quality) > 30


@pytest.mark.parametrize("shape", ["1, 4, 16", "N, 4, 16"])
def test_bias_and_activation_before_a_norm_leave_the_product_in_int8(tmp_path, shape):
    body = "m = MatMul(x, w)  a = Add(m, b)  r = Relu(a)  y = LayerNormalization(r, g)"
    model = network(body, f"float[{shape}] x", f"float[{shape}] y", {"w": (16, 16), "b": (16,), "g": (16,)})
    found, _ = quantized(model, tmp_path, 4, 16)
    assert found["MatMulIntegerToFloat"] == 1


def test_an_excluded_last_layer_leaves_the_layer_before_it_in_int8(tmp_path):
    body = "h = Gemm(x, w, b)  a = Relu(h)  y = Gemm(a, w, b)"
    model = network(body, "float[N, 16] x", "float[N, 16] y", {"w": (16, 16), "b": (16,)})
    for node in model.graph.node:
        node.name = node.output[0]
    found, _ = quantized(model, tmp_path, 16, exclude=("y",))
    assert found["QGemm"] == 1
    assert float_products(found) == 1


@pytest.mark.parametrize("activation", ["Relu(h)", "Clip(h, lo, hi)"])
@pytest.mark.parametrize(("first", "shape"), [("Conv(x, w)", (16, 16, 1, 1)), ("Gemm(x, w)", (16, 16))])
def test_an_output_that_an_activation_also_reads_keeps_its_whole_range(tmp_path, first, shape, activation):
    rest = ", 5, 5" if "Conv" in first else ""
    body = f"h = {first}  a = {activation}  y = {first.replace('x', 'a')}"
    sizes = f"float[N, 16{rest}]"
    model = network(body, f"{sizes} x", f"{sizes} h, {sizes} y", {"w": shape})
    model.graph.initializer.extend(limits(0, 0.7))
    _, quality = quantized(model, tmp_path, *((16, 5, 5) if rest else (16,)))
    assert min(quality) > 25
