"""Padding of convolutions and pools: explicit, automatic, and rounded up to whole windows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes


@dataclass(frozen=True)
class Windows:
    """Windows along one axis of an input.

    Attributes:
        kernel: values in a window.
        stride: step from a window to the next.
        dilation: step from a value of a window to the next.
        begin: padding before the input.
        end: padding after it; negative if the last values are in no window.
        stated: padding after the input without that for a last, incomplete window.
    """

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    stated: int

    @property
    def span(self) -> int:
        """Places from the first to the last value of a window."""
        return (self.kernel - 1) * self.dilation + 1


def find_windows(attributes: Attributes, x: Tensor, kernel: list[int]) -> list[Windows]:
    """The windows along the spatial axes of an input [N, C, ...].

    `auto_pad` and `ceil_mode` follow ONNX's text of Conv-11 and MaxPool-12: with SAME, the number of
    windows is size / stride, rounded up. A last window that starts after the input does not count.
    """
    rank = len(kernel)
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads = attributes.get("pads", [0] * 2 * rank)
    found = []
    for axis, (size, values, stride, dilation) in enumerate(
        zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ):
        span = (values - 1) * dilation + 1
        automatic = attributes.get("auto_pad", "NOTSET")
        begin, end = (0, 0) if automatic == "VALID" else (pads[axis], pads[rank + axis])
        if automatic.startswith("SAME"):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            begin = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            end = total - begin
        steps = size + begin + end - span
        last = -(-steps // stride) if attributes.get("ceil_mode") else steps // stride
        if last * stride >= size + begin:
            last -= 1
        whole = last * stride + span - size - begin
        found.append(Windows(values, stride, dilation, begin, whole, end))
    return found


def padded(x: Tensor, windows: list[Windows], value: float = 0.0) -> Tensor:
    """The input [N, C, ...] with the padding of its windows."""
    sides = [side for window in reversed(windows) for side in (window.begin, window.end)]
    return functional.pad(x, sides, value=value) if any(sides) else x
