"""Pools over windows, and over all places."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator
from exporter.training.qat.operators.windows import Windows, find_windows, padded

_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    pool: Callable[..., Tensor] = _MAX_POOLS[x.ndim]
    windows = find_windows(attributes, x, attributes["kernel_shape"])
    strides, dilations = ([getattr(w, name) for w in windows] for name in ("stride", "dilation"))
    return pool(padded(x, windows, -math.inf), attributes["kernel_shape"], strides, 0, dilations)


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    windows = find_windows(attributes, x, attributes["kernel_shape"])
    sums = _sums(padded(x, windows), windows)
    if not any(window.begin or window.end > 0 for window in windows):
        return sums / math.prod(window.kernel for window in windows)
    present = torch.ones_like(x[:1, :1])
    if attributes.get("count_include_pad"):
        sides = [side for window in reversed(windows) for side in (window.begin, window.stated)]
        present = functional.pad(present, sides, value=1.0)
        rest = [Windows(w.kernel, w.stride, w.dilation, 0, w.end - w.stated, 0) for w in windows]
        return sums / _sums(padded(present, rest), windows)
    return sums / _sums(padded(present, windows), windows)


def _power_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """LpPool: the root of the sum of powers."""
    windows, power = find_windows(attributes, x, attributes["kernel_shape"]), attributes.get("p", 2)
    result: Tensor = _sums(padded(x.abs() ** power, windows), windows) ** (1 / power)
    return result


def _sums(x: Tensor, windows: list[Windows]) -> Tensor:
    """The sum of each window of a padded input."""
    for axis, window in enumerate(windows):
        x = x.unfold(2 + axis, window.span, window.stride)[..., :: window.dilation].sum(-1)
    return x


def _all_places(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, x: x.mean(_all_places(x), keepdim=True),
    "GlobalLpPool": lambda attributes, x: torch.linalg.vector_norm(
        x, attributes.get("p", 2), _all_places(x), keepdim=True
    ),
    "GlobalMaxPool": lambda _, x: x.amax(_all_places(x), keepdim=True),
    "LpPool": _power_pool,
    "MaxPool": _max_pool,
}
