"""The three rewrites for attention and norms, on graphs like those of PyTorch's exporter."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from exporter.graphs.rewrites import (
    LastAxesTransposePass,
    ResidualNormPass,
    SoftmaxGuardPass,
    rewrite_for_cpu,
)

HEADER = '<ir_version: 9, opset_import: ["" : 20]> '


def parse(graph):
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEADER + graph)))


def operators(model):
    return [node.op_type for node in model.graph]


def run(model, **feeds):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feeds)[0]


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


SWAP = """
g (float[N, 3, 4, 5] x) => (float[N, 3, 5, 4] y)
<int64[1] minus = {-1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4},
 int64[1] end = {9223372036854775807}>
{
  shape = Shape(x)
  head = Slice(shape, zero, two)
  rows = Slice(shape, two, three)
  columns = Slice(shape, three, end)
  merged = Concat<axis = 0>(minus, rows, columns)
  flat = Reshape(x, merged)
  turned = Transpose<perm = [0, 2, 1]>(flat)
  split = Concat<axis = 0>(head, columns, rows)
  y = Reshape(turned, split)
}
"""


def test_a_swap_of_the_last_axes_is_one_transpose():
    model = parse(SWAP)
    x = normal(2, 3, 4, 5)
    rewrite_for_cpu(model)
    assert operators(model) == ["Transpose"]
    assert np.array_equal(run(model, x=x), x.swapaxes(2, 3))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head, columns, rows", "head, rows, columns"),
        ("perm = [0, 2, 1]", "perm = [1, 0, 2]"),
        ("(minus, rows, columns)", "(minus, columns, rows)"),
        ("Slice(shape, zero, two)", "Slice(shape, zero, two, zero, two)"),
    ],
    ids=["not swapped back", "another permutation", "merged otherwise", "every second size"],
)
def test_other_chains_of_reshapes_are_left_alone(old, new):
    model = parse(SWAP.replace(old, new).replace("float[N, 3, 5, 4] y", "float[A, B, C, D] y"))
    before = operators(model)
    assert not LastAxesTransposePass()(model).modified
    assert operators(model) == before


NORM = """
g (float[N, 4, 8] x, float[N, 4, 8] z) => (float[N, 4, 8] y)
<float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] s = {1, 1, 1, 1, 2, 2, 2, 2}>
{ BODY }
"""


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("h = Add(x, z)  y = LayerNormalization<axis = -1>(h, s, b)", ["Sum", "LayerNormalization"]),
        (
            "p = Add(x, b)  h = Add(p, z)  y = LayerNormalization<axis = -1>(h, s, b)",
            ["Sum", "LayerNormalization"],
        ),
        (
            "p = Add(b, x)  h = Add(z, p)  y = LayerNormalization<axis = -1>(h, s, b)",
            ["Sum", "LayerNormalization"],
        ),
    ],
)
def test_residual_sums_are_not_fused_into_the_slow_operator(body, left, tmp_path):
    model, untouched = parse(NORM.replace("BODY", body)), parse(NORM.replace("BODY", body))
    rewrite_for_cpu(model)
    assert operators(model) == left
    feeds = {"x": normal(2, 4, 8), "z": normal(2, 4, 8)[::-1]}
    assert np.allclose(run(model, **feeds), run(untouched, **feeds), atol=1e-5)
    path = tmp_path / "optimized.onnx"
    assert "SkipLayerNormalization" not in optimized_operators(model, path)
    assert "SkipLayerNormalization" in optimized_operators(untouched, path)


def optimized_operators(model, path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    "body",
    [
        "h = Add(x, z)  y = Relu(h)",
        "h = Add(x, b)  y = LayerNormalization<axis = -1>(h, s, b)",
        "h = Add(x, z)  n = LayerNormalization<axis = -1>(h, s, b)  y = Mul(n, h)",
    ],
    ids=["no norm", "a bias", "read twice"],
)
def test_other_sums_are_left_alone(body):
    model = parse(NORM.replace("BODY", body))
    assert not ResidualNormPass()(model).modified


def test_a_bias_sum_with_other_readers_is_not_merged():
    model = parse(
        NORM.replace(
            "BODY",
            "p = Add(x, b)  h = Add(p, z)  n = LayerNormalization<axis = -1>(h, s, b)  y = Mul(n, p)",
        )
    )
    ResidualNormPass()(model)
    assert operators(model) == ["Add", "Sum", "LayerNormalization", "Mul"]


GUARD = """
g (float[N, 2, 4, 4] x, bool[N, 1, 1, 4] keep) => (float[N, 2, 4, 4] y)
<float zero = {0}, float low = {LOW}>
{
  mask = Where(keep, zero, low)
  scores = Add(x, mask)
  p = Softmax<axis = -1>(scores)
  broken = IsNaN(p)
  whole = Where(broken, zero, p)
  y = Relu(whole)
}
"""


def guarded(low):
    model = parse(GUARD.replace("LOW", "-1"))
    value = model.graph.initializers["low"]
    value.const_value = ir.tensor(np.float32(low), name="low")
    return model


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min, -10_001.0])
def test_masks_become_finite_and_the_guard_is_removed(low):
    model, untouched = guarded(low), guarded(low)
    rewrite_for_cpu(model)
    assert operators(model) == ["Where", "Add", "Softmax", "Relu"]
    lowest = min(float(v.const_value.numpy().min()) for v in model.graph.initializers.values())
    assert lowest == -10_000.0
    x = normal(3, 2, 4, 4)
    keep = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool).reshape(3, 1, 1, 4)
    assert np.allclose(run(model, x=x, keep=keep), run(untouched, x=x, keep=keep), atol=1e-7)


def test_completely_masked_rows_are_finite():
    model = guarded(-np.inf)
    rewrite_for_cpu(model)
    result = run(model, x=normal(1, 2, 4, 4), keep=np.zeros((1, 1, 1, 4), bool))
    assert np.allclose(result.sum(-1), 1.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask = Where(keep, zero, low)", "mask = Where(keep, zero, x)"),
        ("scores = Add(x, mask)", "scores = Sub(x, mask)"),
        ("broken = IsNaN(p)", "broken = IsNaN(x)"),
        ("Where(broken, zero, p)", "Where(broken, p, zero)"),
        ("Where(broken, zero, p)", "Where(broken, low, p)"),
    ],
    ids=["computed mask", "no sum", "another test", "other way round", "another value"],
)
def test_other_guards_are_kept(old, new):
    model = parse(GUARD.replace("LOW", "-1").replace(old, new))
    before = operators(model)
    SoftmaxGuardPass()(model)
    assert operators(model) == before
