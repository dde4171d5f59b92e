"""Every operator of the table computes the same results as ONNX Runtime."""

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


def numbers(*shape, low=-2.0, high=2.0):
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(F)


def ints(*values):
    return np.array(values, np.int64)


IMAGE = numbers(2, 4, 7, 7)
# (operator, attributes, inputs)
CASES = [
    ("Abs", {}, [numbers(5)]),
    ("Add", {}, [numbers(2, 3), numbers(3)]),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [IMAGE]),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}, [IMAGE]),
    ("AveragePool", {"kernel_shape": [3]}, [numbers(2, 3, 9)]),
    (
        "BatchNormalization",
        {"epsilon": 0.01},
        [IMAGE, numbers(4), numbers(4), numbers(4), numbers(4, low=0.5)],
    ),
    ("Cast", {"to": TensorProto.INT64}, [numbers(3)]),
    ("Clip", {}, [numbers(9), F(-0.5), F(1)]),
    ("Clip", {}, [numbers(9), None, F(1)]),
    ("Concat", {"axis": 1}, [numbers(2, 3), numbers(2, 1)]),
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [IMAGE, numbers(5, 4, 3, 3), numbers(5)]),
    ("Conv", {"pads": [0, 1, 1, 2], "group": 4}, [IMAGE, numbers(8, 1, 3, 3)]),
    ("Conv", {"dilations": [2]}, [numbers(2, 3, 9), numbers(4, 3, 3)]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, [IMAGE, numbers(4, 5, 3, 3), numbers(5)]),
    (
        "ConvTranspose",
        {"group": 2, "output_padding": [1], "strides": [2]},
        [numbers(2, 4, 7), numbers(4, 3, 3)],
    ),
    ("ConvTranspose", {"dilations": [2, 1]}, [IMAGE, numbers(4, 2, 2, 3)]),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [numbers(2, 12, 3, 5)]),
    ("DepthToSpace", {"blocksize": 2}, [numbers(2, 12, 3, 5)]),
    ("Div", {}, [numbers(3), numbers(3, low=1)]),
    ("Div", {}, [ints(7, 9), ints(2)]),
    ("Elu", {"alpha": 0.5}, [numbers(5)]),
    ("Erf", {}, [numbers(5)]),
    ("Exp", {}, [numbers(5)]),
    ("Expand", {}, [numbers(1, 3), ints(2, 1)]),
    ("Flatten", {}, [IMAGE]),
    ("Flatten", {"axis": -1}, [IMAGE]),
    ("Gather", {}, [numbers(5, 3), ints(0, -1)]),
    ("Gather", {"axis": 1}, [IMAGE, np.array(2)]),
    ("Gelu", {}, [numbers(5)]),
    ("Gelu", {"approximate": "tanh"}, [numbers(5)]),
    ("Gemm", {"transB": 1}, [numbers(2, 3), numbers(4, 3), numbers(4)]),
    ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [numbers(3, 2), numbers(3, 4), numbers(4)]),
    ("GlobalAveragePool", {}, [IMAGE]),
    ("HardSigmoid", {"alpha": 1 / 6}, [numbers(9, low=-4, high=4)]),
    ("HardSwish", {}, [numbers(9, low=-4, high=4)]),
    ("Identity", {}, [numbers(3)]),
    ("LayerNormalization", {"epsilon": 0.01}, [numbers(2, 3, 4), numbers(4), numbers(4)]),
    ("LeakyRelu", {"alpha": 0.3}, [numbers(5)]),
    ("MatMul", {}, [numbers(2, 3, 4), numbers(4, 5)]),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [IMAGE]),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [IMAGE]),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}, [IMAGE - 5]),
    ("Log", {}, [numbers(5, low=0.5)]),
    ("Max", {}, [numbers(5), F(0.5), numbers(5, low=0)]),
    ("Max", {}, [numbers(5)]),
    ("Min", {}, [numbers(5), F(0.5)]),
    ("Mul", {}, [IMAGE, numbers(2, 4, 1, 1)]),
    ("Neg", {}, [numbers(3)]),
    ("Pad", {}, [IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 0), F(1.5)]),
    ("Pad", {"mode": "reflect"}, [IMAGE, ints(1, 2, 1, 1), None, ints(2, 3)]),
    ("Pad", {"mode": "edge"}, [IMAGE, ints(0, 0, 1, 2, 0, 0, 1, 0)]),
    ("Pow", {}, [numbers(5, low=0.5), F(1.5)]),
    ("ReduceMean", {}, [IMAGE, ints(2, 3)]),
    ("ReduceMean", {"keepdims": 0}, [numbers(2, 3)]),
    ("Relu", {}, [numbers(5)]),
    ("Reshape", {}, [IMAGE, ints(0, -1, 7)]),
    ("Resize", {"mode": "linear"}, [IMAGE, None, None, ints(2, 4, 5, 5)]),
    ("Resize", {"mode": "linear"}, [IMAGE, None, None, ints(2, 4, 9, 16)]),
    ("Resize", {"mode": "linear"}, [numbers(2, 3, 9), None, None, ints(2, 3, 4)]),
    ("Shape", {"start": 1, "end": -1}, [IMAGE]),
    ("Sigmoid", {}, [numbers(5)]),
    ("Slice", {}, [IMAGE, ints(1, 0), ints(3, 2**62), ints(1, -1), ints(1, 2)]),
    ("Slice", {}, [numbers(9), ints(-1), ints(-(2**62)), ints(0), ints(-2)]),
    ("Slice", {}, [numbers(9, 2), ints(5), ints(2)]),
    ("Softmax", {"axis": 1}, [numbers(2, 3, 4)]),
    ("Softplus", {}, [numbers(5)]),
    ("Split", {"axis": 1}, [IMAGE, ints(1, 3)]),
    ("Split", {"axis": -1, "num_outputs": 2}, [IMAGE]),
    ("Sqrt", {}, [numbers(5, low=0)]),
    ("Squeeze", {}, [numbers(1, 3, 1), ints(-1)]),
    ("Squeeze", {}, [numbers(1, 3, 1)]),
    ("Sub", {}, [numbers(3), numbers(1)]),
    ("Tanh", {}, [numbers(5)]),
    ("Transpose", {"perm": [0, 2, 1]}, [numbers(2, 3, 4)]),
    ("Transpose", {}, [numbers(2, 3, 4)]),
    ("Unsqueeze", {}, [numbers(3), ints(-1, 0)]),
    ("Where", {}, [np.array([True, False]), numbers(2), numbers(1)]),
]


def node_of(operator, attributes, inputs):
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    count = 2 if operator == "Split" else 1
    return helper.make_node(operator, names, [f"y{index}" for index in range(count)], **attributes)


def run_by_onnx_runtime(node, inputs):
    given = [(f"x{i}", np.asarray(value)) for i, value in enumerate(inputs) if value is not None]
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind(value.dtype), value.shape) for name, value in given],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(given))


def test_every_operator_has_a_case():
    assert {case[0] for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1] or ''}")
def test_the_result_equals_onnx_runtimes(case):
    operator, _, inputs = case
    node = node_of(*case)
    assert is_known(node)
    given = [None if value is None else torch.from_numpy(np.asarray(value)) for value in inputs]
    made = OPERATORS[operator](attributes_of(node), *given)
    results = [made] if isinstance(made, torch.Tensor) else made
    wanted = run_by_onnx_runtime(node, inputs)
    assert len(results) == len(wanted)
    for result, value in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result.numpy(), value, rtol=1e-5, atol=1e-6)
        assert result.numpy().dtype == value.dtype


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Loop", {}),
        ("Conv", {"auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", {"pads": [0, 0, 1, 1]}),
        ("ConvTranspose", {"output_shape": [9, 9]}),
        ("MaxPool", {"kernel_shape": [2, 2], "storage_order": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("Add", {"domain": "com.microsoft"}),
    ],
)
def test_unsupported_nodes_are_not_known(operator, attributes):
    assert not is_known(helper.make_node(operator, ["x"], ["y"], **attributes))


@pytest.mark.parametrize(
    ("change", "inputs"),
    [
        ({"mode": "nearest"}, None),
        ({"antialias": 1}, None),
        ({"axes": [2, 3]}, None),
        ({"coordinate_transformation_mode": "align_corners"}, None),
        ({"keep_aspect_ratio_policy": "not_larger"}, None),
        ({}, ["x", "", "scales"]),
    ],
)
def test_only_a_plain_resize_to_a_size_is_known(change, inputs):
    assert is_known(helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear"))
    node = helper.make_node(
        "Resize", inputs or ["x", "", "", "sizes"], ["y"], **{"mode": "linear"} | change
    )
    assert not is_known(node)
