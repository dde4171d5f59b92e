"""`load_image_folder` on folders of real images."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from PIL import Image

from bench.core.errors import DataError, MissingExtraError
from exporter import load_image_folder, resize_images
from exporter.sources import images
from exporter.sources.splits import check_splits

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def paint(folder, count, *, suffix="png", size=(20, 12)):
    """Write `count` images per class in the colour of the class; one pixel makes each image different."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.new("RGB", size, colour)
            picture.putpixel((size[0] // 2, size[1] // 2), (index * 7 % 256, 255, index))
            picture.save(folder / name / f"{index:02}.{suffix}")
    return folder


@pytest.fixture
def flat(tmp_path):
    return paint(tmp_path / "pictures", 10)


@pytest.fixture
def ready(tmp_path):
    paint(tmp_path / "ready" / "train", 6)
    paint(tmp_path / "ready" / "evaluation", 4, size=(16, 16))
    return tmp_path / "ready"


def test_one_folder_per_class(flat):
    splits = check_splits(load_image_folder(flat, size=8, calibration=6), "data")
    assert [s.count for s in (splits.train, splits.calibration, splits.evaluation)] == [16, 6, 4]
    assert np.bincount(splits.evaluation.labels).tolist() == [2, 2]
    image = splits.train.inputs["image"]
    assert (image.shape, image.dtype) == ((16, 3, 8, 8), np.float32)
    # blue is class 0: its corner is (0 - 127) / 128 in red and 1 in blue
    blue = image[splits.train.labels == 0][:, :, 0, 0]
    assert np.allclose(blue, [-127 / 128, -127 / 128, 1.0])
    assert all(
        name.split("/")[0] == sorted(COLOURS)[label]
        for name, label in zip(splits.train.ids, splits.train.labels, strict=True)
    )


def test_calibration_comes_from_train_and_evaluation_from_elsewhere(flat):
    splits = load_image_folder(flat, size=8)
    assert set(splits.calibration.ids) <= set(splits.train.ids)
    assert set(splits.evaluation.ids).isdisjoint(splits.train.ids)
    assert splits.calibration.count == splits.train.count  # fewer than the 256 of the default


def test_given_splits_are_read(ready):
    splits = check_splits(load_image_folder(str(ready), size=8, input_name="x"), "data")
    assert (splits.train.count, splits.evaluation.count) == (12, 8)
    assert splits.evaluation.ids[0] == "evaluation/blue/00.png"
    assert set(splits.train.inputs) == {"x"}


def test_jpegs_and_stray_files(tmp_path):
    folder = paint(tmp_path / "pictures", 5, suffix="JPG", size=(64, 48))
    (folder / "red" / "notes.txt").write_text("no picture")
    (folder / ".cache").mkdir()
    (folder / "red" / "deeper").mkdir()
    Image.new("L", (9, 9)).save(folder / "red" / "deeper" / "grey.jpeg")
    splits = load_image_folder(folder, size=8, evaluation=3)
    assert splits.train.count + splits.evaluation.count == 11
    assert splits.train.inputs["image"][0].shape == (3, 8, 8)


def test_the_centre_is_cropped(tmp_path):
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(picture + np.uint8(index)).save(tmp_path / name / f"{index}.png")
    splits = load_image_folder(tmp_path, size=10, mean=(0.0, 0.0, 0.0), std=(1.0, 2.0, 4.0), evaluation=2)
    image = splits.train.inputs["image"][0]
    for channel, std in enumerate((1.0, 2.0, 4.0)):
        assert np.allclose(image[channel], 200 / std, atol=1 / std)


def test_the_draw_depends_on_the_seed(flat):
    one, same, other = (load_image_folder(flat, size=4, seed=seed) for seed in (0, 0, 1))
    assert one.train.ids.tolist() == same.train.ids.tolist() != other.train.ids.tolist()


@pytest.mark.parametrize("content", [b"", b"no picture at all", None])
def test_a_damaged_image_is_named(flat, content):
    path = flat / "red" / "03.png"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(DataError, match=r"red/03.png: is not a readable image .*; remove or replace it"):
        load_image_folder(flat, size=8)


def test_one_class_and_no_pictures(flat, tmp_path):
    for picture in (flat / "red").iterdir():
        picture.unlink()
    assert load_image_folder(flat, size=4, evaluation=2).train.count == 8
    (flat / "red").rmdir()
    with pytest.raises(DataError, match="contains 1 classes and 10 images; create one folder per class"):
        load_image_folder(flat, size=4)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "b").mkdir()
    with pytest.raises(DataError, match="contains 2 classes and 0 images"):
        load_image_folder(tmp_path / "empty", size=4)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_image_folder(tmp_path / "absent", size=4)


def test_classes_must_be_the_same_in_both_folders(ready):
    (ready / "evaluation" / "red").rename(ready / "evaluation" / "rot")
    with pytest.raises(
        DataError, match=r"train has classes \['blue', 'red'\], evaluation has \['blue', 'rot'\]"
    ):
        load_image_folder(ready, size=4)


@pytest.mark.parametrize("evaluation", [0, -1, 20, 21])
def test_training_and_evaluation_both_need_images(flat, evaluation):
    with pytest.raises(DataError, match=f"takes {evaluation} of 20 images; choose evaluation from 1 to 19"):
        load_image_folder(flat, size=4, evaluation=evaluation)


def test_pictures_can_be_too_large_or_too_many(flat, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 20 * 12 - 1)
    with pytest.raises(DataError, match="has 20 x 12 pixels; use at most 239"):
        load_image_folder(flat, size=4)
    monkeypatch.setattr(images, "MAX_FILES", 19)
    with pytest.raises(DataError, match="contains 20 images; use at most 19"):
        load_image_folder(flat, size=4)


def test_a_decompression_bomb_is_refused(flat, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match="is not a readable image"):
        load_image_folder(flat, size=4)


def test_grey_pictures_are_scaled():
    pictures = np.zeros((2, 4, 4), np.uint8)
    pictures[1] = 200
    scaled = resize_images(pictures, 8)
    assert (scaled.shape, scaled.dtype) == ((2, 8, 8), np.uint8)
    assert (scaled[0].max(), scaled[1].min()) == (0, 200)


def test_a_missing_pillow_is_reported(flat, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "PIL":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "PIL")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r'pip install .*"edgeproof\[export\]"'):
        resize_images(np.zeros((1, 2, 2), np.uint8), 4)
