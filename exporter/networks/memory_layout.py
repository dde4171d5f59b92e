"""The memory layout of pictures during training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from exporter.networks.network import call, evaluating


def layout_for(module: nn.Module, inputs: Mapping[str, Tensor]) -> torch.memory_format:
    """Channels last if the network accepts it, otherwise the contiguous layout.

    The layout is tried on the first sample, without training. With it EfficientNet-Lite0 trains 1.3 to 1.6
    times as fast on an x86 CPU, because PyTorch's kernels otherwise reorder each tensor. Results change
    only by rounding. A `view` that joins axes fails on such tensors; the network then gets the contiguous
    layout.
    """
    if not any(isinstance(child, nn.Conv2d) for child in module.modules()):
        return torch.contiguous_format
    first = {name: tensor[:1] for name, tensor in inputs.items()}
    with evaluating(module), torch.no_grad():
        try:
            call(module, laid_out(first, torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
    return torch.channels_last


def laid_out(inputs: Mapping[str, Tensor], layout: torch.memory_format) -> dict[str, Tensor]:
    """The inputs, with pictures [N, channels, height, width] converted to the layout."""
    return {
        name: tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor
        for name, tensor in inputs.items()
    }
