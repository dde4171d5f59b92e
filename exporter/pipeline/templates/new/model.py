"""Example network. Replace it with your own; it may be any torch.nn.Module."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU: int8 kernels run this sequence as one operator."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Network(nn.Module):
    """Images [N, 3, H, W] -> logits [N, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 32, stride=2),
            block(32, 64, stride=1),
            block(64, 96, stride=2),
            block(96, 128, stride=2),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits. The argument has the same name as the input in data.py."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(image), 1)
        return self.head(torch.flatten(pooled, 1))


def build(num_classes: int) -> nn.Module:
    """Return the network; model.factory in the recipe names this function."""
    return Network(num_classes)
