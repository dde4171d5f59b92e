"""Convolutions and transposed convolutions along one, two or three axes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator
from exporter.training.qat.operators.windows import find_windows, padded

_PLAIN = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {
    3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d
}  # fmt: skip


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    convolve: Callable[..., Tensor] = _PLAIN[x.ndim]
    windows = find_windows(attributes, x, list(weight.shape[2:]))
    strides, dilations = ([getattr(w, name) for w in windows] for name in ("stride", "dilation"))
    pads = [window.begin for window in windows]
    # PyTorch pads both sides equally, and needs no complete last window.
    if any(window.begin != window.stated for window in windows):
        x, pads = padded(x, windows), [0] * len(windows)
    return convolve(x, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def _conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The whole result without padding, then cut or continued, because PyTorch cuts both sides equally."""
    convolve: Callable[..., Tensor] = _TRANSPOSED[x.ndim]
    rank = x.ndim - 2
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    whole = convolve(x, weight, None, strides, 0, 0, attributes.get("group", 1), dilations)
    sides = _cut(attributes, x, whole)
    result = functional.pad(whole, sides) if any(sides) else whole
    return result if bias is None else result + bias.view(-1, *[1] * rank)


def _cut(attributes: Attributes, x: Tensor, whole: Tensor) -> list[int]:
    """The values to add (> 0) or to cut (< 0) beside each axis, as `functional.pad` reads them.

    The padding that `auto_pad` and `output_shape` mean is that of ONNX's text of ConvTranspose-11.
    """
    rank = x.ndim - 2
    more = attributes.get("output_padding", [0] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    automatic, wanted = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    strides = attributes.get("strides", [1] * rank)
    sides: list[int] = []
    for axis in reversed(range(rank)):
        size = whole.shape[2 + axis] + more[axis]
        if wanted or automatic.startswith("SAME"):
            total = size - (wanted[-rank:][axis] if wanted else x.shape[2 + axis] * strides[axis])
            begin = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            end = total - begin
        else:
            begin, end = (0, 0) if automatic == "VALID" else (pads[axis], pads[rank + axis])
        sides += [-begin, more[axis] - end]
    return sides


OPERATORS: dict[str, Operator] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
