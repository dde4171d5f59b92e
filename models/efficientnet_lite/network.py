"""EfficientNet-Lite0, written for deployment on CPUs.

The Lite family removes the parts of EfficientNet that are slow or inaccurate in integer kernels: it has
no squeeze-and-excite blocks, it uses ReLU6 instead of swish, and the stem and the head keep their width
when the body is scaled. Architecture and block table: Tan & Le, "EfficientNet" (2019), table 1, with the
changes of the TensorFlow TPU `efficientnet/lite` notes.

Attribute names are the keys of the published checkpoint's state dict, so loading it needs no renaming.
That is why some of them start with an underscore.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_NORM_EPSILON = 1e-3
# The original trains with a momentum of 0.01 over hundreds of epochs. With that momentum, the statistics
# after a fine-tuning of a few hundred steps would still be those of ImageNet. PyTorch's default of 0.1
# adapts them to the new data.
BATCH_NORM_MOMENTUM = 0.1


@dataclass(frozen=True)
class BlockGroup:
    """Consecutive inverted-residual blocks of one width. Only the first block of a group uses `stride`."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


LITE0_GROUPS = (
    BlockGroup(repeats=1, kernel=3, stride=1, expand=1, channels=16),
    BlockGroup(repeats=2, kernel=3, stride=2, expand=6, channels=24),
    BlockGroup(repeats=2, kernel=5, stride=2, expand=6, channels=40),
    BlockGroup(repeats=3, kernel=3, stride=2, expand=6, channels=80),
    BlockGroup(repeats=3, kernel=5, stride=1, expand=6, channels=112),
    BlockGroup(repeats=4, kernel=5, stride=2, expand=6, channels=192),
    BlockGroup(repeats=1, kernel=3, stride=1, expand=6, channels=320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


class SamePaddingConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which the checkpoint was trained with.

    The output has ceil(size / stride) rows and columns. With a stride of 2 and an even input size, the
    padding is larger at the bottom and on the right. `nn.Conv2d(padding=...)` cannot express that.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self._same_padding(x.shape[-2], axis=0)
        left, right = self._same_padding(x.shape[-1], axis=1)
        if top == bottom and left == right:
            return functional.conv2d(
                x, self.weight, None, self.stride, (top, left), self.dilation, self.groups
            )
        return super().forward(functional.pad(x, (left, right, top, bottom)))

    def _same_padding(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)


class InvertedResidual(nn.Module):
    """1x1 expansion, k x k depthwise, 1x1 projection; a skip connection if the shapes allow it."""

    def __init__(self, in_channels: int, group: BlockGroup, stride: int) -> None:
        super().__init__()
        hidden = in_channels * group.expand
        self.expands = group.expand != 1
        if self.expands:
            self._expand_conv = SamePaddingConv2d(in_channels, hidden, kernel=1)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = SamePaddingConv2d(
            hidden, hidden, kernel=group.kernel, stride=stride, groups=hidden
        )
        self._bn1 = _batch_norm(hidden)
        self._project_conv = SamePaddingConv2d(hidden, group.channels, kernel=1)
        self._bn2 = _batch_norm(group.channels)
        self.skips = stride == 1 and in_channels == group.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        if self.skips:
            y = x + y
        return y


class EfficientNetLite(nn.Module):
    """Images [N, 3, H, W] -> logits [N, num_classes]; any H and W of at least 32."""

    def __init__(self, groups: tuple[BlockGroup, ...], num_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self._conv_stem = SamePaddingConv2d(3, STEM_CHANNELS, kernel=3, stride=2)
        self._bn0 = _batch_norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for group in groups:
            for index in range(group.repeats):
                blocks.append(InvertedResidual(channels, group, stride=group.stride if index == 0 else 1))
                channels = group.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePaddingConv2d(channels, HEAD_CHANNELS, kernel=1)
        self._bn1 = _batch_norm(HEAD_CHANNELS)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(image)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        x = torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)
        logits: Tensor = self._fc(self._dropout(x))
        return logits


def efficientnet_lite0(num_classes: int = 1000, dropout: float = 0.2) -> EfficientNetLite:
    """EfficientNet-Lite0 without weights: 4.7 M parameters, 0.41 G multiply-adds at 224 x 224."""
    return EfficientNetLite(LITE0_GROUPS, num_classes=num_classes, dropout=dropout)
