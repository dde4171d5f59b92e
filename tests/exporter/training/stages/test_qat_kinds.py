"""Quantization-aware training of each kind of network trains every parameter, and equals the int8 file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from exporter import Split, Splits
from exporter.networks.network import Network, deterministic
from exporter.recipes import QatConfig
from exporter.training.qat import Student
from exporter.training.stages.qat import qat

CLASSES, LENGTH, VOCABULARY = 3, 12, 3000


def images(count):
    """Bright and dark quarters on noise, float32 [count, 3, 16, 16]; the class is the bright quarter."""
    labels = np.arange(count) % CLASSES
    pixels = np.random.default_rng(count).normal(0, 0.3, (count, 3, 16, 16)).astype(np.float32)
    for quarter in range(CLASSES):
        rows, columns = divmod(quarter, 2)
        pixels[labels == quarter, :, 8 * rows : 8 * rows + 8, 8 * columns : 8 * columns + 8] += 1
    return Split({"image": pixels}, labels.astype(np.int64))


def sentences(count):
    """Token ids and a mask, int64 [count, LENGTH]; the class decides from which third the tokens come."""
    generator, labels = np.random.default_rng(count), np.arange(count) % CLASSES
    ids = generator.integers(0, VOCABULARY // CLASSES, (count, LENGTH)) + labels[:, None] * (
        VOCABULARY // 3
    )
    mask = (np.arange(LENGTH) < generator.integers(4, LENGTH + 1, (count, 1))).astype(np.int64)
    return Split({"ids": ids * mask, "mask": mask}, labels.astype(np.int64))


def waves(count):
    """Sines of three frequencies with noise, float32 [count, LENGTH, 4]."""
    generator, labels = np.random.default_rng(count), np.arange(count) % CLASSES
    steps = np.arange(LENGTH)[:, None] + np.arange(4) / 4
    angles = (1 + labels)[:, None, None] * steps[None] + generator.uniform(0, 1, (count, 1, 1))
    values = np.sin(angles) + generator.normal(0, 0.2, angles.shape)
    return Split({"sequence": values.astype(np.float32)}, labels.astype(np.int64))


def splits_of(draw):
    return Splits(draw(40), draw(24), draw(120))


class Attention(nn.Module):
    """Attention with heads, [N, L, width] -> [N, L, width]."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, bias=None, causal=False):
        count, length, width = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if bias is None:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:  # as Swin and older networks write it
            y = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5 + bias).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(count, length, width))


class Block(nn.Module):
    """Attention and two layers, each behind a norm and with a residual sum."""

    def __init__(self, width=16):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, bias=None, causal=False):
        x = x + self.attention(self.norm1(x), bias, causal)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ConvNeXt(nn.Module):
    """A depthwise convolution, a norm over channels, two layers, and LayerScale; then pooling by a norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16,), 0.5))
        self.groups, self.head = nn.GroupNorm(4, 16), nn.Linear(16, CLASSES)

    def forward(self, image):
        x = self.stem(image)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(functional.gelu(self.up(y))) * self.scale
        x = self.groups(x + y.permute(0, 3, 1, 2))
        return self.head(torch.logsumexp(x, (2, 3)) - x.amax((2, 3)))


class ViT(nn.Module):
    """Patches, a class token, a slice of a table of positions, a block, and `weight[0]` of a table."""

    def __init__(self):
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 16, 4, 4), Block()
        self.token = nn.Parameter(torch.randn(1, 1, 16) / 4)
        self.positions, self.kinds = nn.Parameter(torch.randn(1, 20, 16) / 4), nn.Embedding(1, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.block(x + self.positions[:, : x.shape[1]] + self.kinds.weight[0])
        return self.head(self.norm(x)[:, 0])


class Resized(ViT):
    """The table of positions is resized to the patches, as for another size of pictures."""

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.kinds.weight[0]
        grid = self.positions[:, :9].reshape(1, 3, 3, 16).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (4, 4), mode="bicubic")
        x = torch.cat([self.token.expand(len(x), -1, -1), x + grid.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(self.block(x))[:, 0])


class Swin(nn.Module):
    """Windows, shifted windows with a mask, a table of relative positions, and merged patches."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 4, 4), Attention(16)
        self.table = nn.Parameter(torch.randn(9, 2) / 4)
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        between = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + 1
        self.register_buffer("index", between[..., 0] * 3 + between[..., 1])
        regions = torch.tensor([0, 0, 1, 2])  # a shifted window must not join both ends of a picture
        windows = self.windows((regions[:, None] * 3 + regions)[None, :, :, None]).squeeze(-1)
        apart = windows[:, None] != windows[:, :, None]
        self.register_buffer("mask", torch.zeros(4, 1, 4, 4).masked_fill(apart[:, None], -100.0))
        self.norm, self.merge, self.head = nn.LayerNorm(64), nn.Linear(64, 16), nn.Linear(16, CLASSES)

    @staticmethod
    def windows(x):
        count, _, _, width = x.shape
        return x.view(count, 2, 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)

    def forward(self, image):
        x = self.patches(image).permute(0, 2, 3, 1)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).unsqueeze(0)
        y = self.windows(torch.roll(x, (-1, -1), (1, 2)))
        y = self.attention(y, bias + self.mask.repeat(len(x), 1, 1, 1))
        y = y.view(-1, 2, 2, 2, 2, 16).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + torch.roll(y, (1, 1), (1, 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.head(self.merge(self.norm(torch.cat(corners, -1))).mean((1, 2)))


class MobileViT(nn.Module):
    """Convolutions, patches unfolded to sequences and back, a join, and pixels that move into channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.block, self.norm = Block(), nn.LayerNorm(16)
        self.join, self.last = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(64, 16, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image):
        x = functional.silu(self.stem_norm(self.stem(image)))
        count, width = x.shape[:2]
        y = x.reshape(count * width * 4, 2, 4, 2).transpose(1, 2).reshape(count, width, 16, 4)
        y = self.norm(self.block(y.transpose(1, 3).reshape(count * 4, 16, width)))
        y = y.reshape(count, 4, 16, width).transpose(1, 3)
        y = y.reshape(count * width * 4, 4, 2, 2).transpose(1, 2).reshape(count, width, 8, 8)
        x = functional.silu(self.join(torch.cat([x, y], 1)))
        return self.head(functional.relu(self.last(functional.pixel_unshuffle(x, 2))).mean((2, 3)))


class Bert(nn.Module):
    """Token ids and their mask, tables of tokens and positions, a block, and a pooled answer."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 32), nn.Embedding(LENGTH, 32)
        self.norm, self.block = nn.LayerNorm(32), Block(32)
        self.pool, self.head = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, ids, mask):
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        bias = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        x = self.block(x, bias)
        return self.head(torch.tanh(self.pool((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))))


class Gpt(nn.Module):
    """A causal block, and scores of the last token from the table that also reads the tokens."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 32), nn.Embedding(LENGTH, 32)
        self.block, self.norm, self.head = Block(32), nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, ids, mask):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = self.norm(self.block(x, causal=True))
        last = x.gather(1, (mask.sum(1) - 1)[:, None, None].expand(-1, -1, 32)).squeeze(1)
        return self.head(last) + functional.linear(last, self.tokens.weight)[:, :CLASSES]


class Recurrent(nn.Module):
    """A recurrent layer in both directions, and a layer on its last outputs."""

    def __init__(self, kind):
        super().__init__()
        self.layers, self.head = kind(4, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, CLASSES)

    def forward(self, sequence):
        return self.head(functional.relu(self.layers(sequence)[0]).mean(1))


class Normed(nn.Module):
    """Weights and spectra of length 1, a product by name, a transposed convolution, one shared weight."""

    def __init__(self):
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv2d(3, 16, 4, 4))
        self.spectral = parametrizations.spectral_norm(nn.Linear(16, 16))
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)
        self.up, self.head = nn.ConvTranspose2d(16, 3, 2, 2), nn.Linear(16, CLASSES)

    def forward(self, image):
        x = functional.pad(self.stem(image), (1, 1, 1, 1), "reflect")
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        x = torch.einsum("nchw,cd->ndhw", x, self.mix) + self.up(x)[:, :1, ::2, ::2]
        x = self.spectral(x.flatten(2).transpose(1, 2)) @ self.mix.t()
        return self.head(functional.softplus(x).topk(3, 1)[0].mean(1))


class Products(nn.Module):
    """Products with factors and one bias for all outputs, and parameters without axes."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(768, 16) / 30), nn.Parameter(torch.randn(1, 16))
        self.wide, self.one = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.tensor([0.3]))
        self.slope, self.heat = nn.PReLU(), nn.Parameter(torch.tensor(0.7))
        self.parts, self.head = nn.Parameter(torch.rand(2)), nn.Linear(16, CLASSES)

    def forward(self, image):
        x = torch.addmm(self.bias, image.flatten(1), self.weight, alpha=0.5, beta=2.0)
        first, second = self.parts.softmax(0)
        x = first * self.slope(x) + second * functional.relu(x)
        x = functional.relu(torch.addmm(self.one, x, self.wide, beta=0.5))
        return self.head(x) * self.heat.exp().clamp(max=100)


KINDS = {
    "convnext": (ConvNeXt, images),
    "vit": (ViT, images),
    "resized": (Resized, images),
    "swin": (Swin, images),
    "mobilevit": (MobileViT, images),
    "bert": (Bert, sentences),
    "gpt": (Gpt, sentences),
    "gru": (lambda: Recurrent(nn.GRU), waves),
    "lstm": (lambda: Recurrent(nn.LSTM), waves),
    "rnn": (lambda: Recurrent(nn.RNN), waves),
    "normed": (Normed, images),
    "products": (Products, images),
}


@pytest.fixture
def students(monkeypatch):
    """Every student that is created."""
    made, make = [], Student.__init__

    def remember(self, *args, **kwargs):
        make(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Student, "__init__", remember)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_evaluation_equals_the_int8_file(kind, context, students):
    factory, draw = KINDS[kind]
    with deterministic(0, kind):
        module = factory().eval()
    config = QatConfig(kind="qat", epochs=2, batch_size=8, learning_rate=3e-3, warmup=0.0)
    _, result = qat(Network(module), config, splits_of(draw), context("qat"))
    assert result.agreement_with_int8 >= 0.99
    # The weights of the start are kept if no epoch is better, so only the gradients show what is trained.
    (student,) = students
    student.zero_grad()
    scores = student(*(torch.from_numpy(array[:24]) for array in draw(24).inputs.values()))
    functional.cross_entropy(scores, torch.arange(24) % CLASSES).backward()
    without = [
        name
        for name, parameter in student.network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without


def test_a_dynamic_length_is_trained(context):
    with deterministic(0, "dynamic"):
        module = Bert().eval()
    place = context("qat")
    export = place.settings.export.model_copy(update={"dynamic": {"ids": {"1": "l"}, "mask": {"1": "l"}}})
    place = replace(place, settings=replace(place.settings, export=export))
    config = QatConfig(kind="qat", epochs=1, batch_size=8, learning_rate=1e-3)
    _, result = qat(Network(module), config, splits_of(sentences), place)
    assert result.agreement_with_int8 >= 0.99
