"""Rounding to 8 bits: the forward pass rounds like ONNX Runtime, the backward pass computes gradients.

The gradient of rounding itself is that of the identity (straight-through: Bengio et al., "Estimating or
Propagating Gradients Through Stochastic Neurons", 2013). The ends of an activation's range are learned as
in Esser et al., "Learned Step Size Quantization" (LSQ, 2020), with both ends free as in Bhalgat et al.,
"LSQ+" (2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporter.graphs.targets import WEIGHT_LEVELS

Limits = tuple[int, int]

_TINY = float(torch.finfo(torch.float32).tiny)


def activation_qparams(lowest: Tensor, highest: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """`(scale, zero_point)` of ranges, computed like ONNX Runtime's `compute_scale_zp`.

        scale = (highest - lowest) / (q_max - q_min)        zero_point = round(q_min - lowest / scale)

    The range is widened to include zero. The computation is in float64, and the scale is stored in float32.
    A range whose scale is too small for float32 gets scale 1 and zero point 0.

    Args:
        lowest: lower ends, float32 of any shape.
        highest: upper ends, of the same shape.
        limits: q_min and q_max.

    Returns:
        Two float32 tensors of the same shape.
    """
    low, high = lowest.double().clamp(max=0.0), highest.double().clamp(min=0.0)
    scale = (high - low) / (limits[1] - limits[0])
    zero_point = torch.round(limits[0] - low / scale)
    narrow = scale < _TINY
    return torch.where(narrow, 1.0, scale).float(), torch.where(narrow, 0.0, zero_point).float()


@dataclass(frozen=True)
class Rounded:
    """Integers, and the scale that converts them to real numbers.

    Attributes:
        levels: float32 of any shape that holds integers with the zero point subtracted: the values of an
            activation or a weight, or sums of products of the two. Gradients are with respect to the
            levels.
        scale: float32 [channels], or a scalar; without gradients.
        axis: axis of the channels in `levels`; None if the scale is a scalar.
    """

    levels: Tensor
    scale: Tensor
    axis: int | None = None

    def real(self) -> Tensor:
        """The real values, in the shape of `levels`."""
        return self.levels * self.along(self.scale)

    def along(self, channels: Tensor) -> Tensor:
        """Values of the channels, reshaped so that they broadcast over `levels`."""
        if self.axis is None:
            return channels
        axis = self.axis % self.levels.ndim
        return channels.view([-1 if dimension == axis else 1 for dimension in range(self.levels.ndim)])


def round_activation(
    values: Tensor | Rounded, lowest: Tensor, highest: Tensor, limits: Limits, factor: float = 1.0
) -> Rounded:
    """Round activations to the integers of a range.

        clamp(round(x / (scale * factor)), q_min - zero_point, q_max - zero_point)

    Halves are rounded to even. Values that are integers already are not converted to real numbers first.
    Their scale is divided by the scale of the range, and they are multiplied by the quotient, like in ONNX
    Runtime's kernels. This order matters: a different last bit moves one value in 100,000 to the other side
    of a half, and such errors grow from block to block. In a network as deep as EfficientNet-Lite0, they
    become as large as the difference between the int8 and the float network.

    In the backward pass, x has a gradient if it is within the range. The upper end h and the lower end l
    have gradients from values of y = levels * scale that they clip, and from the rounding error
    e = round(x / scale) - x / scale:

        dy/dh = 1 above, 0 below, e / (q_max - q_min) within
        dy/dl = 0 above, 1 below, -e / (q_max - q_min) within

    These are the gradients of LSQ+ for scale and offset, written for the ends. They are multiplied by
    1 / sqrt(values per sample * q_max) (LSQ, section 2.2). All values contribute to the gradient of an end;
    with this factor it does not change faster than a weight.

    Args:
        values: float32 [N, ...], or integers of that shape.
        lowest: the lower end, a scalar.
        highest: the upper end, a scalar.
        limits: q_min and q_max.
        factor: additional divisor of the values.
    """
    scale, zero_point = activation_qparams(lowest.detach(), highest.detach(), limits)
    times, divisor = None, scale * factor
    if isinstance(values, Rounded):
        times = values.along(values.scale / divisor)
        values = values.levels
    levels: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
        values, times, divisor, lowest, highest, scale, zero_point, limits
    )
    return Rounded(levels, scale)


class _Round(torch.autograd.Function):
    """Round values to levels: multiply by `times` if it is given, otherwise divide by `divisor`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        values, times, divisor, _lowest, _highest, scale, zero_point, limits = arguments
        ctx.save_for_backward(values, times, divisor, scale, zero_point)
        ctx.limits = limits
        low, high = limits
        return _in_levels(values, times, divisor).round_().clamp_(low - zero_point, high - zero_point)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, times, divisor, scale, zero_point = ctx.saved_tensors
        ratio = _in_levels(values, times, divisor)
        rounded = torch.round(ratio)
        low, high = ctx.limits
        below, above = rounded < low - zero_point, rounded > high - zero_point
        inside = gradient.masked_fill(below | above, 0.0)
        back = inside / divisor if times is None else inside * times
        if not any(ctx.needs_input_grad[3:5]):
            return back, *[None] * 7
        error = (inside * rounded.sub_(ratio)).sum() / (high - low)
        # The formulas are for y = levels * scale, but the incoming gradient is with respect to the levels.
        factor = 1 / (scale * math.sqrt(max(1, values[0].numel()) * max(abs(low), high)))
        for_low = factor * ((gradient * below).sum() - error)
        for_high = factor * ((gradient * above).sum() + error)
        return back, None, None, for_low, for_high, None, None, None


def _in_levels(values: Tensor, times: Tensor | None, divisor: Tensor) -> Tensor:
    return values / divisor if times is None else values * times


def channel_maxima(weight: Tensor, axis: int | None) -> Tensor:
    """Each channel's largest magnitude, float32 [channels]; a scalar if `axis` is None; no gradients."""
    magnitude = weight.detach().abs()
    return magnitude.amax() if axis is None else magnitude.transpose(0, axis).flatten(1).amax(dim=1)


def round_weight(weight: Tensor, axis: int | None, limits: Tensor) -> Rounded:
    """Round weights to symmetric int8 with the scale max|w| / limit.

    Args:
        weight: float32 of any shape.
        axis: axis of the channels, which have one scale each; None for one scale.
        limits: the level of the largest weight, float64 [channels], or a scalar. It is 127, and less in
            channels that must not saturate.

    Returns:
        The integers; rounding has the gradient of the identity.
    """
    scale = channel_maxima(weight, axis).double() / limits
    scale = torch.where(scale < _TINY, 1.0, scale).float()
    exact = Rounded(weight, scale, axis)
    ratio = weight / exact.along(scale)
    levels = torch.round(ratio).clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS)
    return Rounded(ratio + (levels - ratio).detach(), scale, axis)


def round_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round biases to the levels of a layer's sums, like int32 biases.

    Args:
        bias: float32 [channels].
        scale: scale of the sums, float32 [channels], or a scalar.

    Returns:
        Integers of that shape; rounding has the gradient of the identity.
    """
    ratio = bias / scale
    levels = torch.round(bias.detach().double() / scale.double()).float()
    return ratio + (levels - ratio).detach()
