"""Operators that give values other places and shapes: reshapes, transposes, joins, cuts and padding."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    copied = not attributes.get("allowzero")
    sizes = [x.shape[i] if not s and copied else s for i, s in enumerate(shape.tolist())]
    return x.reshape(tuple(sizes))  # PyTorch takes no empty list


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis + x.ndim if axis < 0 else axis]), -1)


def _slice(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    along = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
        chosen = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, chosen.start if chosen else 0, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["num_outputs"]), axis)


def _squeeze(_: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "DCR":  # PyTorch moves the columns, then the rows of an output
        x = x.reshape(len(x), size * size, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    return functional.pixel_shuffle(x, size)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    blocks = functional.pixel_unshuffle(x, size)
    parts = blocks.reshape(len(x), x.shape[1], size * size, *blocks.shape[2:])
    return parts.transpose(1, 2).flatten(1, 2)


def _pad(
    attributes: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    begin, end = pads.reshape(2, -1).tolist()
    sides = {axis: (begin[i], end[i]) for i, axis in enumerate(chosen)}
    mode: str = attributes.get("mode", "constant")
    if mode == "constant":
        flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    for axis, (before, after) in sides.items():
        if before or after:
            places = torch.arange(-before, x.shape[axis] + after, device=x.device)
            x = x.index_select(axis, _continued(places, x.shape[axis], mode))
    return x


def _continued(places: Tensor, size: int, mode: str) -> Tensor:
    """The places inside an axis whose values stand at places beside it."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)  # reflect: 2 1 0 1 2 1 0
    return size - 1 - (places % period - (size - 1)).abs()


def _reverse(attributes: Attributes, x: Tensor, lengths: Tensor) -> Tensor:
    """ReverseSequence: the first values of each sequence in reverse, the others in place."""
    time, batch = attributes.get("time_axis", 0), attributes.get("batch_axis", 1)
    moved = x.movedim((batch, time), (0, 1))
    places, ends = torch.arange(moved.shape[1], device=x.device), lengths[:, None]
    order = torch.where(places < ends, ends - 1 - places, places)
    order = order.reshape(*order.shape, *[1] * (moved.ndim - 2)).expand(moved.shape)
    return moved.gather(1, order).movedim((0, 1), (batch, time))


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm", tuple(reversed(range(x.ndim)))))


OPERATORS: dict[str, Operator] = {
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "ReverseSequence": _reverse,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
