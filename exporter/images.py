"""Reading a person's own pictures: one folder a class, or ready-made `train` and `evaluation` folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.arrays import Array
from bench.errors import DataError, MissingExtraError
from exporter.data import Split, Splits, stratified_indices

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
MAX_PIXELS = 64_000_000
MAX_FILES = 1_000_000


def load_image_folder(
    root: str | Path,
    *,
    size: int,
    mean: Sequence[float] = (127.0,),
    std: Sequence[float] = (128.0,),
    calibration: int = 256,
    evaluation: int | None = None,
    input_name: str = "image",
    seed: int = 0,
) -> Splits:
    """Read labelled pictures as float32 [N, 3, size, size], (value - mean) / std of 0..255.

    `root` holds either one folder per class, from which `evaluation` samples are drawn, or the folders
    `train` and `evaluation`, each with one folder per class. Classes are numbered in the order of their
    names. The shorter side is scaled to `size`, and the middle is cut out. Calibration samples are drawn
    from those of training; without `evaluation`, a fifth of the pictures is held out.

    Raises:
        DataError: no pictures, one class, classes that differ between the two folders, a file that is
            no picture.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(folder, "is no folder", "name a folder that holds one folder per class")
    normalise = (np.asarray(mean, np.float32), np.asarray(std, np.float32))
    if (folder / "train").is_dir() and (folder / "evaluation").is_dir():
        train, classes = _read_classes(folder / "train", folder, size, normalise, input_name)
        held_out, other = _read_classes(folder / "evaluation", folder, size, normalise, input_name)
        if classes != other:
            raise DataError(folder, f"train has classes {classes}, evaluation {other}", "make them equal")
    else:
        everything, _ = _read_classes(folder, folder, size, normalise, input_name)
        count = everything.count // 5 if evaluation is None else evaluation
        if count < 1 or count >= everything.count:
            raise DataError(
                folder, f"{count} of {everything.count} pictures for evaluation", "keep some for training"
            )
        sizes = {"evaluation": count, "train": everything.count - count}
        drawn = stratified_indices(everything.labels, sizes, seed, str(folder))
        train, held_out = everything.take(drawn["train"]), everything.take(drawn["evaluation"])
    size_of_calibration = {"calibration": min(calibration, train.count)}
    indices = stratified_indices(train.labels, size_of_calibration, seed, str(folder))["calibration"]
    return Splits(train, train.take(indices), held_out)


def resize_images(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Scale grey pictures [N, H, W] to [N, size, size] bilinearly."""
    image = _pillow()
    return np.stack(
        [
            np.asarray(image.fromarray(picture).resize((size, size), image.Resampling.BILINEAR))
            for picture in images
        ]
    )


def _read_classes(
    folder: Path,
    root: Path,
    size: int,
    normalise: tuple[Array, Array],
    input_name: str,
) -> tuple[Split, list[str]]:
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if len(classes) < 2 or not files:
        raise DataError(
            folder, f"holds {len(classes)} classes and {len(files)} pictures", "give one folder per class"
        )
    if len(files) > MAX_FILES:
        raise DataError(folder, f"holds {len(files)} pictures", f"keep it to {MAX_FILES}")
    mean, std = (values.reshape(-1, 1, 1) for values in normalise)
    pixels = np.empty((len(files), 3, size, size), np.float32)
    for index, (path, _) in enumerate(files):
        pixels[index] = (_read_picture(path, size).transpose(2, 0, 1) - mean) / std
    split = Split(
        {input_name: pixels},
        np.array([label for _, label in files], np.int64),
        np.array([path.relative_to(root).as_posix() for path, _ in files]),
    )
    return split, classes


def _read_picture(path: Path, size: int) -> Array:
    image = _pillow()
    try:
        with image.open(path) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise DataError(path, f"has {width} x {height} pixels", f"keep it to {MAX_PIXELS}")
            # Decoding a JPEG at a fraction of its size saves most of the time.
            opened.draft("RGB", (size, size))
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DataError(path, f"is no readable picture ({error})", "remove or replace it") from error
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), image.Resampling.BILINEAR, box=box), np.float32)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("PIL", "export") from error
    return Image
