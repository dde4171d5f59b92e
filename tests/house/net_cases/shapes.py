"""Small deterministic data sets that tiny networks can classify."""

import numpy as np

from exporter import Split, Splits


def draw(count, generator, channels, size, classes):
    """Draw bright pictures, vertical stripes and horizontal stripes, with noise."""
    labels = np.arange(count) % classes
    images = generator.normal(0.0, 0.3, (count, channels, size, size)).astype(np.float32)
    stripes = np.float32([1, -1] * (size // 2))
    images[labels % 3 == 0] += 1
    images[labels % 3 == 1] += stripes
    images[labels % 3 == 2] += stripes[:, None]
    return Split({"image": images}, labels.astype(np.int64))


def load(*, train=60, calibration=40, evaluation=60, channels=1, size=12, classes=3, seed=0):
    """Return pictures in three splits."""
    generator = np.random.default_rng(seed)
    return Splits(*(draw(n, generator, channels, size, classes) for n in (train, calibration, evaluation)))


def crops(count=30, channels=1, size=12):
    """Return pictures without labels."""
    return {"image": draw(count, np.random.default_rng(9), channels, size, 3).inputs["image"]}


def bright(*, train=60, calibration=40, evaluation=60, size=12, classes=3, seed=0):
    """Return normalised pictures whose pixels are whole bytes, for a graph that takes uint8 input."""

    def scaled(split):
        pixels = np.clip(np.rint(split.inputs["image"] * 40 + 128), 0, 255)
        return Split({"image": ((pixels - 127) / 128).astype(np.float32)}, split.labels)

    generator = np.random.default_rng(seed)
    sizes = (train, calibration, evaluation)
    return Splits(*(scaled(draw(n, generator, 3, size, classes)) for n in sizes))


def sentences(train=60, calibration=40, evaluation=60, length=8):
    """Return random tokens whose first two give the class. Every second sentence is half as long."""

    def some(count, seed):
        ids = np.random.default_rng(seed).integers(3, 50, (count, length))
        labels = np.arange(count) % 3
        ids[:, :2] = labels[:, None]
        mask = np.ones_like(ids)
        mask[1::2, (length + 1) // 2 :] = 0
        return Split({"input_ids": ids, "attention_mask": mask}, labels)

    return Splits(some(train, 1), some(calibration, 2), some(evaluation, 3))
