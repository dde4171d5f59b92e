"""Operators along axes: sums and other reductions, running sums, softmax, the largest values."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from exporter.training.qat.operators.table import Attributes, Operator

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over_axes(reduction: _Reduction) -> Operator:
    """The operator that reduces over the axes of its second input; over all axes if there are none."""

    def run(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = () if axes is None else tuple(axes.tolist())
        if not chosen and attributes.get("noop_with_empty_axes"):
            return x
        return reduction(x, chosen or tuple(range(x.ndim)), bool(attributes.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    ordered = sorted((axis % x.ndim for axis in axes), reverse=True)
    return functools.reduce(lambda value, axis: value.prod(axis, keep), ordered, x)


def _root_of_squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    root: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
    return root


def _index_of(most: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    """ArgMax or ArgMin: the first index of the extreme value along an axis, or the last."""

    def run(attributes: Attributes, x: Tensor) -> Tensor:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        if attributes.get("select_last_index"):
            return x.shape[axis] - 1 - most(x.flip(axis), axis, keep)
        return most(x, axis, keep)

    return run


def _running_sum(attributes: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    x = x.flip(along) if attributes.get("reverse") else x
    if attributes.get("exclusive"):
        first = torch.zeros_like(x.narrow(along, 0, 1))
        x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
    total = x.cumsum(along).to(x.dtype)
    return total.flip(along) if attributes.get("reverse") else total


def _hardmax(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _top(attributes: Attributes, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The largest or smallest values in order, and their indices; of equal values, the first."""
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    values, indices = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(count)), indices.narrow(axis, 0, int(count))


OPERATORS: dict[str, Operator] = {
    "ArgMax": _index_of(torch.argmax),
    "ArgMin": _index_of(torch.argmin),
    "CumSum": _running_sum,
    "Hardmax": _hardmax,
    "LogSoftmax": lambda attributes, x: x.log_softmax(attributes.get("axis", -1)),
    "ReduceL1": _over_axes(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _over_axes(_root_of_squares),
    "ReduceLogSum": _over_axes(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _over_axes(torch.logsumexp),
    "ReduceMax": _over_axes(torch.amax),
    "ReduceMean": _over_axes(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _over_axes(torch.amin),
    "ReduceProd": _over_axes(_product),
    "ReduceSum": _over_axes(lambda x, axes, keep: x.sum(axes, keep).to(x.dtype)),
    "ReduceSumSquare": _over_axes(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "TopK": _top,
}
