"""Example data: noisy shapes, drawn by this module, so the recipe needs no data files.

To use your own images, stored in one folder per class, replace `load` with:

    from exporter import load_image_folder

    def load():
        return load_image_folder("pictures", size=96)
"""

from __future__ import annotations

import numpy as np

from exporter import Split, Splits

SIDE = 48
CLASSES = ("disc", "square", "cross")


def load(train: int = 900, calibration: int = 200, evaluation: int = 900, seed: int = 0) -> Splits:
    """Return the three splits; data.factory in the recipe names this function."""
    generator = np.random.default_rng(seed)
    return Splits(draw(train, generator), draw(calibration, generator), draw(evaluation, generator))


def draw(count: int, generator: np.random.Generator) -> Split:
    """Draw shapes of random position, size and brightness on noise: float32 [count, 3, SIDE, SIDE]."""
    labels = np.arange(count) % len(CLASSES)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images = generator.normal(0.0, 0.2, (count, 3, SIDE, SIDE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        radius = generator.integers(7, 13)
        y, x = generator.integers(radius, SIDE - radius, 2)
        down, right = np.abs(rows - y), np.abs(columns - x)
        inside = {
            "disc": down**2 + right**2 <= radius**2,
            "square": np.maximum(down, right) <= radius * 0.8,
            "cross": (np.minimum(down, right) <= 2) & (np.maximum(down, right) <= radius),
        }[CLASSES[label]]
        image[:, inside] += generator.uniform(0.6, 1.2)
    return Split({"image": images}, labels.astype(np.int64))
