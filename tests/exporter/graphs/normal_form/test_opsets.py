"""Old opsets and IR versions are raised without another meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from bench.core.errors import ModelError
from exporter.graphs.normal_form import normalize

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
FOUR = np.random.default_rng(1).uniform(0.5, 1.5, 4).astype(np.float32)
ROW = "g (float[2, 4, 6, 6] x) => (float[a, b, c, d] y)"
SCALES = {"up": [1, 1, 2, 2], "uneven": [1, 1, 1.5, 2.3], "down": [1, 1, 0.5, 0.6], "both": [1, 1, 2, 0.5]}

# First opset, last opset, body. Attributes that became inputs later, and defaults that changed.
BODIES = {
    "Clip": (7, 10, "y = Clip<min = -0.5, max = 0.5>(x)"),
    "Clip without a limit": (7, 10, "y = Clip<min = 0.1>(x)"),
    "Pad": (7, 10, 'y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 0.5, mode = "constant">(x)'),
    "Pad by reflection": (7, 10, 'y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], mode = "reflect">(x)'),
    "Slice": (7, 9, "y = Slice<axes = [2, 3], starts = [1, -4], ends = [5, 1000]>(x)"),
    "Softmax": (7, 12, "y = Softmax(x)"),
    "Softmax of an inner axis": (7, 12, "y = Softmax<axis = 2>(x)"),
    "Softmax of the last axis": (11, 12, "y = Softmax<axis = -1>(x)"),
    "LogSoftmax": (7, 12, "y = LogSoftmax<axis = 1>(x)"),
    "Hardmax": (7, 12, "y = Hardmax<axis = 3>(x)"),
    "Squeeze": (7, 12, "m = ReduceMax<axes = [2], keepdims = 1>(x) s = Squeeze<axes = [2]>(m) "
                       "y = Unsqueeze<axes = [1]>(s)"),
    "ReduceSum": (7, 12, "y = ReduceSum<axes = [1, 3]>(x)"),
    "ReduceSum of all axes": (7, 12, "y = ReduceSum(x)"),
    "ReduceMean": (7, 12, "y = ReduceMean<axes = [-1]>(x)"),
    "Split": (7, 12, "a, b = Split<axis = 1, split = [1, 3]>(x) y = Concat<axis = 1>(b, a)"),
    "Split evenly": (7, 12, "a, b = Split<axis = 1>(x) y = Concat<axis = 1>(b, a)"),
    "BatchNormalization": (7, 12, "y = BatchNormalization(x, four, four, four, four)"),
    "Dropout": (7, 11, "y = Dropout<ratio = 0.5>(x)"),
    "AveragePool": (7, 12, "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)"),
    "MaxPool": (7, 12, "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(x)"),
    "LpNormalization": (7, 12, "y = LpNormalization<axis = 1>(x)"),
    "PRelu": (9, 12, "s = Unsqueeze<axes = [1, 2]>(four) y = PRelu(x, s)"),
    "Pow": (7, 12, "two = Constant<value_float = 2.0>() y = Pow(x, two)"),
    "Gemm": (7, 12, "f = Flatten(x) s = Transpose(f) y2 = Gemm<alpha = 0.5, beta = 2.0>(f, s, f2) "
                    "y = Unsqueeze<axes = [0, 1]>(y2)"),
    "ArgMax": (7, 12, "i = ArgMax<axis = 1>(x) y = Cast<to = 1>(i)"),
    "DepthToSpace": (7, 12, "y = DepthToSpace<blocksize = 2>(x)"),
    "Dynamic shape": (7, 12, "s = Shape(x) y = Reshape(x, s)"),
    "Equal": (7, 12, "i = Cast<to = 6>(x) e = Equal(i, i) y = Cast<to = 1>(e)"),
    "Cumulated sum": (11, 12, "axis = Constant<value = int64 {1}>() y = CumSum(x, axis)"),
    "InstanceNormalization": (7, 12, "y = InstanceNormalization(x, four, four)"),
    "Elu": (7, 12, "e = Elu(x) y = Selu(e)"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (opset, body)
        for first, last, body in BODIES.values()
        for opset in {first, (first + last) // 2, last}
    ],
)
def test_operators_keep_their_meaning(parsed, same, opset, body):
    body = body.replace("Constant<value_float = 2.0>", "Constant<value = float {2.0}>")
    constants = {"four": FOUR, "f2": np.ones((2, 2), np.float32)}
    constants = {name: value for name, value in constants.items() if name in body}
    normal = same(parsed(f"{ROW} {{ {body} }}", constants, opset), {"x": X})
    assert normal.opset_import[0].version == 17


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES.keys())
def test_resized_pictures_keep_their_positions(parsed, same, opset, mode, scales):
    """Before opset 11, Upsample and Resize have no attribute for the mapping of positions."""
    if opset < 10 and min(scales) < 1:
        pytest.skip("Upsample cannot shrink")
    constants = {"scales": np.float32(scales), "roi": np.zeros(0, np.float32)}
    if opset < 9:
        body, constants = f'y = Upsample<mode = "{mode}", scales = {[float(s) for s in scales]}>(x)', {}
    else:
        operator = "Upsample" if opset < 10 else "Resize"
        inputs = "x, roi, scales" if opset > 10 else "x, scales"
        body = f'y = {operator}<mode = "{mode}">({inputs})'
        constants = {name: value for name, value in constants.items() if name in inputs}
    same(parsed(f"{ROW} {{ {body} }}", constants, opset), {"x": X}, exact=True)


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_keep_their_meaning(parsed, same, opset, operator):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    r = np.random.default_rng(0)
    constants = {
        "w": r.standard_normal((1, gates * 3, 5)).astype(np.float32),
        "r": r.standard_normal((1, gates * 3, 3)).astype(np.float32),
    }
    text = f"g (float[4, 2, 5] x) => (float[a, b, c, d] y) {{ y = {operator}<hidden_size = 3>(x, w, r) }}"
    same(parsed(text, constants, opset), {"x": r.standard_normal((4, 2, 5)).astype(np.float32)})


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 21])
@pytest.mark.parametrize("ir_version", [3, 4, 7])
@pytest.mark.parametrize("listed", [True, False])
def test_constants_are_not_inputs(parsed, same, opset, ir_version, listed):
    if ir_version == 3 and not listed:
        opset = min(opset, 12)
    model = parsed(f"{ROW} {{ y = Mul(x, four) }}", {"four": FOUR[:1]}, opset, ir_version)
    if listed:
        model.graph.input.append(helper.make_tensor_value_info("four", 1, [1]))
    normal = same(model, {"x": X})
    assert [value.name for value in normal.graph.input] == ["x"]
    assert 8 <= normal.ir_version <= 10


def test_an_opset_that_cannot_be_converted_is_an_error(parsed):
    model = parsed(f"{ROW} {{ y = Upsample(x) }}", opset=12)  # Upsample ended with opset 10
    with pytest.raises(ModelError, match=r"m\.onnx: opset 12 is too old for int8, and ONNX cannot convert"):
        normalize(model, Path("m.onnx"))


# Operators whose definition changed between opset 14 and 17 only by types or optional attributes.
RESTATED = {
    "BatchNormalization": "y = BatchNormalization(x, four, four, four, four)",
    "LeakyRelu": "y = LeakyRelu<alpha = 0.3>(x)",
    "PRelu": "s = Unsqueeze(four, axes) y = PRelu(x, s)",
    "Pow": "y = Pow(x, x)",
    "ScatterElements": "i = Cast<to = 7>(x) m = Sub(i, i) y = ScatterElements<axis = 1>(x, m, x)",
    "Shape": "s = Shape(x) y = Reshape(x, s)",
    "Where": "c = Greater(x, x) y = Where(c, x, x)",
    "If": "one = Size(axes) c = Cast<to = 9>(one)"
    " y = If(c)<then_branch = t () => (float[2, 4, 6, 6] p) { p = Neg(x) },"
    " else_branch = e () => (float[2, 4, 6, 6] q) { q = Abs(x) }>",
}


@pytest.mark.parametrize("opset", [14, 15, 16])
@pytest.mark.parametrize("body", RESTATED.values(), ids=RESTATED.keys())
def test_opsets_14_to_16_are_stated_as_17(parsed, same, opset, body):
    constants = {"four": FOUR, "axes": np.array([1, 2])}
    model = parsed(f"{ROW} {{ {body} }}", {k: v for k, v in constants.items() if k in body}, opset)
    assert same(model, {"x": X}, exact=True).opset_import[0].version == 17


@pytest.mark.parametrize("opset", [14, 15])
def test_an_operator_with_another_meaning_keeps_its_opset(parsed, same, opset):
    constants = {
        "rois": np.float32([[0, 0, 4, 4], [1, 1, 5, 3]]),
        "which": np.array([0, 1]),
    }
    text = f"{ROW} {{ y = RoiAlign<output_height = 3, output_width = 3>(x, rois, which) }}"
    assert same(parsed(text, constants, opset), {"x": X}, exact=True).opset_import[0].version == opset
