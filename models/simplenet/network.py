"""SimpleNet: two convolutions and three linear layers, modelled on LeNet-5.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition" (1998). SimpleNet
differs from it by max pooling, ReLU and three input channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SimpleNet(nn.Module):
    """Images [N, 3, 32, 32] -> logits [N, num_classes]; 62,006 parameters for ten classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(image)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits
