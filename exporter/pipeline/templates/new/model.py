"""The network. Replace it by your own; any torch.nn.Module will do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, norm, ReLU: what int8 kernels like best."""
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
        """The argument's name is that of the input in data.py."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(image), 1)
        return self.head(torch.flatten(pooled, 1))


def build(num_classes: int) -> nn.Module:
    """What the recipe's model.factory names."""
    return Network(num_classes)
