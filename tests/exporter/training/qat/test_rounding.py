"""Rounding in PyTorch: the same values as ONNX Runtime, and the gradients of LSQ."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp

from exporter.training.qat.rounding import (
    Rounded,
    activation_qparams,
    round_activation,
    round_bias,
    round_weight,
)

UNSIGNED, SIGNED = (0, 255), (-128, 127)
numbers = st.floats(-1e4, 1e4, width=32) | st.just(0.0) | st.floats(-(2.0**-126), 2.0**-126, width=32)


@given(numbers, numbers, st.sampled_from([UNSIGNED, SIGNED]))
def test_qparams_equal_those_of_onnx_runtimes_quantizer(one, other, limits):
    low, high = np.float32(min(one, other)), np.float32(max(one, other))
    dtype = np.uint8 if limits == UNSIGNED else np.int8
    zero_point, scale = compute_scale_zp(low, high, *(np.array(limit, dtype) for limit in limits))
    found = activation_qparams(torch.tensor(low), torch.tensor(high), limits)
    assert [v.item() for v in found] == [float(scale), float(zero_point)]


@pytest.mark.parametrize("limits", [UNSIGNED, SIGNED])
def test_values_equal_those_of_onnx_runtime(limits):
    low, high = torch.tensor(-0.7), torch.tensor(1.9)
    scale, zero_point = activation_qparams(low, high, limits)
    generator = np.random.default_rng(0)
    ties = (np.arange(-200, 300) + 0.5).astype(np.float32) * scale.numpy()
    values = np.concatenate([generator.normal(0, 1.5, 4000).astype(np.float32), ties])
    dtype = np.uint8 if limits == UNSIGNED else np.int8
    qparams = {"scale": scale.numpy(), "zero_point": zero_point.numpy().astype(dtype)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", *qparams], ["q"]),
            helper.make_node("DequantizeLinear", ["q", *qparams], ["y"]),
        ],
        "rounding",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for name, v in {"x": values, **qparams}.items()
        ],
        [helper.make_tensor_value_info("y", 1, values.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": values, **qparams})
    assert np.array_equal(
        round_activation(torch.from_numpy(values), low, high, limits).real().numpy(), wanted
    )


def test_sums_are_rounded_as_onnx_runtimes_kernels_do():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (500, 24)).astype(np.uint8)
    weights = generator.integers(-60, 61, (24, 40)).astype(np.int8)  # small enough to avoid saturation
    x_scale, w_scale = np.float32(0.0123), generator.uniform(0.001, 0.002, 40).astype(np.float32)
    low, high = torch.tensor(-1.7), torch.tensor(2.9)
    scale, zero_point = (v.numpy() for v in activation_qparams(low, high, UNSIGNED))
    constants = {
        "xs": x_scale,
        "xz": np.uint8(3),
        "w": weights,
        "ws": w_scale,
        "wz": np.zeros(40, np.int8),
        "ys": scale,
        "yz": zero_point.astype(np.uint8),
    }
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", ["x", *constants], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", 2, x.shape)],
        [helper.make_tensor_value_info("y", 2, [500, 40])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    sums = torch.from_numpy((x.astype(np.float32) - 3) @ weights.astype(np.float32))
    rounded = round_activation(
        Rounded(sums, torch.from_numpy(x_scale * w_scale), axis=1), low, high, UNSIGNED
    )
    assert np.array_equal(rounded.levels.numpy() + zero_point, wanted)


def test_integers_and_real_numbers_have_the_same_gradients():
    low, high = (torch.tensor(end, requires_grad=True) for end in (-1.5, 2.5))
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(-900, 900, (4, 3, 50), generator=generator).float().requires_grad_()
    scale = torch.tensor([0.001, 0.002, 0.004])
    weights = torch.rand(sums.shape, generator=generator)
    found = []
    for values in (Rounded(sums, scale, axis=1), Rounded(sums, scale, axis=1).real()):
        (round_activation(values, low, high, UNSIGNED, factor=1.25).real() * weights).sum().backward()
        found.append([tensor.grad for tensor in (sums, low, high)])
        for tensor in (sums, low, high):
            tensor.grad = None
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_a_bias_is_rounded_to_the_levels_of_the_sums():
    bias = torch.tensor([1.0, -0.3, 0.0]).requires_grad_()
    scale = torch.tensor([1e-3, 0.2, 0.5])
    levels = round_bias(bias, scale)
    assert torch.equal(levels.detach(), torch.tensor([1000.0, -2.0, 0.0]))
    levels.sum().backward()
    torch.testing.assert_close(bias.grad, 1 / scale)


def test_gradients_equal_those_of_lsq():
    # Both ends are on the grid. Otherwise the zero point is rounded, which the formula does not include.
    low, high = (torch.tensor(end, requires_grad=True) for end in (-64.0, 191.0))
    values = torch.linspace(-100, 300, 320).reshape(2, 160).requires_grad_()
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    (round_activation(values, low, high, UNSIGNED).real() * weights).sum().backward()
    found = [tensor.grad.clone() for tensor in (values, low, high)]
    for tensor in (values, low, high):
        tensor.grad = None
    # LSQ+ in scale and offset, with PyTorch's gradients and the straight-through estimator.
    scale = (high - low) / 255
    ratio = values / scale - low / scale
    levels = torch.clamp(ratio + (torch.round(ratio) - ratio).detach(), 0, 255)
    ((levels * scale + low) * weights).sum().backward()
    factor = 1 / math.sqrt(160 * 255)
    torch.testing.assert_close(found[0], values.grad)
    torch.testing.assert_close(found[1], factor * low.grad)
    torch.testing.assert_close(found[2], factor * high.grad)
    assert found[1] != 0
    assert found[2] != 0


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weights_are_rounded_to_the_levels_of_their_channel(axis):
    weight = torch.randn((4, 3, 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight.data[2, 0, 1] = 0.0
    limits = torch.tensor(127.0) if axis is None else torch.tensor([127.0, 63.5, 127.0, 127.0])[: 4 - axis]
    rounded = round_weight(weight, axis, limits.double()).real()
    rounded.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * rounded.detach())  # the gradient without rounding
    largest = weight.abs().amax(dim=[d for d in range(3) if d != axis] if axis is not None else None)
    scale = (largest / limits).detach()
    shape = [-1 if d == axis else 1 for d in range(3)] if axis is not None else []
    levels = (rounded / scale.view(shape)).detach()
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert ((rounded - weight).abs() <= scale.view(shape) * 0.5001).all()
    assert rounded[2, 0, 1] == 0


def test_a_channel_of_zeros_stays_zero():
    rounded = round_weight(torch.zeros(2, 3), 0, torch.tensor([127.0, 127.0]).double())
    assert torch.equal(rounded.real(), torch.zeros(2, 3))
