"""Resize and GridSample: values between the places of an input.

Every mode of Resize computes each output along an axis as a weighted sum of inputs. So a Resize is one
product with a matrix for each axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.core.arrays import Array
from exporter.training.qat.operators.table import Attributes, Operator

_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _resize(
    attributes: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    axes = [axis % x.ndim for axis in attributes.get("axes", range(x.ndim))]
    lengths = [x.shape[axis] for axis in axes]
    if scales is not None and scales.numel():
        factors = scales.tolist()
        counts = [int(np.floor(n * f)) for n, f in zip(lengths, factors, strict=True)]
    else:
        assert sizes is not None  # ONNX requires one of the two
        factors, counts = _to_sizes(attributes, lengths, sizes.tolist())
    ends = [0.0] * len(axes) + [1.0] * len(axes) if roi is None or not roi.numel() else roi.tolist()
    outside = torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)
    crops = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    for number, axis in enumerate(axes):
        size, count, factor = lengths[number], counts[number], factors[number]
        if count == size and factor == 1.0 and not crops:
            continue
        places = _places(attributes, size, count, factor, (ends[number], ends[len(axes) + number]))
        matrix = torch.from_numpy(_matrix(attributes, places, size, factor)).to(x)
        x = (x.movedim(axis, -1) @ matrix.t()).movedim(-1, axis)
        if crops:
            beyond = torch.from_numpy((places < 0) | (places > size - 1)).to(x.device)
            outside = outside | beyond.view([-1 if i == axis else 1 for i in range(x.ndim)])
    return torch.where(outside, attributes.get("extrapolation_value", 0.0), x) if crops else x


def _to_sizes(
    attributes: Attributes, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[list[float], list[int]]:
    """The factors and sizes of the axes; a policy may keep the aspect ratio."""
    factors = [size / length for size, length in zip(sizes, lengths, strict=True)]
    policy = attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return factors, list(sizes)
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(sizes), [int(np.floor(factor * length + 0.5)) for length in lengths]


def _places(
    attributes: Attributes, size: int, count: int, factor: float, ends: tuple[float, float]
) -> Array:
    """Where each output stands among the inputs of an axis, float32 [count] (ONNX's text of Resize-19)."""
    out, one, half = np.arange(count, dtype=np.float32), np.float32(1), np.float32(0.5)
    scale = np.float32(factor)
    match attributes.get("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            return out / scale
        case "align_corners":
            return out * np.float32(size - 1) / np.float32(max(count - 1, 1))
        case "pytorch_half_pixel" if count == 1:
            return np.zeros(1, np.float32)
        case "half_pixel_symmetric":
            adjustment = np.float32(count) / (scale * np.float32(size))
            return np.float32(size) / 2 * (one - adjustment) + (out + half) / scale - half
        case "tf_crop_and_resize":
            first, last = (np.float32(end) * np.float32(size - 1) for end in ends)
            step = (last - first) / np.float32(max(count - 1, 1))
            return first + out * step if count > 1 else np.array([(first + last) / 2], np.float32)
        case _:
            return (out + half) / scale - half


def _matrix(attributes: Attributes, places: Array, size: int, factor: float) -> Array:
    """The weights of an axis: outputs = matrix @ inputs, float32 [outputs, inputs]."""
    mode = attributes.get("mode", "nearest")
    if mode == "nearest":
        nearest = _nearest(places, attributes.get("nearest_mode", "round_prefer_floor"))
        rows: Array = np.eye(size, dtype=np.float32)[np.clip(nearest, 0, size - 1)]
        return rows
    wide = max(1.0, 1.0 / factor) if attributes.get("antialias") else 1.0
    reach = (1 if mode == "linear" else 2) * wide
    first = np.floor(places - reach).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * reach) + 3)
    distances = np.abs(taps - places[:, None].astype(np.float64)) / wide
    weights = np.clip(1 - distances, 0, None) if mode == "linear" else _cubic(distances, attributes)
    if attributes.get("exclude_outside"):
        weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
    weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(places), size))
    np.add.at(matrix, (np.arange(len(places))[:, None], np.clip(taps, 0, size - 1)), weights)
    return matrix.astype(np.float32)


def _nearest(places: Array, mode: str) -> Array:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(places - np.float32(0.5)),
        "round_prefer_ceil": lambda: np.floor(places + np.float32(0.5)),
        "floor": lambda: np.floor(places),
        "ceil": lambda: np.ceil(places),
    }[mode]()
    return rounded.astype(np.int64)


def _cubic(distances: Array, attributes: Attributes) -> Array:
    """The weights of Keys, "Cubic convolution interpolation for digital image processing" (1981)."""
    a, d = attributes.get("cubic_coeff_a", -0.75), distances
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _grid_sample(attributes: Attributes, x: Tensor, grid: Tensor) -> Tensor:
    mode = attributes.get("mode", "linear")
    return functional.grid_sample(
        x,
        grid,
        str(_GRID_MODES.get(mode, mode)),
        attributes.get("padding_mode", "zeros"),
        align_corners=bool(attributes.get("align_corners")),
    )


OPERATORS: dict[str, Operator] = {"GridSample": _grid_sample, "Resize": _resize}
