"""Norms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator

_EPSILON = 1e-5  # default of ONNX


def _batch_norm(attributes: Attributes, x: Tensor, *parameters: Tensor) -> Tensor:
    scale, bias, mean, variance = parameters
    return functional.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", _EPSILON))


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.group_norm(x, x.shape[1], scale, bias, attributes.get("epsilon", _EPSILON))


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Up to opset 20, scale and bias belong to groups; then to channels."""
    groups = attributes["num_groups"]
    scale, bias = (v.repeat_interleave(x.shape[1] // len(v)) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, attributes.get("epsilon", _EPSILON))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis, epsilon = attributes.get("axis", -1) % x.ndim, attributes.get("epsilon", _EPSILON)
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    normed = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return normed if bias is None else normed + bias


def _rms_norm(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    squares = x.square().mean(tuple(range(axis, x.ndim)), keepdim=True)
    return x * torch.rsqrt(squares + attributes.get("epsilon", _EPSILON)) * scale


def _local_norm(attributes: Attributes, x: Tensor) -> Tensor:
    """LRN: divide by a power of the sum of squares in the channels nearby."""
    size = attributes["size"]
    squares = functional.pad(
        x.square().movedim(1, -1), [(size - 1) // 2, size - 1 - (size - 1) // 2]
    ).unfold(-1, size, 1)
    scale = attributes.get("alpha", 1e-4) / size * squares.sum(-1).movedim(-1, 1)
    result: Tensor = x / (attributes.get("bias", 1.0) + scale) ** attributes.get("beta", 0.75)
    return result


def _unit_length(attributes: Attributes, x: Tensor) -> Tensor:
    axis, order = attributes.get("axis", -1), attributes.get("p", 2)
    length = torch.linalg.vector_norm(x, order, axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


def _mean_variance(attributes: Attributes, x: Tensor) -> Tensor:
    axes = attributes.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)  # epsilon of ONNX's text


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _unit_length,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
