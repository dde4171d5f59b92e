"""Image files: bit depth, transparency, orientation, frames, and refused files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from bench.core.errors import DataError
from exporter.sources.pictures import read_picture, square

GREY = np.array([[0, 25700], [51400, 65535]], np.uint16)  # 0, 100, 200 and 255 of 255


def pixels(path, **options):
    """Read an image file as uint8 [H, W, 3]."""
    picture = read_picture(path, **{"max_pixels": 1000} | options)
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image)


def grey(path):
    """Read a grey image file as a list [H, W]."""
    found = pixels(path)
    assert (found[..., :1] == found).all()
    return found[..., 0].tolist()


def write_tiff(path, bits, photometric, data, *, wide=2):
    """Write an uncompressed, little-endian grey TIFF with two rows."""
    tags = [(256, wide), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 2)]
    tags.append((279, len(data)))
    start = 8 + len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, start) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_grey_of_sixteen_bits_is_scaled(tmp_path, ending):
    Image.fromarray(GREY).save(tmp_path / f"x.{ending}")
    assert grey(tmp_path / f"x.{ending}") == [[0, 100], [200, 255]]


def test_grey_of_sixteen_bits_may_be_big_endian(tmp_path):
    Image.frombytes("I;16B", (2, 2), GREY.astype(">u2").tobytes()).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as opened:
        assert opened.mode == "I;16B"
    assert grey(tmp_path / "x.tif") == [[0, 100], [200, 255]]


def test_bits_and_white_value_of_a_tiff_are_used(tmp_path):
    write_tiff(tmp_path / "inverse.tif", 16, 0, GREY.tobytes())
    assert grey(tmp_path / "inverse.tif") == [[255, 155], [55, 0]]
    write_tiff(tmp_path / "twelve.tif", 12, 1, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00]))
    assert grey(tmp_path / "twelve.tif") == [[0, 255], [128, 0]]


def test_the_transparent_value_of_deep_grey_is_white(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.png", transparency=25700)
    assert grey(tmp_path / "x.png") == [[0, 255], [200, 255]]


def test_floats_from_zero_to_one_are_scaled(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 65535).save(tmp_path / "x.tiff")
    assert grey(tmp_path / "x.tiff") == [[0, 100], [200, 255]]


@pytest.mark.parametrize(
    ("values", "reach"),
    [
        (GREY.astype(np.int32), "0 to 65535"),
        (GREY.astype(np.float32), "0 to 65535"),
        (np.array([[-0.5, 1.0]], np.float32), "-0.5 to 1"),
        (np.array([[np.nan, 1.0]], np.float32), "nan to nan"),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, reach):
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(DataError) as caught:
        pixels(tmp_path / "x.tiff")
    assert caught.value.cause == f"contains 32-bit values from {reach}, and its value for white is unknown"


CLEAR_RED, HALF_RED, RED = (255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255)


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_transparent_parts_show_white(tmp_path, ending):
    picture = Image.new("RGBA", (3, 1))
    for x, colour in enumerate((CLEAR_RED, HALF_RED, RED)):
        picture.putpixel((x, 0), colour)
    picture.save(tmp_path / f"x.{ending}", **({"lossless": True} if ending == "webp" else {}))
    assert pixels(tmp_path / f"x.{ending}").tolist() == [[[255, 255, 255], [255, 127, 127], [255, 0, 0]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_transparent_colour_shows_white(tmp_path, mode):
    picture = Image.new(mode, (2, 1), 0)
    if mode == "P":
        picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), (0, 0, 255) if mode == "RGB" else 1)
    picture.save(tmp_path / "x.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    first, second = pixels(tmp_path / "x.png")[0].tolist()
    assert first == [255, 255, 255]
    assert second == {"RGB": [0, 0, 255], "L": [1, 1, 1], "P": [0, 0, 255], "1": [255, 255, 255]}[mode]


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 7, "png", (7, 7, 7)),
        ("LA", (7, 255), "png", (7, 7, 7)),
        ("P", 1, "png", (9, 8, 7)),
        ("P", 1, "gif", (9, 8, 7)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), "tiff", (0, 0, 0)),
        ("RGB", (9, 8, 7), "bmp", (9, 8, 7)),
        ("RGB", (9, 8, 7), "ppm", (9, 8, 7)),
    ],
)
def test_every_common_mode_becomes_rgb(tmp_path, mode, colour, ending, expected):
    picture = Image.new(mode, (2, 3), colour)
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.save(tmp_path / f"x.{ending}")
    assert (pixels(tmp_path / f"x.{ending}") == expected).all()


def test_a_jpeg_in_cmyk_is_read(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    assert np.abs(pixels(tmp_path / "x.jpg").astype(int) - (255, 0, 0)).max() < 5


TURNED = {
    1: [[1, 2], [3, 4], [5, 6]],
    2: [[2, 1], [4, 3], [6, 5]],
    3: [[6, 5], [4, 3], [2, 1]],
    4: [[5, 6], [3, 4], [1, 2]],
    5: [[1, 3, 5], [2, 4, 6]],
    6: [[5, 3, 1], [6, 4, 2]],
    7: [[6, 4, 2], [5, 3, 1]],
    8: [[2, 4, 6], [1, 3, 5]],
    9: [[1, 2], [3, 4], [5, 6]],
}


@pytest.mark.parametrize(("orientation", "expected"), TURNED.items())
@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_is_rotated_upright(tmp_path, orientation, expected, ending, dtype):
    stored = np.array(TURNED[1], dtype) * (257 if dtype is np.uint16 else 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{ending}", exif=exif)
    assert grey(tmp_path / f"x.{ending}") == expected


def test_a_jpeg_decoded_at_a_smaller_size_is_rotated_upright(tmp_path):
    stored = np.zeros((64, 128), np.uint8)
    stored[:, :64] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "x.jpg", exif=exif)
    found = pixels(tmp_path / "x.jpg", least=16, max_pixels=64 * 128)
    assert found.shape == (32, 16, 3)
    assert found[:12].min() > 200
    assert found[-12:].max() < 50


def test_damaged_metadata_are_ignored(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "x.png", exif=b"Exif\0\0no metadata at all")
    assert (pixels(tmp_path / "x.png") == (255, 0, 0)).all()


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_frames_is_read_and_the_others_are_reported(tmp_path, ending):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / f"one.{ending}")
    many, one = (read_picture(tmp_path / f"{name}.{ending}", max_pixels=16) for name in ("many", "one"))
    assert (many.animated, one.animated) == (True, False)
    assert np.abs(np.asarray(many.image).astype(int) - (255, 0, 0)).max() < 5


def test_a_camera_preview_is_not_a_second_frame(tmp_path):
    photo, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "red")
    photo.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview])
    found = read_picture(tmp_path / "x.jpg", max_pixels=256)
    assert (found.animated, found.image.size) == (False, (16, 16))


@pytest.mark.parametrize("ending", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_a_truncated_picture_is_named(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        DataError, match=rf"x\.{ending}: is not a readable image \(.+\); remove or replace it"
    ):
        pixels(path)


def test_an_eps_file_is_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png", "EPS")
    with pytest.raises(DataError, match="is not a readable image"):
        pixels(tmp_path / "x.png")


@pytest.mark.parametrize("limit", [50, 150, 10**9])
def test_a_picture_with_too_many_pixels_gives_one_line(tmp_path, monkeypatch, limit):
    Image.new("RGB", (20, 12)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(
        DataError, match=r"x\.png: (has 20 x 12 pixels; use|is not a readable image)"
    ) as caught:
        pixels(tmp_path / "x.png", max_pixels=239)
    assert "\n" not in str(caught.value)


def test_the_square_is_cropped_from_the_rotated_image(tmp_path):
    stored = np.zeros((10, 30, 3), np.uint8)
    stored[:, 10:20] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    found = square(read_picture(tmp_path / "x.png", max_pixels=300), 10)
    assert (found.shape, found.dtype, found.min()) == ((10, 10, 3), np.float32, 200)
