"""Read the user's images from folders: one folder per class, or splits with one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.core.arrays import Array
from bench.core.errors import DataError
from exporter.sources.picture_folders import (
    FoundPictures,
    few_names,
    find_pictures,
    given_splits,
    skipped_note,
)
from exporter.sources.pictures import pillow, read_picture, square
from exporter.sources.splits import Split, Splits, stratified_indices

MAX_PIXELS = 64_000_000
MAX_FILES = 1_000_000


@dataclass(frozen=True)
class _Wanted:
    """Form of the arrays: float32 [3, size, size], (value - mean) / std; ids are paths in `root`."""

    root: Path
    size: int
    mean: Array
    std: Array
    input_name: str


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
    """Read labelled images as float32 [N, 3, size, size], (value - mean) / std of values 0..255.

    `root` contains one of two layouts:

    - One folder per class. The evaluation samples are drawn from them.
    - Splits, each with one folder per class: `train` (or `training`), and one of `evaluation` (`eval`),
      `test` (`testing`) and `val` (`valid`, `validation`). If there are several evaluation folders, the
      first in this order is used. Upper and lower case do not matter.

    Classes are numbered in the alphabetical order of their folders. Calibration samples are drawn from the
    training samples.

    An image is rotated by its EXIF orientation. Transparent parts become white, and 16-bit grey values are
    scaled to 8 bits. If an image has several frames, the first is read. The shorter side is scaled to
    `size`, and the centre is cropped. The `notes` of the result list files that were not read.

    Args:
        root: the folder.
        size: side length of the images in pixels.
        mean: mean to subtract, on the scale 0 to 255: one number, or one per channel.
        std: standard deviation to divide by, on the scale 0 to 255: one number, or one per channel.
        calibration: number of calibration samples, at most all training samples.
        evaluation: number of evaluation samples to draw; by default a fifth of all images. It has no effect
            if `root` contains splits.
        input_name: name of the model's input.
        seed: seed of the draw.

    Raises:
        DataError: there are no images or only one class, the classes of the two splits differ, the layout
            is unclear, or an image is damaged or too large.

    Examples:
        >>> import exporter
        >>> splits = exporter.load_image_folder("pictures", size=8)
        >>> splits.train.inputs["image"].shape[1:], splits.evaluation.count
        ((3, 8, 8), 4)
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(folder, "is not a folder", "name a folder that contains one folder per class")
    if size < 1:
        raise DataError("size", f"is {size}", "give the side length of the images in pixels, at least 1")
    offset, scale = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    wanted = _Wanted(folder, size, offset, scale, input_name)
    given = given_splits(folder)
    if given is not None:
        found = [find_pictures(given.train), find_pictures(given.evaluation)]
        train, train_frames = _read_pictures(found[0], given.train, wanted)
        held_out, more_frames = _read_pictures(found[1], given.evaluation, wanted)
        skipped = [*given.skipped, *found[0].skipped, *found[1].skipped]
        animated = [*train_frames, *more_frames]
    else:
        whole = find_pictures(folder)
        everything, animated = _read_pictures(whole, folder, wanted)
        skipped = list(whole.skipped)
        train, held_out = _held_out(everything, evaluation, seed, folder)
    size_of_calibration = {"calibration": min(calibration, train.count)}
    indices = stratified_indices(train.labels, size_of_calibration, seed, str(folder))["calibration"]
    notes = (*skipped_note(folder, skipped), *_animated_note(folder, animated))
    return Splits(train, train.take(indices), held_out, notes=notes)


def resize_images(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Scale grey images [N, H, W] to [N, size, size] with bilinear interpolation.

    Examples:
        >>> import exporter
        >>> import numpy as np
        >>> exporter.resize_images(np.zeros((2, 28, 28), np.uint8), 64).shape
        (2, 64, 64)
    """
    image = pillow()
    return np.stack(
        [
            np.asarray(image.fromarray(picture).resize((size, size), image.Resampling.BILINEAR))
            for picture in images
        ]
    )


def _held_out(everything: Split, evaluation: int | None, seed: int, folder: Path) -> tuple[Split, Split]:
    """Draw evaluation samples from each class; return the training samples and the evaluation samples."""
    count = everything.count // 5 if evaluation is None else evaluation
    if count < 1 or count >= everything.count:
        raise DataError(
            folder,
            f"evaluation takes {count} of {everything.count} images",
            f"choose evaluation from 1 to {everything.count - 1}",
        )
    sizes = {"evaluation": count, "train": everything.count - count}
    drawn = stratified_indices(everything.labels, sizes, seed, str(folder))
    return everything.take(drawn["train"]), everything.take(drawn["evaluation"])


def _read_pictures(found: FoundPictures, folder: Path, wanted: _Wanted) -> tuple[Split, list[Path]]:
    """Read all images of a folder; return them, and the files with several frames."""
    classes, files, size = found.classes, found.files, wanted.size
    if len(classes) < 2 or not files:
        raise DataError(
            folder,
            f"contains {len(classes)} classes and {len(files)} images",
            "create one folder per class, at least two, with images in them",
        )
    if len(files) > MAX_FILES:
        raise DataError(folder, f"contains {len(files)} images", f"use at most {MAX_FILES}")
    try:
        pixels = np.empty((len(files), 3, size, size), np.float32)
    except MemoryError as error:
        raise DataError(
            folder,
            f"{len(files)} images of {size} x {size} pixels do not fit in memory",
            "use fewer images or a smaller size",
        ) from error
    animated = []
    for index, (path, _) in enumerate(files):
        picture = read_picture(path, max_pixels=MAX_PIXELS, least=size)
        pixels[index] = (square(picture, size).transpose(2, 0, 1) - wanted.mean) / wanted.std
        if picture.animated:
            animated.append(path)
    split = Split(
        {wanted.input_name: pixels},
        np.array([label for _, label in files], np.int64),
        np.array([path.relative_to(wanted.root).as_posix() for path, _ in files]),
    )
    return split, animated


def _animated_note(root: Path, animated: Sequence[Path]) -> tuple[str, ...]:
    if not animated:
        return ()
    names = few_names(root, animated)
    return (f"{root}: images with several frames, only the first was read: {len(animated)} ({names})",)
