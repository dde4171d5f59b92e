"""Rounding in PyTorch: ONNX Runtime's numbers, and the gradients of LSQ."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.quantization.quant_utils import compute_scale_zp

from exporter.qat.rounding import activation_qparams, fake_quantize, round_weight

UNSIGNED, SIGNED = (0, 255), (-128, 127)
numbers = st.floats(-1e4, 1e4, width=32) | st.just(0.0) | st.floats(-(2.0**-126), 2.0**-126, width=32)


@given(numbers, numbers, st.sampled_from([UNSIGNED, SIGNED]))
def test_qparams_are_those_of_onnx_runtimes_quantizer(one, other, limits):
    low, high = np.float32(min(one, other)), np.float32(max(one, other))
    dtype = np.uint8 if limits == UNSIGNED else np.int8
    zero_point, scale = compute_scale_zp(low, high, *(np.array(limit, dtype) for limit in limits))
    found = activation_qparams(torch.tensor(low), torch.tensor(high), limits)
    assert [v.item() for v in found] == [float(scale), float(zero_point)]


@pytest.mark.parametrize("limits", [UNSIGNED, SIGNED])
def test_values_are_those_of_onnx_runtime(limits):
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
    assert np.array_equal(fake_quantize(torch.from_numpy(values), low, high, limits).numpy(), wanted)


def test_gradients_are_those_of_lsq():
    # Ends on the grid: else the zero point is rounded, which the formula for the ends leaves out.
    low, high = (torch.tensor(end, requires_grad=True) for end in (-64.0, 191.0))
    values = torch.linspace(-100, 300, 320).reshape(2, 160).requires_grad_()
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    (fake_quantize(values, low, high, UNSIGNED) * weights).sum().backward()
    found = [tensor.grad.clone() for tensor in (values, low, high)]
    for tensor in (values, low, high):
        tensor.grad = None
    # LSQ+ in scale and offset, by PyTorch's own gradients and the straight-through estimator.
    scale = (high - low) / 255
    ratio = values / scale - low / scale
    steps = torch.clamp(ratio + (torch.round(ratio) - ratio).detach(), 0, 255)
    ((steps * scale + low) * weights).sum().backward()
    factor = 1 / math.sqrt(160 * 255)
    torch.testing.assert_close(found[0], values.grad)
    torch.testing.assert_close(found[1], factor * low.grad)
    torch.testing.assert_close(found[2], factor * high.grad)
    assert found[1] != 0
    assert found[2] != 0


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_weights_take_the_steps_of_their_channel(axis):
    weight = torch.randn((4, 3, 2), generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight.data[2, 0, 1] = 0.0
    limits = torch.tensor(127.0) if axis is None else torch.tensor([127.0, 63.5, 127.0, 127.0])[: 4 - axis]
    rounded = round_weight(weight, axis, limits.double())
    rounded.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * rounded.detach())  # as if nothing were rounded
    largest = weight.abs().amax(dim=[d for d in range(3) if d != axis] if axis is not None else None)
    scale = (largest / limits).detach()
    shape = [-1 if d == axis else 1 for d in range(3)] if axis is not None else []
    steps = (rounded / scale.view(shape)).detach()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert ((rounded - weight).abs() <= scale.view(shape) * 0.5001).all()
    assert rounded[2, 0, 1] == 0


def test_a_channel_of_zeros_stays_zero():
    rounded = round_weight(torch.zeros(2, 3), 0, torch.tensor([127.0, 127.0]).double())
    assert torch.equal(rounded, torch.zeros(2, 3))
