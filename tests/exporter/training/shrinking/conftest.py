"""Small networks with the kinds of channel dependencies that pruning must handle."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from exporter.networks.network import deterministic

SIDE = 16


class Residual(nn.Module):
    """Two residual blocks with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.first, self.second = ResidualBlock(16, 24), ResidualBlock(16, 32)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(self.second(self.first(x)).mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, outer, inner):
        super().__init__()
        self.widen, self.norm = nn.Conv2d(outer, inner, 1), nn.BatchNorm2d(inner)
        self.narrow = nn.Conv2d(inner, outer, 3, padding=1)

    def forward(self, x):
        return x + self.narrow(torch.relu(self.norm(self.widen(x))))


class Depthwise(nn.Module):
    """Pointwise and depthwise convolutions, and PReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depth, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.point, self.act = nn.Conv2d(16, 32, 1), nn.PReLU(32)
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        x = torch.relu(self.norm(self.depth(torch.relu(self.stem(image)))))
        return self.head(self.act(self.point(x)).mean(dim=(2, 3)))


class Concat(nn.Module):
    """Two concatenated branches, and channels flattened together with their pixels."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.both = nn.Conv2d(20, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, image):
        x = torch.relu(self.both(torch.cat([self.left(image), self.right(image)], 1)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """A grouped convolution between plain ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.point = nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = torch.relu(self.grouped(torch.relu(self.stem(image))))
        return self.head(torch.relu(self.point(x)).mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.num_heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x):
        count, length, _ = x.shape
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.reshape(count, length, self.num_heads, 4).transpose(1, 2) for part in parts)
        y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.project(y.transpose(1, 2).reshape(count, length, -1))


class Transformer(nn.Module):
    """Patches, a position embedding that belongs to no layer, attention, two linear layers."""

    def __init__(self, fused=False):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 16, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(16, 4, fused)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(torch.relu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


NETWORKS = {
    "residual": Residual,
    "depthwise": Depthwise,
    "concat": Concat,
    "grouped": Grouped,
    "attention": Transformer,
    "fused attention": lambda: Transformer(fused=True),
}


def build(which):
    """A network by name or class, with fixed random weights and norm statistics."""
    with deterministic(0, "shapes"):
        module = NETWORKS.get(which, which)()
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d):
                nn.init.uniform_(child.running_mean, -0.5, 0.5)
                nn.init.uniform_(child.running_var, 0.5, 2.0)
                nn.init.uniform_(child.weight, 0.5, 2.0)
                nn.init.uniform_(child.bias, -0.5, 0.5)
    return module.eval()


def pictures(count=2):
    """Inputs for all networks."""
    return {"image": torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="session")
def shapes():
    """`shapes.build(name or class)`, `shapes.pictures()`, and base classes for other networks."""
    return SimpleNamespace(
        build=build,
        pictures=pictures,
        Residual=Residual,
        ResidualBlock=ResidualBlock,
        Attention=Attention,
    )


@pytest.fixture(params=NETWORKS)
def name(request):
    """The name of each network in turn."""
    return request.param
