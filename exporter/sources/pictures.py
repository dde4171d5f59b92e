"""Read one image from a file as upright RGB with 8 bits per channel, whatever the file format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import DataError, MissingExtraError
from exporter.process import warnings_ignored

# Accepted formats, recognized by content, not by name. To read some other formats, for example EPS, Pillow
# starts other programs.
FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
# Formats whose 16-bit values Pillow returns in 32-bit arrays.
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Picture:
    """An image that was read from a file.

    Attributes:
        image: Pillow image, mode RGB, upright.
        animated: whether the file contains more frames, which were not read.
    """

    image: Any
    animated: bool


def read_picture(path: Path, *, max_pixels: int, least: int | None = None) -> Picture:
    """Read an image as an image viewer shows it.

    The image is rotated by its EXIF orientation. Transparent parts become white. 16-bit grey values and
    floats from 0 to 1 are scaled to 8 bits. The colour profile is not applied. If there are several frames,
    the first is read.

    Args:
        path: path of the file.
        max_pixels: images with more pixels are refused before they are decoded.
        least: length in pixels that the shorter side needs; a larger JPEG may be decoded at a reduced size
            of at least this length.

    Raises:
        DataError: the file is damaged or too large, or its value for white is unknown.
    """
    library = pillow()
    library.init()
    try:
        with warnings_ignored():  # warnings about large images and odd metadata; real problems raise
            formats = sorted(FORMATS & library.OPEN.keys())
            # If Pillow opens a rotated TIFF by its path, it maps the bytes with width and height exchanged.
            with path.open("rb") as stream, library.open(stream, formats=formats) as opened:
                return _decode(library, opened, path, max_pixels, least)
    except DataError:
        raise
    except library.UnidentifiedImageError as error:
        cause = "is not a readable image (its format is unknown)"
        raise DataError(path, cause, "remove or replace it") from error
    except Exception as error:  # the decoders raise exceptions of many types for damaged files
        cause = str(error) or type(error).__name__
        raise DataError(path, f"is not a readable image ({cause})", "remove or replace it") from error


def square(picture: Picture, size: int) -> npt.NDArray[np.float32]:
    """The centre crop of an image, its shorter side scaled to `size`: [size, size, 3], values 0..255."""
    library = pillow()
    width, height = picture.image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    scaled = picture.image.resize((size, size), library.Resampling.BILINEAR, box=box)
    return np.asarray(scaled, np.float32)


def pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("PIL", "export") from error
    return Image


def _decode(library: Any, opened: Any, path: Path, max_pixels: int, least: int | None) -> Picture:
    width, height = opened.size
    if width * height > max_pixels:
        raise DataError(path, f"has {width} x {height} pixels", f"use at most {max_pixels} pixels")
    # Cameras write a JPEG and a preview as one MPO file; the preview is not a second frame.
    animated = opened.format != "MPO" and bool(getattr(opened, "is_animated", False))
    if least is not None:  # decoding a JPEG at a fraction of its size saves most of the time
        opened.draft("RGB", (least, least))
    opened.load()
    return Picture(_upright(library, _rgb(library, opened, path), _orientation(opened)), animated)


def _rgb(library: Any, opened: Any, path: Path) -> Any:
    if opened.mode[0] in "IF":  # "I", "I;16", "I;16B", "F" and the like
        return _grey(library, opened, path).convert("RGB")
    if not opened.has_transparency_data:
        return opened.convert("RGB")
    layer = opened.convert("RGBA")
    white = library.new("RGBA", layer.size, "white")
    return library.alpha_composite(white, layer).convert("RGB")


def _grey(library: Any, opened: Any, path: Path) -> Any:
    """Scale a grey image of more than 8 bits to 8 bits; Pillow itself would clip values at 255."""
    values = np.asarray(opened)
    if opened.mode == "F":
        low, high = float(values.min()), float(values.max())
        white = 1.0 if low >= 0 and high <= 1 else None  # also None if a value is NaN
    elif opened.mode == "I" and opened.format not in _SIXTEEN_BITS:
        white = None
    else:
        white = float(2 ** _bits(opened) - 1)
    if white is None:
        reach = f"{values.min():g} to {values.max():g}"
        raise DataError(
            path,
            f"contains 32-bit values from {reach}, and its value for white is unknown",
            "save it with 8 or 16 bits per channel",
        )
    scaled = np.rint(values.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
    if opened.format == "TIFF" and opened.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    if isinstance(transparent := opened.info.get("transparency"), int):
        scaled = np.where(values == transparent, np.uint8(255), scaled)
    return library.fromarray(scaled)


def _bits(opened: Any) -> int:
    """Bits per value: stated in a TIFF file, 16 in other formats."""
    return int(opened.tag_v2.get(_TIFF_BITS, (16,))[0]) if opened.format == "TIFF" else 16


def _orientation(opened: Any) -> int:
    """The EXIF orientation of an image, from 1 to 8; 1 (upright) if the file states none."""
    try:
        return int(opened.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (the metadata may be damaged although the image is not)
        return 1


def _upright(library: Any, image: Any, orientation: int) -> Any:
    turn = library.Transpose
    methods = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(methods[orientation]) if orientation in methods else image
