"""Tiny networks for the cases: convolutional, MobileNet-like, a single layer, and a transformer."""

import torch
from torch import nn


class Block(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, width):
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = torch.relu(self.norm1(self.one(x)))
        return torch.relu(x + self.norm2(self.two(y)))


class Plain(nn.Module):
    """Pictures [N, C, H, W] -> logits: convolutions, norms and two residual blocks."""

    def __init__(self, classes=3, width=8, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.body = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image):
        x = self.blocks(torch.relu(self.norm(self.stem(image))))
        x = torch.relu(self.body(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Mobile(nn.Module):
    """Pictures [N, 3, H, W] -> logits: a stem of stride 2, a depthwise convolution, hard swish, ReLU6."""

    def __init__(self, classes=3, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, classes)
        with torch.no_grad():  # channels of very different ranges, which `equalize` makes similar
            self.norm1.weight.copy_(torch.logspace(-1.5, 1.0, width))

    def forward(self, image):
        x = nn.functional.hardswish(self.norm(self.stem(image)))
        y = nn.functional.relu6(self.norm1(self.deep(x)))
        x = x + self.norm2(self.point(y))
        x = nn.functional.hardswish(self.last(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Twice(nn.Module):
    """Pictures [N, 1, H, W] -> logits: two convolutions without a norm, so repairs change their weights."""

    def __init__(self, classes=3, width=16):
        super().__init__()
        self.one = nn.Conv2d(1, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            sizes = torch.logspace(-2.0, 2.0, width)
            self.one.weight.mul_(sizes[:, None, None, None])
            self.one.bias.mul_(sizes)
            self.two.weight.div_(sizes[None, :, None, None])

    def forward(self, image):
        x = torch.relu(self.two(torch.relu(self.one(image))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Line(nn.Module):
    """Pictures [N, 1, H, W] -> logits: one layer, the only candidate for float fallback."""

    def __init__(self, classes=3, size=12):
        super().__init__()
        self.head = nn.Linear(size * size, classes)

    def forward(self, image):
        return self.head(torch.flatten(image, 1))


class Encoder(nn.Module):
    """Token ids [N, L] and their mask -> logits [N, classes]: one layer of a transformer."""

    def __init__(self, vocabulary=50, width=32, heads=2, longest=32, classes=3):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():  # outliers in some channels, which `smooth` reduces
            self.norm2.weight[::8] = 40.0
            self.up.weight[:, ::8] /= 40.0

    def forward(self, input_ids, attention_mask):
        count, length = input_ids.shape
        mask = attention_mask.to(torch.float32)
        x = self.tokens(input_ids) + self.positions.weight[:length]
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(count, length, self.heads, -1).transpose(1, 2) for part in parts)
        bias = (1 - mask[:, None, None]) * -1e4
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).reshape(count, length, -1))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
