"""float16, bfloat16 and float64 files are computed in float32; inputs and outputs keep their types."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from exporter.graphs.normal_form import normalize
from exporter.graphs.onnx_files import infer_shapes
from tests.exporter.graphs.normal_form.conftest import run

R = np.random.default_rng(0)
X = R.standard_normal((2, 8)).astype(np.float32)
W = (R.standard_normal((8, 8)) * 0.3).astype(np.float16)
HALF = "g (float16[n, 8] x) => (float16[n, 8] y)"
KEPT = "g (float[n, 8] x) => (float[n, 8] y)"

# In ONNX's text syntax, float16 constants are bit patterns: 15360 is 1, 16384 is 2, 15872 is 1.5.
CASES = {
    "all": f"{HALF} {{ h = MatMul(x, w) y = Relu(h) }}",
    "float inputs and outputs": f"{KEPT} {{ a = Cast<to = 10>(x) h = MatMul(a, w) y = Cast<to = 1>(h) }}",
    "half input only": "g (float16[n, 8] x) => (float[n, 8] y)"
                       " { h = MatMul(x, w) y = Cast<to = 1>(h) }",
    "half output only": "g (float[n, 8] x) => (float16[n, 8] y) { a = Cast<to = 10>(x) y = MatMul(a, w) }",
    "only stored in half": f"{KEPT} {{ v = Cast<to = 1>(w) y = MatMul(x, v) }}",
    "stored in bfloat16": f"{KEPT} {{ b = Constant<value = bfloat16[2] {{16256, 16448}}>()"
                          " c = Cast<to = 1>(b) s = ReduceSum<keepdims = 0>(c) y = Mul(x, s) }",
    "rounded on the way": f"{KEPT} {{ a = Cast<to = 16>(x) y = Cast<to = 1>(a) }}",
    "an output that nodes read": "g (float16[n, 8] x) => (float16[n, 8] y, float16[n, 8] z)"
                                 " { y = MatMul(x, w) z = Tanh(y) }",
    "a constant output": "g (float16[n, 8] x) => (float16[n, 8] y, float16[8, 8] w) { y = MatMul(x, w) }",
    "an operator in float32": f"{HALF} {{ h = MatMul(x, w) a = Cast<to = 1>(h) e = Exp(a)"
                              " b = Cast<to = 10>(e) y = Mul(b, h) }",
    "constants in nodes": f"{HALF} {{ two = Constant<value = float16 {{16640}}>() s = Shape(x)"
                          " f = ConstantOfShape<value = float16[1] {15872}>(s) h = Mul(x, two)"
                          " g = Add(h, f) y = MatMul(g, w) }",
    "like another tensor": f"{HALF} {{ i = Constant<value = int64 {{3}}>() c = CastLike(i, x)"
                           " h = MatMul(x, w) y = Mul(h, c) }",
    "a mask of minus infinity": f"{HALF} {{ low = Constant<value = float {{-3.4e38}}>()"
                                " l = Cast<to = 10>(low) h = MatMul(x, w) m = Max(h, l) y = Softmax(m) }",
    "a norm": f"{HALF} {{ g = Constant<value = float16[8] {{15360, 16384, 15360, 16384,"
              " 15360, 16384, 15360, 15360}>() h = MatMul(x, w) y = LayerNormalization(h, g) }",
    "classes": "g (float16[n, 8] x) => (int64[n] y)"
               " { h = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(h) }",
    "a branch": f"""{HALF} {{
        s = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(s)
        y = If (f) <
            then_branch = t () => (float16[n, 8] p) {{
                k = Constant<value = float16 {{16384}}>() q = Mul(x, k) p = MatMul(q, w)
            }},
            else_branch = e () => (float16[n, 8] o) {{ o = Neg(x) }}
        >
    }}""",
    "a loop": f"""{HALF} {{
        n = Constant<value = int64 {{2}}>() c = Constant<value = bool {{1}}>()
        y = Loop (n, c, x) <body = l (int64 i, bool g, float16[n, 8] a) => (bool d, float16[n, 8] b) {{
            d = Identity(g) b = MatMul(a, w)
        }}>
    }}""",
    "an unused input": "g (float16[n, 8] x, float16[n, 8] u) => (float16[n, 8] y) { y = MatMul(x, w) }",
    "numbered names": f"{HALF} {{ y2 = MatMul(x, w) y = Relu(y2) }}",
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("case", CASES)
def test_a_half_precision_file_is_the_same_function_in_float32(parsed, case, opset):
    text = CASES[case]
    if ("LayerNormalization" in text and opset < 17) or ("CastLike" in text and opset < 15):
        pytest.skip("the operator is newer")
    model = parsed(text, {"w": W} if re.search(r"\bw\b", text) else {}, opset)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    feeds = {name: X.astype(np.float16 if kind == 10 else np.float32) for name, kind in kinds.items()}
    before = run(model, feeds)
    normal = normalize(model, Path("m.onnx"))
    onnx.checker.check_model(normal, full_check=True)
    for wanted, got in zip(before, run(normal, feeds), strict=True):
        assert (wanted.dtype, wanted.shape) == (got.dtype, got.shape)
        np.testing.assert_allclose(got, wanted, rtol=0.01, atol=0.01)
    assert {value.name: value.type.tensor_type.elem_type for value in normal.graph.input} == kinds
    outside = {value.name for value in (*normal.graph.input, *normal.graph.output)}
    halves = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    inner = [v for v in infer_shapes(normal).graph.value_info if v.name not in outside]
    assert not [v.name for v in inner if v.type.tensor_type.elem_type in halves]
    assert not [tensor.name for tensor in normal.graph.initializer if tensor.data_type in halves]


def test_other_files_do_not_change(parsed):
    model = parsed(f"{KEPT} {{ y = MatMul(x, w) }}", {"w": W.astype(np.float32)})
    before = model.SerializeToString(deterministic=True)
    assert normalize(model, Path("m.onnx")).SerializeToString(deterministic=True) == before


def test_stated_types_of_sequences_change_too(parsed):
    model = parsed(f"{KEPT} {{ y = Identity(x) }}")
    model.graph.value_info.append(
        onnx.helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT16, [2])
    )
    normalize(model, Path("m.onnx"))
    assert model.graph.value_info[0].type.sequence_type.elem_type.tensor_type.elem_type == TensorProto.FLOAT


D = W.astype(np.float64)
ALL_DOUBLE = "g (double[n, 8] x) => (double[n, 8] y)"
# Float64 that products compute in.
DOUBLES = {
    "all": f"{ALL_DOUBLE} {{ h = MatMul(x, d) y = Relu(h) }}",
    "a product between casts": f"{KEPT} {{ a = Cast<to = 11>(x) h = MatMul(a, d) y = Cast<to = 1>(h) }}",
    "double input only": "g (double[n, 8] x) => (float[n, 8] y) { h = MatMul(x, d) y = Cast<to = 1>(h) }",
    "double output only": "g (float[n, 8] x) => (double[n, 8] y) { a = Cast<to = 11>(x) y = MatMul(a, d) }",
    "weights that a node computes": f"{ALL_DOUBLE} {{ t = Transpose<perm = [1, 0]>(d) y = Gemm(x, t) }}",
    "weights cast to double": f"{ALL_DOUBLE} {{ v = Cast<to = 11>(f) y = MatMul(x, v) }}",
    "an input as output": "g (double[n, 8] x) => (double[n, 8] y, double[n, 8] x) { y = MatMul(x, d) }",
    "a constant output": "g (double[n, 8] x) => (double[n, 8] y, double[8, 8] d) { y = MatMul(x, d) }",
    "a value that float32 cannot hold": f"{ALL_DOUBLE} {{ deep = Constant<value = double {{-1.7e308}}>()"
                                        " h = MatMul(x, d) m = Max(h, deep) y = Softmax(m) }",
    "a mask of minus infinity": f"{ALL_DOUBLE} {{ h = MatMul(x, d) m = Max(h, low) y = Softmax(m) }}",
    "a branch": f"""{ALL_DOUBLE} {{
        h = MatMul(x, d) s = ReduceSum<keepdims = 0>(h) b = Cast<to = 9>(s)
        y = If (b) <
            then_branch = t () => (double[n, 8] p) {{
                k = Constant<value = double {{2.0}}>() q = Mul(x, k) p = MatMul(q, d)
            }},
            else_branch = e () => (double[n, 8] o) {{ o = Neg(h) }}
        >
    }}""",
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("case", DOUBLES)
def test_a_float64_network_is_computed_in_float32(parsed, case, opset):
    text = DOUBLES[case]
    constants = {"d": D, "f": W.astype(np.float32), "low": np.array(-np.inf)}
    model = parsed(
        text, {name: constants[name] for name in constants if re.search(rf"\b{name}\b(?! =)", text)}, opset
    )
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    feeds = {
        name: X.astype(np.float64 if kind == TensorProto.DOUBLE else np.float32)
        for name, kind in kinds.items()
    }
    before = run(model, feeds)
    normal = normalize(model, Path("m.onnx"))
    onnx.checker.check_model(normal, full_check=True)
    for wanted, got in zip(before, run(normal, feeds), strict=True):
        assert (wanted.dtype, wanted.shape) == (got.dtype, got.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert {value.name: value.type.tensor_type.elem_type for value in normal.graph.input} == kinds
    assert TensorProto.DOUBLE not in {tensor.data_type for tensor in normal.graph.initializer}


@pytest.mark.parametrize(
    "text",
    [
        # Times and sizes in float64 round to other integers in float32.
        f"{KEPT} {{ h = MatMul(x, f) t = Cast<to = 11>(h) u = Floor(t) y = Cast<to = 1>(u) }}",
        "g (float[n, 8] x, double[n, 8] t) => (float[n, 8] y, double[n, 8] z)"
        " { y = MatMul(x, f) two = Constant<value = double {2.0}>() z = Mul(t, two) }",
    ],
)
def test_float64_beside_a_float32_network_stays(parsed, text):
    model = parsed(text, {"f": W.astype(np.float32)})
    normal = normalize(model, Path("m.onnx"))
    kinds = {value.type.tensor_type.elem_type for value in infer_shapes(normal).graph.value_info}
    casts = {one.i for node in normal.graph.node for one in node.attribute if one.name == "to"}
    constants = {tensor.data_type for tensor in normal.graph.initializer}
    assert TensorProto.DOUBLE in kinds | casts | constants
