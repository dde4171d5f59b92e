"""Operators that pick values by index or condition, or put values at indices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exporter.training.qat.operators.table import Attributes, Operator

_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin", "add": "sum"}


def _gather(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    chosen = x.index_select(axis, _from_start(index, x.shape[axis]).reshape(-1))
    return chosen.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    return x.gather(axis, _from_start(index, x.shape[axis]))


def _gather_nd(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """Pick x[index] for each vector of indices, in each of the first `batch_dims` axes."""
    batch = attributes.get("batch_dims", 0)
    shape, depth = x.shape[:batch], index.shape[-1]
    flat = x.reshape(math.prod(shape), *x.shape[batch:])
    vectors = index.reshape(len(flat), -1, depth)
    rows = torch.arange(len(flat), device=x.device)[:, None].expand(vectors.shape[:2])
    picked = flat[(rows, *vectors.unbind(-1))]
    return picked.reshape((*index.shape[:-1], *x.shape[batch + depth :]))


def _scatter_elements(attributes: Attributes, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    axis, reduction = attributes.get("axis", 0), attributes.get("reduction", "none")
    index = _from_start(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, values)
    return x.scatter_reduce(axis, index, values, _REDUCTIONS[reduction])


def _scatter_nd(attributes: Attributes, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Put values at x[index] for each vector of indices."""
    reduction, depth = attributes.get("reduction", "none"), index.shape[-1]
    if reduction in {"none", "add"}:
        return x.index_put(index.unbind(-1), values, accumulate=reduction == "add")
    place = torch.zeros_like(index[..., 0])
    for axis in range(depth):
        place = place * x.shape[axis] + _from_start(index[..., axis], x.shape[axis])
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    rows = values.reshape(place.numel(), -1)
    places = place.reshape(-1, 1).expand_as(rows)
    return flat.scatter_reduce(0, places, rows, _REDUCTIONS[reduction]).reshape(x.shape)


def _from_start(index: Tensor, size: int) -> Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _one_hot(attributes: Attributes, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    axis, size = attributes.get("axis", -1), int(depth)
    index = _from_start(index, size).unsqueeze(axis)
    classes = torch.arange(size, device=index.device)
    shape = [1] * index.ndim
    shape[axis] = size
    return torch.where(index == classes.view(shape), values[1], values[0])


def _compress(attributes: Attributes, x: Tensor, condition: Tensor) -> Tensor:
    chosen = condition.nonzero().reshape(-1)
    axis = attributes.get("axis")
    return x.reshape(-1).index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


def _triangle(attributes: Attributes, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    start = 0 if diagonal is None else int(diagonal)
    return x.triu(start) if attributes.get("upper", 1) else x.tril(start)


OPERATORS: dict[str, Operator] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda _, x: x.nonzero().t(),
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Trilu": _triangle,
}
