"""Fourier transforms and the windows of spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.training.qat.operators.table import Attributes, Operator


def _transform(
    attributes: Attributes, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """DFT of [..., 1] or [..., 2] (real or complex) along an axis; the result is [..., 2].

    The axis is an attribute up to opset 19, then an input whose default is the last axis before the parts.
    """
    along = int(axis) if axis is not None else attributes.get("axis", -2)
    along %= x.ndim
    count = x.shape[along] if length is None else int(length)
    values = _complex(x)
    if attributes.get("inverse"):
        result = torch.fft.ifft(values, count, along)
    else:
        result = torch.fft.fft(values, count, along)
    if attributes.get("onesided"):
        result = result.narrow(along, 0, count // 2 + 1)
    return torch.view_as_real(result)


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))


def _short_time(
    attributes: Attributes,
    x: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """STFT of [N, L, 1] or [N, L, 2]: [N, frames, bins, 2]."""
    assert window is not None or length is not None  # ONNX requires one of the two
    size = int(length) if length is not None else window.numel() if window is not None else 0
    frames = _complex(x).unfold(1, size, int(step))
    spectrum = torch.fft.fft(frames if window is None else frames * window)
    onesided = attributes.get("onesided", 1)
    return torch.view_as_real(spectrum[..., : size // 2 + 1] if onesided else spectrum)


def _window(coefficients: Sequence[float]) -> Operator:
    """A window that is a sum of cosines (ONNX's texts of HannWindow-17 and its kin)."""

    def run(attributes: Attributes, size: Tensor) -> Tensor:
        count = int(size)
        period = count if attributes.get("periodic", 1) else count - 1
        angles = 2 * math.pi / period * torch.arange(count, dtype=torch.float64, device=size.device)
        values = sum(a * torch.cos(order * angles) for order, a in enumerate(coefficients))
        assert isinstance(values, Tensor)
        return values.float()

    return run


OPERATORS: dict[str, Operator] = {
    "BlackmanWindow": _window((0.42, -0.5, 0.08)),
    "DFT": _transform,
    "HammingWindow": _window((25 / 46, -21 / 46)),
    "HannWindow": _window((0.5, -0.5)),
    "STFT": _short_time,
}
