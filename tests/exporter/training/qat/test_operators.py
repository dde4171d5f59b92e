"""Every operator of the table computes the same results as ONNX Runtime, and exact gradients."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from exporter.graphs.attributes import attributes_of
from exporter.training.qat.operators import OPERATORS, is_known

F = np.float32
BOOLS = np.array([[True, False], [False, False]])


def numbers(*shape, low=-2.0, high=2.0):
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(F)


def ints(*values):
    return np.array(values, np.int64)


IMAGE = numbers(2, 4, 7, 7)
WAVE = numbers(2, 3, 9)
VOLUME = numbers(1, 2, 4, 5, 3)
SEQUENCE = numbers(5, 2, 3)

# (operator, attributes, inputs)
ELEMENTWISE = [
    *(
        (name, {}, [numbers(7)])
        for name in (
            "Abs",
            "Asinh",
            "Atan",
            "Ceil",
            "Cos",
            "Cosh",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSwish",
            "Identity",
            "IsInf",
            "IsNaN",
            "Mish",
            "Neg",
            "Relu",
            "Round",
            "Selu",
            "Shrink",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Celu",
            "LeakyRelu",
            "HardSigmoid",
        )
    ),
    *((name, {}, [numbers(7, low=-0.9, high=0.9)]) for name in ("Acos", "Asin", "Atanh")),
    *((name, {}, [numbers(7, low=1.1, high=3)]) for name in ("Acosh", "Log", "Reciprocal", "Sqrt")),
    *(
        (name, {}, [numbers(2, 3), numbers(3)])
        for name in (
            "Add",
            "Div",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Max",
            "Mean",
            "Min",
            "Mul",
            "PRelu",
            "Sub",
            "Sum",
        )
    ),
    *((name, {}, [numbers(4, 1, 3), numbers(2, 1), numbers(3)]) for name in ("Max", "Mean", "Min", "Sum")),
    *((name, {}, [numbers(5)]) for name in ("Max", "Mean", "Min", "Sum")),
    *((name, {}, [ints(7, -9, 4), ints(2, 2, 4)]) for name in ("Add", "Div", "Equal", "Max", "Mul", "Sub")),
    *((name, {}, [BOOLS, BOOLS[:1]]) for name in ("And", "Or", "Xor", "Equal")),
    *((name, {}, [ints(6, -9), ints(3, 5)]) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    ("BitwiseNot", {}, [ints(6, -9)]),
    ("BitShift", {"direction": "LEFT"}, [np.array([3, 5], np.uint8), np.array([1, 2], np.uint8)]),
    ("BitShift", {"direction": "RIGHT"}, [np.array([3, 50], np.uint8), np.array([1, 2], np.uint8)]),
    ("Celu", {"alpha": 0.5}, [numbers(9)]),
    ("Clip", {}, [numbers(9), F(-0.5), F(1)]),
    ("Clip", {}, [numbers(9), None, F(1)]),
    ("Clip", {}, [numbers(9)]),
    ("Clip", {}, [ints(3, -4, 9), np.array(0), np.array(5)]),
    ("Dropout", {}, [numbers(5)]),
    ("Elu", {"alpha": 0.5}, [numbers(5)]),
    ("Gelu", {"approximate": "tanh"}, [numbers(5)]),
    ("HardSigmoid", {"alpha": 1 / 6}, [numbers(9, low=-4, high=4)]),
    ("HardSwish", {}, [numbers(9, low=-4, high=4)]),
    ("IsInf", {"detect_negative": 0}, [np.array([np.inf, -np.inf, 1], F)]),
    ("IsNaN", {}, [np.array([np.nan, 1], F)]),
    ("LeakyRelu", {"alpha": 0.3}, [numbers(5)]),
    ("Mod", {}, [ints(7, -7, 5), ints(3, 3, -3)]),
    ("Mod", {"fmod": 1}, [numbers(5), F(0.7)]),
    ("Not", {}, [BOOLS]),
    ("Pow", {}, [numbers(5, low=0.5), F(1.5)]),
    ("Pow", {}, [numbers(5), F(2)]),
    ("Pow", {}, [ints(3, -2), F(2)]),
    ("PRelu", {}, [IMAGE, numbers(4, 1, 1)]),
    ("Round", {}, [np.array([0.5, 1.5, 2.5, -0.5], F)]),
    ("Selu", {"alpha": 2.0, "gamma": 3.0}, [numbers(7)]),
    ("Shrink", {"bias": 0.3, "lambd": 1.0}, [numbers(7)]),
    ("Sqrt", {}, [numbers(5, low=0.1)]),
    ("ThresholdedRelu", {"alpha": 0.5}, [numbers(7)]),
    ("Where", {}, [BOOLS, numbers(2, 2), numbers(1)]),
]

REDUCED = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
REDUCTIONS = [
    *((name, {}, [IMAGE[..., :3, :2], ints(2, -1)]) for name in REDUCED),
    *((name, {"keepdims": 0}, [numbers(2, 3, 4), ints(1)]) for name in REDUCED),
    *((name, {"keepdims": 0}, [numbers(2, 3)]) for name in REDUCED),
    *(
        (name, {"noop_with_empty_axes": 1}, [numbers(2, 3)])
        for name in ("ReduceSum", "ReduceMean", "ReduceMax")
    ),
    ("ReduceSum", {}, [ints(3, 4, 5), ints(0)]),
    ("ReduceMax", {}, [ints(3, 4, 5), ints(0)]),
    ("ReduceLogSum", {}, [numbers(2, 3, low=0.5), ints(1)]),
    *((name, {}, [numbers(3, 4)]) for name in ("ArgMax", "ArgMin")),
    *((name, {"axis": -1, "keepdims": 0}, [numbers(3, 4)]) for name in ("ArgMax", "ArgMin")),
    ("ArgMax", {"axis": 0, "select_last_index": 1}, [np.array([1, 3, 3, 2], F)]),
    ("CumSum", {}, [numbers(3, 4), np.array(1)]),
    ("CumSum", {"reverse": 1}, [numbers(3, 4), np.array(-1)]),
    ("CumSum", {"exclusive": 1}, [numbers(3, 4), np.array(0)]),
    ("CumSum", {"exclusive": 1, "reverse": 1}, [ints(3, 4, 5), np.array(0)]),
    ("Hardmax", {}, [numbers(3, 4)]),
    ("Hardmax", {"axis": 0}, [numbers(3, 4)]),
    ("LogSoftmax", {"axis": 1}, [numbers(2, 3, 4)]),
    ("Softmax", {"axis": 1}, [numbers(2, 3, 4)]),
    ("Softmax", {}, [numbers(2, 3, 4)]),
    ("TopK", {}, [numbers(3, 7), ints(3)]),
    ("TopK", {"axis": 0, "largest": 0}, [ints(2, 1, 1, 3), ints(2)]),
]

PRODUCTS = [
    ("Einsum", {"equation": "bhid,bhjd->bhij"}, [numbers(2, 2, 3, 4), numbers(2, 2, 5, 4)]),
    ("Einsum", {"equation": "bij, jk"}, [numbers(2, 2, 3), numbers(3, 4)]),
    ("Einsum", {"equation": "...ii->...i"}, [numbers(2, 3, 3)]),
    ("Gemm", {"transB": 1}, [numbers(2, 3), numbers(4, 3), numbers(4)]),
    ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [numbers(3, 2), numbers(3, 4), numbers(4)]),
    ("Gemm", {}, [numbers(3, 2), numbers(2, 4)]),
    ("MatMul", {}, [numbers(2, 3, 4), numbers(4, 5)]),
    ("MatMul", {}, [numbers(2, 1, 3, 4), numbers(3, 4, 5)]),
    ("MatMul", {}, [numbers(4), numbers(3, 4, 5)]),
]

NORMS = [
    (
        "BatchNormalization",
        {"epsilon": 0.01},
        [IMAGE, numbers(4), numbers(4), numbers(4), numbers(4, low=0.5)],
    ),
    ("InstanceNormalization", {"epsilon": 0.01}, [IMAGE, numbers(4), numbers(4)]),
    ("InstanceNormalization", {}, [WAVE, numbers(3), numbers(3)]),
    ("LRN", {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}, [IMAGE]),
    ("LayerNormalization", {"epsilon": 0.01}, [numbers(2, 3, 4), numbers(4), numbers(4)]),
    ("LayerNormalization", {"axis": 1}, [numbers(2, 3, 4), numbers(3, 4)]),
    ("LayerNormalization", {"axis": 1}, [numbers(2, 3, 4), numbers(4), numbers(4)]),
    ("LpNormalization", {}, [numbers(2, 3)]),
    ("LpNormalization", {"axis": 0, "p": 1}, [numbers(2, 3)]),
    ("MeanVarianceNormalization", {}, [IMAGE]),
    ("MeanVarianceNormalization", {"axes": [1, 2]}, [IMAGE]),
]

CONVOLUTIONS = [
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [IMAGE, numbers(5, 4, 3, 3), numbers(5)]),
    ("Conv", {"pads": [0, 1, 1, 2], "group": 4}, [IMAGE, numbers(8, 1, 3, 3)]),
    ("Conv", {"dilations": [2]}, [WAVE, numbers(4, 3, 3)]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [IMAGE[..., :6], numbers(5, 4, 3, 4)]),
    ("Conv", {"auto_pad": "SAME_LOWER"}, [IMAGE, numbers(5, 4, 2, 2)]),
    ("Conv", {"auto_pad": "VALID", "strides": [3]}, [WAVE, numbers(4, 3, 2)]),
    ("Conv", {}, [VOLUME, numbers(3, 2, 2, 3, 1)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, [IMAGE, numbers(4, 5, 3, 3), numbers(5)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [0, 1, 1, 2]}, [IMAGE, numbers(4, 5, 3, 3), numbers(5)]),
    (
        "ConvTranspose",
        {"group": 2, "output_padding": [1], "strides": [2]},
        [numbers(2, 4, 7), numbers(4, 3, 3)],
    ),
    ("ConvTranspose", {"dilations": [2, 1]}, [IMAGE, numbers(4, 2, 2, 3)]),
    ("ConvTranspose", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [IMAGE, numbers(4, 2, 3, 3)]),
    (
        "ConvTranspose",
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        [IMAGE, numbers(4, 2, 3, 3), numbers(2)],
    ),
    ("ConvTranspose", {"strides": [2, 2], "output_shape": [14, 15]}, [IMAGE, numbers(4, 2, 3, 3)]),
    ("ConvTranspose", {"strides": [1, 2, 2], "pads": [0, 0, 1, 1, 0, 0]}, [VOLUME, numbers(2, 2, 2, 2, 2)]),
]

WINDOWS = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]},
    {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"kernel_shape": [4, 3], "auto_pad": "VALID", "strides": [2, 1]},
    {"kernel_shape": [2, 2], "dilations": [2, 3]},
]
POOLS = [
    *(("MaxPool", windows, [IMAGE - 5]) for windows in WINDOWS),
    *(("AveragePool", windows, [IMAGE]) for windows in WINDOWS),
    *(("AveragePool", windows | {"count_include_pad": 1}, [IMAGE]) for windows in WINDOWS),
    *(("LpPool", windows, [IMAGE]) for windows in WINDOWS if "ceil_mode" not in windows),
    ("LpPool", {"kernel_shape": [3], "p": 3}, [WAVE]),
    ("AveragePool", {"kernel_shape": [3]}, [WAVE]),
    ("MaxPool", {"kernel_shape": [2, 2, 3]}, [VOLUME]),
    *((name, {}, [IMAGE]) for name in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")),
    *((name, {}, [WAVE]) for name in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")),
]

MOVES = [
    ("Concat", {"axis": 1}, [numbers(2, 3), numbers(2, 1)]),
    ("Concat", {"axis": -2}, [ints(1, 2)[:, None], ints(3)[:, None]]),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [numbers(2, 12, 3, 5)]),
    ("DepthToSpace", {"blocksize": 2}, [numbers(2, 12, 3, 5)]),
    ("Expand", {}, [numbers(1, 3), ints(2, 1)]),
    ("Expand", {}, [np.array(3.0, F), ints()]),
    ("Expand", {}, [numbers(3, 1), ints(2, 1, 4)]),
    ("Flatten", {}, [IMAGE]),
    ("Flatten", {"axis": -1}, [IMAGE]),
    ("Flatten", {"axis": 0}, [WAVE]),
    ("Pad", {}, [IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 0), F(1.5)]),
    ("Pad", {}, [IMAGE, ints(0, 0, -1, 2, 0, 1, -3, 0)]),
    ("Pad", {}, [ints(3, 4), ints(1, 2), np.array(7)]),
    *(
        ("Pad", {"mode": mode}, [IMAGE, ints(1, 2, 6, 1), None, ints(2, 3)])
        for mode in ("reflect", "edge", "wrap")
    ),
    *(
        ("Pad", {"mode": mode}, [IMAGE, ints(1, 2, 1, 2, 0, 3, 1, 0)])
        for mode in ("reflect", "edge", "wrap")[:2]
    ),
    ("Pad", {"mode": "reflect"}, [numbers(5), ints(4, 2)]),
    ("Reshape", {}, [IMAGE, ints(0, -1, 7)]),
    ("Reshape", {"allowzero": 1}, [numbers(0, 3), ints(3, 0)]),
    ("Reshape", {}, [numbers(1), ints()]),
    ("Reshape", {}, [np.array(3.0, F), ints(-1)]),
    ("ReverseSequence", {}, [numbers(4, 3, 2), ints(1, 4, 2)]),
    ("ReverseSequence", {"time_axis": 1, "batch_axis": 0}, [numbers(3, 4), ints(3, 1, 4)]),
    ("Slice", {}, [IMAGE, ints(1, 0), ints(3, 2**62), ints(1, -1), ints(1, 2)]),
    ("Slice", {}, [numbers(9), ints(-1), ints(-(2**62)), ints(0), ints(-2)]),
    ("Slice", {}, [numbers(9, 2), ints(5), ints(2)]),
    ("Slice", {}, [numbers(9, 2), ints(-4), ints(-1)]),
    ("SpaceToDepth", {"blocksize": 2}, [numbers(2, 3, 4, 6)]),
    ("Split", {"axis": 1}, [IMAGE, ints(1, 3)]),
    ("Split", {"axis": -1, "num_outputs": 2}, [IMAGE]),
    ("Squeeze", {}, [numbers(1, 3, 1), ints(-1)]),
    ("Squeeze", {}, [numbers(1, 3, 1)]),
    ("Tile", {}, [numbers(2, 3), ints(2, 3)]),
    ("Tile", {}, [np.array(3.0, F), ints()]),
    ("Transpose", {"perm": [0, 2, 1]}, [numbers(2, 3, 4)]),
    ("Transpose", {}, [numbers(2, 3, 4)]),
    ("Unsqueeze", {}, [numbers(3), ints(-1, 0)]),
    ("Unsqueeze", {}, [numbers(3), np.array(1)]),
]

PICKS = [
    ("Compress", {"axis": 1}, [numbers(2, 3), np.array([True, False, True])]),
    ("Compress", {}, [numbers(2, 3), np.array([False, True, True])]),
    ("Gather", {}, [numbers(5, 3), ints(0, -1)]),
    ("Gather", {}, [numbers(5), np.array(-1)]),
    ("Gather", {"axis": 1}, [IMAGE, np.array(2)]),
    ("Gather", {"axis": -1}, [WAVE, ints(1, 0, 5, 8).reshape(2, 2)]),
    ("GatherElements", {"axis": 1}, [numbers(2, 3), ints(0, -1, 1, 1).reshape(2, 2)]),
    ("GatherND", {}, [numbers(3, 4, 2), ints(0, 1, -1, 2).reshape(2, 2)]),
    ("GatherND", {}, [numbers(3, 4), ints(0, 2).reshape(2, 1)]),
    ("GatherND", {}, [numbers(3, 4), ints(0, 2)]),
    ("GatherND", {"batch_dims": 1}, [numbers(2, 3, 4), ints(1, -1).reshape(2, 1)]),
    ("GatherND", {"batch_dims": 2}, [numbers(2, 2, 3), ints(1, 0, 2, 2).reshape(2, 2, 1)]),
    ("NonZero", {}, [np.array([[0, 1], [2, 0]], F)]),
    ("OneHot", {}, [ints(0, 2, -1, 5), np.array(3), np.array([0.5, 2], F)]),
    ("OneHot", {"axis": 0}, [ints(0, 2).reshape(1, 2), np.array(3), np.array([0, 1], F)]),
    *(
        (
            "ScatterElements",
            {"axis": 1, "reduction": reduction},
            [numbers(2, 3), ints(0, 0, -1, 1).reshape(2, 2), numbers(2, 2)],
        )
        for reduction in ("add", "mul", "max", "min")
    ),
    ("ScatterElements", {}, [numbers(3, 3), ints(1, 0, 2).reshape(1, 3), numbers(1, 3)]),
    ("ScatterND", {}, [numbers(4, 3), ints(1, -1).reshape(2, 1), numbers(2, 3)]),
    ("ScatterND", {}, [numbers(2, 2, 3), ints(0, 1, 1, 0).reshape(2, 2), numbers(2, 3)]),
    *(
        (
            "ScatterND",
            {"reduction": reduction},
            [numbers(4, 3), ints(1, 1, -1).reshape(3, 1), numbers(3, 3)],
        )
        for reduction in ("add", "mul", "max", "min")
    ),
    ("Trilu", {}, [numbers(3, 4)]),
    ("Trilu", {"upper": 0}, [numbers(2, 3, 3), np.array(-1)]),
    ("Trilu", {}, [numbers(3, 4), np.array(1)]),
]

CONSTANTS = [
    *(
        ("Cast", {"to": to}, [numbers(3)])
        for to in (TensorProto.INT64, TensorProto.FLOAT16, TensorProto.BOOL)
    ),
    ("Cast", {"to": TensorProto.FLOAT}, [BOOLS]),
    ("CastLike", {}, [ints(1, 2), numbers(1)]),
    ("Constant", {"value": onnx.numpy_helper.from_array(numbers(2, 3))}, []),
    ("Constant", {"value_float": 0.5}, []),
    ("Constant", {"value_ints": [1, 2]}, []),
    ("ConstantOfShape", {}, [ints(2, 3)]),
    ("ConstantOfShape", {}, [ints()]),
    ("ConstantOfShape", {"value": onnx.numpy_helper.from_array(np.array([7]))}, [ints(2)]),
    ("EyeLike", {"k": 1}, [numbers(2, 3)]),
    ("EyeLike", {"dtype": TensorProto.INT64, "k": -1}, [numbers(3, 3)]),
    ("Range", {}, [np.array(2), np.array(9), np.array(3)]),
    ("Range", {}, [F(1), F(-1), F(-0.5)]),
    ("Shape", {"start": 1, "end": -1}, [IMAGE]),
    ("Shape", {}, [IMAGE]),
    ("Size", {}, [IMAGE]),
]

# Weights [directions, gates, inputs], recurrent weights, biases, lengths, initial states.
RECURRENT = [
    *(
        (
            name,
            {"hidden_size": 4, "direction": direction},
            [
                SEQUENCE,
                numbers(count, gates * 4, 3),
                numbers(count, gates * 4, 4),
                numbers(count, 2 * gates * 4),
                lengths,
                *[numbers(count, 2, 4)] * states,
            ],
        )
        for name, gates, states in (("RNN", 1, 1), ("GRU", 3, 1), ("LSTM", 4, 2))
        for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
        for lengths in (None, np.array([5, 3], np.int32))
    ),
    *(
        (name, {"hidden_size": 4}, [SEQUENCE, numbers(1, gates * 4, 3), numbers(1, gates * 4, 4)])
        for name, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
    ),
    (
        "GRU",
        {"hidden_size": 4, "linear_before_reset": 1},
        [SEQUENCE, numbers(1, 12, 3), numbers(1, 12, 4), numbers(1, 24)],
    ),
    (
        "GRU",
        {"hidden_size": 4, "activations": ["Softsign", "Relu"], "clip": 1.5},
        [SEQUENCE, numbers(1, 12, 3), numbers(1, 12, 4), numbers(1, 24)],
    ),
    (
        "LSTM",
        {"hidden_size": 4, "clip": 1.0, "activations": ["Sigmoid", "Tanh", "Relu"]},
        [SEQUENCE, numbers(1, 16, 3), numbers(1, 16, 4), numbers(1, 32), None, None, None, numbers(1, 12)],
    ),
    (
        "LSTM",
        {"hidden_size": 4, "input_forget": 1},
        [SEQUENCE, numbers(1, 16, 3), numbers(1, 16, 4), numbers(1, 32)],
    ),
]

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
RESIZES = [
    *(
        (
            "Resize",
            {"mode": mode, "coordinate_transformation_mode": coordinates},
            [IMAGE, None, scales, sizes],
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in COORDINATES
        for scales, sizes in ((None, ints(2, 4, 5, 12)), (np.array([1, 1, 2.5, 0.7], F), None))
    ),
    *(
        (
            "Resize",
            {"mode": "nearest", "nearest_mode": rounding, "coordinate_transformation_mode": "asymmetric"},
            [numbers(1, 2, 5, 6), None, np.array([1, 1, 1.6, 2], F)],
        )
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        (
            "Resize",
            {"mode": mode, "antialias": 1, "exclude_outside": outside},
            [IMAGE, None, None, ints(2, 4, 3, 4)],
        )
        for mode in ("linear", "cubic")
        for outside in (0, 1)
    ),
    (
        "Resize",
        {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
        [IMAGE, None, None, ints(2, 4, 9, 4)],
    ),
    ("Resize", {"mode": "linear", "axes": [2, 3]}, [IMAGE, None, None, ints(9, 5)]),
    ("Resize", {"mode": "linear"}, [WAVE, None, None, ints(2, 3, 4)]),
    ("Resize", {"mode": "linear"}, [VOLUME, None, np.array([1, 1, 2, 1, 2], F)]),
    *(
        (
            "Resize",
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy},
            [IMAGE, None, None, ints(5, 10)],
        )
        for policy in ("not_larger", "not_smaller")
    ),
    (
        "Resize",
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 3.0,
        },
        [IMAGE, np.array([0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2], F), None, ints(2, 4, 5, 6)],
    ),
    *(
        (
            "GridSample",
            {"mode": mode, "padding_mode": padding, "align_corners": corners},
            [IMAGE, numbers(2, 3, 5, 2, low=-1.2, high=1.2)],
        )
        for mode in ("linear", "nearest", "cubic")
        for padding, corners in (("zeros", 0), ("border", 1), ("reflection", 0))
    ),
]

SIGNALS = [
    ("DFT", {}, [numbers(2, 8, 1)]),
    ("DFT", {"onesided": 1}, [numbers(2, 8, 1), np.array(10)]),
    ("DFT", {"inverse": 1}, [numbers(2, 8, 2)]),
    ("DFT", {}, [numbers(2, 4, 8, 1), None, np.array(1)]),
    ("STFT", {}, [numbers(2, 16, 1), np.array(3), numbers(8)]),
    ("STFT", {"onesided": 0}, [numbers(2, 16, 1), np.array(4), None, np.array(8)]),
    *((name, {}, [np.array(8)]) for name in ("BlackmanWindow", "HammingWindow", "HannWindow")),
    ("HannWindow", {"periodic": 0}, [np.array(8)]),
]

CASES = [
    *ELEMENTWISE,
    *REDUCTIONS,
    *PRODUCTS,
    *NORMS,
    *CONVOLUTIONS,
    *POOLS,
    *MOVES,
    *PICKS,
    *CONSTANTS,
    *RECURRENT,
    *RESIZES,
    *SIGNALS,
]
QUERIES = numbers(2, 4, 5, 8), numbers(2, 2, 6, 8), numbers(2, 2, 6, 3)
FLAT = numbers(2, 5, 32), numbers(2, 6, 16), numbers(2, 6, 6)
# Cases of other opsets: (opset, operator, attributes, inputs).
OF_OPSETS = [
    (18, "ReduceMean", {}, [IMAGE, ints(2, 3)]),
    (18, "GroupNormalization", {"num_groups": 2}, [IMAGE, numbers(2), numbers(2)]),
    (21, "GroupNormalization", {"num_groups": 2}, [IMAGE, numbers(4), numbers(4)]),
    (18, "Resize", {"mode": "linear", "axes": [3]}, [IMAGE, None, np.array([1.5], F)]),
    (19, "DFT", {"axis": 2}, [numbers(2, 4, 8, 1)]),
    (18, "GridSample", {"mode": "bilinear"}, [IMAGE, numbers(2, 3, 5, 2, low=-1, high=1)]),
    (18, "Pad", {"mode": "edge"}, [WAVE, ints(2, 1), None, ints(-1)]),
    (23, "Attention", {}, QUERIES),
    (23, "Attention", {"scale": 0.3, "softcap": 2.0}, [*QUERIES, numbers(5, 6)]),
    (23, "Attention", {}, [*QUERIES, np.tri(5, 6) > 0]),
    (23, "Attention", {"is_causal": 1}, [numbers(2, 4, 5, 8), numbers(2, 4, 5, 8), numbers(2, 4, 5, 8)]),
    (23, "Attention", {"q_num_heads": 4, "kv_num_heads": 2}, FLAT),
    (23, "RMSNormalization", {"epsilon": 0.01}, [numbers(2, 3, 4), numbers(4)]),
    (23, "RMSNormalization", {"axis": 1}, [numbers(2, 3, 4), numbers(3, 4)]),
    (23, "RotaryEmbedding", {}, [numbers(2, 3, 5, 8), numbers(2, 5, 4), numbers(2, 5, 4)]),
    (
        23,
        "RotaryEmbedding",
        {"interleaved": 1, "num_heads": 3},
        [numbers(2, 5, 24), numbers(9, 4), numbers(9, 4), ints(*range(5), *range(3, 8)).reshape(2, 5)],
    ),
    (
        23,
        "RotaryEmbedding",
        {"rotary_embedding_dim": 4},
        [numbers(2, 3, 5, 8), numbers(2, 5, 2), numbers(2, 5, 2)],
    ),
    (23, "Reshape", {}, [IMAGE, ints(0, -1)]),
]
ALL = [(20, *case) for case in CASES] + OF_OPSETS
# Inputs that are settings: they have no gradient.
SETTINGS = {"BatchNormalization": [3, 4], "Pad": [2], "Pow": [1], "Resize": [1, 2]}
# Their results are steps, indices, sizes or constants, or gradients do not exist everywhere.
WITHOUT_GRADIENT = {
    "ArgMax",
    "ArgMin",
    "Cast",
    "CastLike",
    "Ceil",
    "EyeLike",
    "Floor",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Mod",
    "NonZero",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Range",
}


def node_of(operator, attributes, inputs):
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    count = {"Split": 2, "TopK": 2, "RNN": 2, "GRU": 2, "LSTM": 3}.get(operator, 1)
    return helper.make_node(operator, names, [f"y{index}" for index in range(count)], **attributes)


def run_by_onnx_runtime(node, inputs, opset):
    given = [(f"x{i}", np.asarray(value)) for i, value in enumerate(inputs) if value is not None]
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind(value.dtype), value.shape) for name, value in given],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(given))


def run_by_the_table(node, inputs):
    made = OPERATORS[node.op_type](attributes_of(node), *inputs)
    return (made,) if isinstance(made, torch.Tensor) else made


def as_tensors(inputs):
    return [None if value is None else torch.from_numpy(np.array(value)) for value in inputs]


def is_float(value):
    return value is not None and value.is_floating_point()


def is_compared(operator):
    return operator not in WITHOUT_GRADIENT and not operator.endswith("Window")


def test_every_operator_has_a_case():
    assert {case[1] for case in ALL} == set(OPERATORS)


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case[1]} {case[2] or ''}")
def test_the_result_equals_onnx_runtimes(case):
    opset, *call = case
    node = node_of(*call)
    assert is_known(node)
    results = run_by_the_table(node, as_tensors(call[2]))
    wanted = run_by_onnx_runtime(node, call[2], opset)
    assert len(results) == len(wanted)
    for result, value in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result.numpy(), value, rtol=1e-5, atol=3e-6)
        assert result.numpy().dtype == value.dtype


@pytest.mark.parametrize(
    "case", [case for case in ALL if is_compared(case[1])], ids=lambda case: f"{case[1]} {case[2] or ''}"
)
def test_the_gradient_is_the_slope_of_the_result(case):
    """Along a random direction, in float64: (f(x + h d) - f(x - h d)) / 2h = gradient * d."""
    _, *call = case
    node = node_of(*call)
    given = [x.double() if is_float(x) else x for x in as_tensors(call[2])]
    varied = [is_float(x) and i not in SETTINGS.get(call[0], []) for i, x in enumerate(given)]
    generator = torch.Generator().manual_seed(0)

    def draw(like):
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5

    def results(step):
        moved = [x + step * d if d is not None else x for x, d in zip(given, directions, strict=True)]
        made = [y for y in run_by_the_table(node, moved) if y.is_floating_point()]
        return sum((y.double() * weight).sum() for y, weight in zip(made, weights, strict=True))

    inputs = [x.requires_grad_() for x, varies in zip(given, varied, strict=True) if varies]
    directions = [draw(x) if varies else None for x, varies in zip(given, varied, strict=True)]
    made = [y for y in run_by_the_table(node, given) if y.is_floating_point()]
    if not inputs or not sum(y.numel() for y in made):
        pytest.skip("nothing has a gradient")
    weights = [draw(y) for y in made]
    gradients = torch.autograd.grad(results(0.0), inputs, allow_unused=True)
    along = [d for d in directions if d is not None]
    slope = sum((g * d).sum() for g, d in zip(gradients, along, strict=True) if g is not None)
    with torch.no_grad():
        wanted = (results(1e-6) - results(-1e-6)) / 2e-6
    assert abs(wanted) > 1e-6
    torch.testing.assert_close(torch.as_tensor(slope), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Loop", {}),
        ("If", {}),
        ("RandomNormal", {"shape": [3]}),
        ("Add", {"domain": "com.microsoft"}),
        ("BatchNormalization", {"training_mode": 1}),
        ("Cast", {"to": TensorProto.STRING}),
        ("GRU", {"layout": 1}),
        ("LSTM", {"activations": ["Affine", "Tanh", "Tanh"]}),
        ("Attention", {"qk_matmul_output_mode": 2}),
    ],
)
def test_unsupported_nodes_are_not_known(operator, attributes):
    assert not is_known(helper.make_node(operator, ["x"], ["y"], **attributes))


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs"),
    [
        ("MaxPool", ["x"], ["y", "indices"]),
        ("LayerNormalization", ["x", "scale"], ["y", "mean"]),
        ("Attention", ["q", "k", "v", "", "past_key", "past_value"], ["y"]),
    ],
)
def test_other_inputs_and_outputs_are_not_known(operator, inputs, outputs):
    assert not is_known(helper.make_node(operator, inputs, outputs))
