"""One picture from a file: upright, in RGB, 8 bits a channel, however the file stores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import DataError, MissingExtraError
from exporter.process import warnings_ignored

# What a file may be, whatever its name says. Others, such as EPS, start further programs.
FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
# Formats whose 32-bit values are 16-bit ones in a wider type.
_SIXTEEN_BITS = frozenset({"PNG", "PPM"})
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Picture:
    """What was read of a file.

    Attributes:
        image: of Pillow, mode RGB, upright.
        animated: whether the file holds further pictures that were not read.
    """

    image: Any
    animated: bool


def read_picture(path: Path, *, max_pixels: int, least: int | None = None) -> Picture:
    """Read a picture as a person sees it.

    It is turned as its EXIF orientation says. Transparent parts show white. 16-bit grey is scaled to 8
    bits, and so are floats from 0 to 1; the colour profile is not applied. Of several frames the first is
    read.

    Args:
        path: of the file.
        max_pixels: larger pictures are refused before they are decoded.
        least: the shorter side that is needed, in pixels; a JPEG may be decoded at a fraction of its size.

    Raises:
        DataError: the file is damaged or too large, or nothing says which of its values is white.
    """
    library = pillow()
    library.init()
    try:
        with warnings_ignored():  # of large pictures and odd metadata; what matters is raised
            formats = sorted(FORMATS & library.OPEN.keys())
            # From a path, Pillow maps the bytes of a turned TIFF with width and height exchanged.
            with path.open("rb") as stream, library.open(stream, formats=formats) as opened:
                return _decode(library, opened, path, max_pixels, least)
    except DataError:
        raise
    except library.UnidentifiedImageError as error:
        cause = "is not a readable picture (its content is of no known format)"
        raise DataError(path, cause, "remove or replace it") from error
    except Exception as error:  # damaged files raise whatever their readers stumble over
        cause = str(error) or type(error).__name__
        raise DataError(path, f"is not a readable picture ({cause})", "remove or replace it") from error


def square(picture: Picture, size: int) -> npt.NDArray[np.float32]:
    """The middle of a picture, its shorter side scaled to `size`: [size, size, 3], values 0..255."""
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
        raise DataError(path, f"has {width} x {height} pixels", f"keep it to {max_pixels}")
    # A JPEG with a preview, as cameras write it, is one picture.
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
    """A grey picture of more than 8 bits, in 8; Pillow itself would cut values off at 255."""
    values = np.asarray(opened)
    if opened.mode == "F":
        low, high = float(values.min()), float(values.max())
        white = 1.0 if low >= 0 and high <= 1 else None  # None for NaN too
    elif opened.mode == "I" and opened.format not in _SIXTEEN_BITS:
        white = None
    else:
        white = float(2 ** _bits(opened) - 1)
    if white is None:
        reach = f"{values.min():g} to {values.max():g}"
        raise DataError(
            path,
            f"holds 32-bit values from {reach}, and nothing says which of them is white",
            "save it with 8 or 16 bits a channel",
        )
    scaled = np.rint(values.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
    if opened.format == "TIFF" and opened.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    if isinstance(transparent := opened.info.get("transparency"), int):
        scaled = np.where(values == transparent, np.uint8(255), scaled)
    return library.fromarray(scaled)


def _bits(opened: Any) -> int:
    """Bits of a sample: 16 but for TIFF, which tells."""
    return int(opened.tag_v2.get(_TIFF_BITS, (16,))[0]) if opened.format == "TIFF" else 16


def _orientation(opened: Any) -> int:
    """How the picture lies in its file, 1 to 8 as EXIF counts; 1, upright, where nothing is said."""
    try:
        return int(opened.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (damaged metadata of a sound picture)
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
