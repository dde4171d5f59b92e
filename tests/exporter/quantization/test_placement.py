"""The operators that run in int8, in graphs written by hand and in an encoder."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError
from exporter.graphs.inference import open_exact
from exporter.graphs.targets import TARGETS
from exporter.inspection.audit import audit
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.placement import Placement, place, read_unrounded
from exporter.sources.splits import ArraySamples

OPERATORS = TARGETS["x86-vnni"].operators


def parse(body, constants="", inputs="float[N, 2, 6, 6] x", outputs="float[A, B, C, D] y"):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
    )
    for index, node in enumerate(model.graph.node):
        node.name = node.output[0] if node.output[0] != "y" else f"last{index}"
    return model


def kernel(name, *shape):
    values = np.random.default_rng(len(name)).standard_normal(int(np.prod(shape))) / 2
    sizes = ", ".join(map(str, shape))
    return f"float[{sizes}] {name} = {{{', '.join(f'{v:.4f}' for v in values)}}}"


SQUARE = kernel("w", 2, 2, 1, 1)


def placed(model, exclude=()):
    return place(model, OPERATORS, exclude)


def test_a_residual_network_runs_in_int8_from_end_to_end():
    model = parse(
        "a = Conv(x, w)  b = Relu(a)  c = Conv(b, w)  d = Add(b, c)  e = Relu(d)"
        "  f = MaxPool<kernel_shape = [1, 1]>(e)  y = Conv(f, w)",
        SQUARE,
    )
    assert placed(model).nodes == {"a", "b", "c", "d", "e", "f", "last6"}
    assert placed(model).float_results == frozenset()


def test_operators_without_an_int8_reader_stay_in_float():
    model = parse("a = Conv(x, w)  b = Sigmoid(a)  c = Mul(a, b)  y = Tanh(c)", SQUARE)
    assert placed(model).nodes == {"a"}


def test_a_relu_is_quantized_with_its_convolution_whatever_reads_it():
    model = parse("a = Conv(x, w)  b = Relu(a)  y = Tanh(b)", SQUARE)
    assert placed(model).nodes == {"a", "b"}


def test_operators_with_only_float_inputs_stay_in_float():
    model = parse("a = Tanh(x)  b = Exp(x)  c = Mul(a, b)  y = Conv(c, w)", SQUARE)
    assert placed(model).nodes == {"last3"}


def test_operators_without_kernels_and_excluded_nodes_stay_in_float():
    model = parse("a = Conv(x, w)  b = HardSwish(a)  c = Conv(b, w)  y = Conv(c, w)", SQUARE)
    assert placed(model).nodes == {"a", "c", "last3"}
    assert placed(model, ("c",)).nodes == {"a", "last3"}


def test_convolutions_with_computed_weights_stay_in_float():
    model = parse("k = Tanh(w)  a = Conv(x, k)  y = Conv(a, w)", SQUARE)
    assert placed(model).nodes == {"last2"}


@pytest.mark.parametrize("read_by", ["Tanh", "Gelu", "Identity"])
def test_the_result_of_a_product_stays_in_float_for_float_readers(read_by):
    model = parse(
        f"a = MatMul(x, w)  y = {read_by}(a)",
        kernel("w", 6, 6),
        inputs="float[N, 4, 6] x",
        outputs="float[A, B, C] y",
    )
    assert placed(model) == Placement(frozenset({"a"}), frozenset({"a"}))


def test_the_result_of_a_product_is_rounded_for_another_product():
    model = parse(
        "a = Gemm(x, w)  b = Relu(a)  y = Gemm(b, w)",
        kernel("w", 6, 6),
        inputs="float[N, 6] x",
        outputs="float[A, B] y",
    )
    assert placed(model) == Placement(frozenset({"a", "b", "last2"}), frozenset({"y"}))


def test_products_of_activations_stay_in_float():
    model = parse(
        "a = MatMul(x, w)  b = Transpose<perm = [0, 2, 1]>(a)  c = MatMul(a, b)  d = Softmax(c)"
        "  e = MatMul(d, a)  y = MatMul(e, w)",
        kernel("w", 6, 6),
        inputs="float[N, 4, 6] x",
        outputs="float[A, B, C] y",
    )
    assert placed(model).nodes == {"a", "last5"}


ENCODER = (
    "h = Add(x, b)  n = LayerNormalization(h, g)  q = MatMul(n, w)  r = Gelu(q)  f = MatMul(r, w)"
    "  s = Sum(f, n)  y = LayerNormalization(s, g)"
)


def encoder():
    return parse(
        ENCODER,
        ", ".join([kernel("w", 8, 8), kernel("b", 8), kernel("g", 8)]),
        inputs="float[N, 4, 8] x",
        outputs="float[A, B, C] y",
    )


def quantized(model, tmp_path, **options):
    x = np.random.default_rng(0).standard_normal((32, *_shape(model))).astype(np.float32)
    path = tmp_path / "int8.onnx"
    quantize_model(
        model,
        path,
        ArraySamples({"x": x}),
        Int8Settings(TARGETS["x86-vnni"], exclude=options.get("exclude", ())),
        progress=SILENT,
    )
    return onnx.load(path), x


def _shape(model):
    return [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]


def test_float_readers_of_a_float_result_read_it_unrounded(tmp_path):
    model, _ = quantized(encoder(), tmp_path)
    nodes = {node.name: node for node in model.graph.node}
    assert nodes["s"].input[:] == ["f", "n"]
    assert nodes["q"].input[0] == "n_DequantizeLinear_Output"
    assert [n.op_type for n in model.graph.node].count("QuantizeLinear") == 2


def test_float_readers_of_an_int8_result_read_the_rounded_value(tmp_path):
    model = parse("a = Conv(x, w)  b = Tanh(a)  c = Conv(a, w)  y = Add(b, c)", SQUARE)
    found, _ = quantized(model, tmp_path)
    nodes = {node.name: node for node in found.graph.node}
    # Otherwise the convolution would have another reader than QuantizeLinear and would stay in float.
    assert nodes["b"].input[0] == nodes["c"].input[0] == "a_DequantizeLinear_Output"


def test_a_dequantize_node_without_readers_is_removed():
    model = parse(
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Tanh(d)",
        "float s = {0.1}, uint8 z = {0}",
    )
    read_unrounded(model, Placement(frozenset(), frozenset()))
    assert [n.op_type for n in model.graph.node] == ["QuantizeLinear", "Tanh"]
    assert model.graph.node[-1].input[0] == "x"


def test_readers_inside_branches_are_considered():
    model = parse(
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  p = ReduceMax(x)  c = Cast<to = 9>(p)"
        "  k = Squeeze(c)  y = If(k) <then_branch = t () => (float[N, 2, 6, 6] t) { t = Tanh(d) },"
        " else_branch = e () => (float[N, 2, 6, 6] e) { e = Exp(d) }>",
        "float s = {0.1}, uint8 z = {0}",
    )
    read_unrounded(model, Placement(frozenset(), frozenset({"d"})))
    onnx.checker.check_model(model, full_check=True)
    branches = [attribute.g.node[0] for attribute in model.graph.node[-1].attribute]
    assert {name for node in branches for name in node.input} == {"x"}
    kept = parse(
        "a = Conv(x, w)  q = QuantizeLinear(a, s, z)  d = DequantizeLinear(q, s, z)  p = ReduceMax(x)"
        "  c = Cast<to = 9>(p)  k = Squeeze(c)"
        "  y = If(k) <then_branch = t () => (float[N, 2, 6, 6] t) { t = Tanh(d) },"
        " else_branch = e () => (float[N, 2, 6, 6] e) { e = Exp(d) }>",
        f"float s = {{0.1}}, uint8 z = {{0}}, {SQUARE}",
    )
    before = kept.SerializeToString()
    read_unrounded(kept, Placement(frozenset({"a"}), frozenset()))
    assert kept.SerializeToString() == before


def test_the_int8_encoder_is_close_to_float(tmp_path):
    model = encoder()
    found, x = quantized(model, tmp_path)
    before, after = (open_exact(m).run(None, {"x": x})[0] for m in (model, found))
    cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
    assert cosine > 0.9995


def test_nothing_to_quantize_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="has nothing that can run in int8"):
        quantized(parse("y = Tanh(x)"), tmp_path)


def test_nodes_without_names_are_quantized(tmp_path):
    model = parse("a = Conv(x, w)  b = Relu(a)  y = Conv(b, w)", SQUARE)
    for node in model.graph.node:
        node.name = ""
    found, _ = quantized(model, tmp_path)
    constants = {i.name: i.data_type for i in found.graph.initializer}
    assert constants["w_quantized"] == onnx.TensorProto.INT8
    assert [n.op_type for n in found.graph.node].count("QuantizeLinear") == 3


@pytest.mark.parametrize(
    ("body", "constants", "excluded"),
    [
        (
            "a = Conv(x, w)  b = Conv(a, v)  y = Conv(b, w)",
            f"{SQUARE}, {kernel('v', 2, 2, 1, 1)}",
            "b",
        ),
        (
            "a = Conv(x, w)  b = Conv<group = 2>(a, v)  y = Conv(b, w)",
            f"{SQUARE}, {kernel('v', 2, 1, 1, 1)}",
            "b",
        ),
        ("a = Conv(x, w)  b = ConvTranspose(a, w)  y = Conv(b, w)", SQUARE, ""),
    ],
    ids=["convolution", "depthwise", "transposed"],
)
def test_operators_left_in_float_run_in_float(tmp_path, body, constants, excluded):
    model = parse(body, constants)
    found, x = quantized(model, tmp_path, exclude=(excluded,) if excluded else ())
    result = audit(tmp_path / "int8.onnx")
    assert len(result.float_ops) == 1
    assert result.quantized_at_load == ()
    before, after = (open_exact(m).run(None, {"x": x})[0] for m in (model, found))
    assert sqnr_db(before, after) > 25


@pytest.mark.parametrize("turned", [0, 1])
def test_an_excluded_gemm_runs_in_float(tmp_path, turned):
    model = parse(
        f"a = Gemm<transB = {turned}>(x, w)  b = Gemm<transB = {turned}>(a, v)  y = Gemm(b, u)",
        ", ".join([kernel("w", 6, 6), kernel("v", *((5, 6) if turned else (6, 5))), kernel("u", 5, 6)]),
        inputs="float[N, 6] x",
        outputs="float[A, B] y",
    )
    quantized(model, tmp_path, exclude=("b",))
    assert [operator.name for operator in audit(tmp_path / "int8.onnx").float_ops] == ["b"]


def test_a_relu_stays_in_float_if_its_convolution_has_another_float_reader():
    model = parse("a = Conv(x, w)  b = Relu(a)  c = Tanh(a)  y = Add(b, c)", SQUARE)
    assert placed(model).nodes == {"a"}


@pytest.mark.parametrize(
    ("limits", "quantized_too"),
    [
        ("lo, hi", True),
        ("lo", True),
        (", hi", True),
        ("hi", False),
        (", lo", False),
        ("high, hi", False),
        ("computed, hi", False),
    ],
)
def test_a_clip_whose_limits_exclude_zero_stays_in_float(tmp_path, limits, quantized_too):
    constants = f"{SQUARE}, float lo = {{-0.1}}, float hi = {{0.3}}, float high = {{0.2}}"
    body = f"computed = Exp(lo)  a = Conv(x, w)  b = Clip(a, {limits})  y = Conv(b, w)"
    model = parse(body, constants)
    assert ("b" in placed(model).nodes) == quantized_too
    found, x = quantized(model, tmp_path)
    before, after = (open_exact(m).run(None, {"x": x})[0] for m in (model, found))
    assert sqnr_db(before, after) > 25
