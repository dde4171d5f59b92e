"""Rounding to 8 bits with ONNX Runtime's numbers forward, and with gradients backward.

Rounding itself counts as the identity (straight-through: Bengio et al., "Estimating or Propagating
Gradients Through Stochastic Neurons", 2013). The ends of an activation's range learn as in Esser et al.,
"Learned Step Size Quantization" (2020), with both ends free as in Bhalgat et al., "LSQ+" (2020).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Limits = tuple[int, int]

_TINY = float(torch.finfo(torch.float32).tiny)
WEIGHT_LIMIT = 127


def activation_qparams(lowest: Tensor, highest: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """`(scale, zero_point)` of ranges, as ONNX Runtime's `compute_scale_zp` has them.

        scale = (highest - lowest) / (q_max - q_min)        zero_point = round(q_min - lowest / scale)

    The range is widened to hold zero, all is computed in float64, and the scale is kept in float32. A range
    too narrow for that gets scale 1 and zero point 0.

    Args:
        lowest: lower ends, float32 of any shape.
        highest: upper ends, of the same shape.
        limits: q_min and q_max.

    Returns:
        Two float32 tensors of that shape.
    """
    low, high = lowest.double().clamp(max=0.0), highest.double().clamp(min=0.0)
    scale = (high - low) / (limits[1] - limits[0])
    zero_point = torch.round(limits[0] - low / scale)
    narrow = scale < _TINY
    return torch.where(narrow, 1.0, scale).float(), torch.where(narrow, 0.0, zero_point).float()


def fake_quantize(values: Tensor, lowest: Tensor, highest: Tensor, limits: Limits) -> Tensor:
    """Round activations to the integers of a range, and come back.

        (clamp(round(x / scale) + zero_point, q_min, q_max) - zero_point) * scale

    Halves are rounded to even. Backward, x learns where it lies within the range; the upper end h and the
    lower end l learn where they clip x, and from the rounding error e = round(x / scale) - x / scale:

        d/dh = 1 above, 0 below, e / (q_max - q_min) within
        d/dl = 0 above, 1 below, -e / (q_max - q_min) within

    which are the gradients of LSQ+ in scale and offset, written for the ends. They are scaled by
    1 / sqrt(numbers of a sample * q_max), section 2.2 of LSQ, so that an end, which all numbers pull at,
    moves no faster than a weight.

    Args:
        values: float32 [N, ...].
        lowest: the lower end, a scalar.
        highest: the upper end, a scalar.
        limits: q_min and q_max.
    """
    result: Tensor = _FakeQuantize.apply(values, lowest, highest, limits)  # type: ignore[no-untyped-call]
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lowest: Tensor, highest: Tensor, limits: Limits) -> Tensor:
        scale, zero_point = activation_qparams(lowest, highest, limits)
        ctx.save_for_backward(values, scale, zero_point)
        ctx.limits = limits
        steps = torch.round(values / scale).add_(zero_point).clamp_(*limits)
        return steps.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        values, scale, zero_point = ctx.saved_tensors
        low, high = ctx.limits
        ratio = values / scale
        rounded = torch.round(ratio)
        below, above = rounded < low - zero_point, rounded > high - zero_point
        inside = gradient.masked_fill(below | above, 0.0)
        if not any(ctx.needs_input_grad[1:3]):
            return inside, None, None, None
        error = (inside * rounded.sub_(ratio)).sum() / (high - low)
        factor = 1 / math.sqrt(max(1, values[0].numel()) * max(abs(low), high))
        for_low = factor * ((gradient * below).sum() - error)
        for_high = factor * ((gradient * above).sum() + error)
        return inside, for_low, for_high, None


def channel_maxima(weight: Tensor, axis: int | None) -> Tensor:
    """Largest magnitudes: float32 [channels], or a scalar where `axis` is None; without gradients."""
    magnitude = weight.detach().abs()
    return magnitude.amax() if axis is None else magnitude.transpose(0, axis).flatten(1).amax(dim=1)


def round_weight(weight: Tensor, axis: int | None, limits: Tensor) -> Tensor:
    """Symmetric int8 weights, whose scale follows the weights: max|w| / limit.

    Args:
        weight: float32 of any shape.
        axis: of the channels, each of which has a scale, or None for one scale.
        limits: what the largest weight becomes: float64 [channels], or a scalar. It is 127, and less
            in channels that must not saturate.

    Returns:
        The rounded weights, with the gradient of the identity.
    """
    scale = channel_maxima(weight, axis).double() / limits
    scale = torch.where(scale < _TINY, 1.0, scale).float()
    if axis is not None:
        scale = scale.view([-1 if dimension == axis else 1 for dimension in range(weight.ndim)])
    steps = torch.round(weight.detach() / scale).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    return weight + (steps * scale - weight).detach()
