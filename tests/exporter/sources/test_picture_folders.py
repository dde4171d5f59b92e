"""Layouts of image folders: splits, classes, and skipped files."""

from __future__ import annotations

import os
from itertools import count

import pytest
from PIL import Image

from bench.core.errors import DataError
from exporter import load_image_folder
from exporter.sources.picture_folders import find_pictures, given_splits
from exporter.sources.splits import check_splits

_NUMBERS = count()


def paint(*folders, pictures=2):
    """Write images into each folder, all different."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(pictures):
            number = next(_NUMBERS)
            Image.new("RGB", (4, 4), (number // 256, number % 256, 9)).save(folder / f"{index}.png")


def paint_splits(root, *names, classes=("cat", "dog")):
    paint(*(root / name / one for name in names for one in classes))
    return root


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training_set", "seg_train", "train2017"])
@pytest.mark.parametrize(
    "evaluation", ["val", "valid", "Validation", "test", "TESTING", "eval", "test-images"]
)
def test_splits_are_not_read_as_classes(tmp_path, train, evaluation):
    splits = check_splits(load_image_folder(paint_splits(tmp_path, train, evaluation), size=4), "data")
    assert sorted(set(splits.train.labels)) == sorted(set(splits.evaluation.labels)) == [0, 1]
    assert {name.split("/")[0] for name in (*splits.train.ids, *splits.calibration.ids)} == {train}
    assert {name.split("/")[0] for name in splits.evaluation.ids} == {evaluation}
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["val", "test"], "test"), (["valid", "eval", "test"], "eval"), (["val", "evaluation"], "evaluation")],
)
def test_of_several_evaluation_splits_the_least_tuned_on_is_read(tmp_path, names, chosen):
    splits = load_image_folder(paint_splits(tmp_path, "train", *names), size=4)
    assert {name.split("/")[0] for name in splits.evaluation.ids} == {chosen}
    others = ", ".join(sorted(set(names) - {chosen}))
    skipped = len(names) - 1
    assert splits.notes == (
        f"{tmp_path}: files and folders skipped: {skipped}; outside the splits: {skipped} ({others})",
    )


def test_a_test_folder_without_classes_is_skipped(tmp_path):
    paint_splits(tmp_path, "train", "val")
    paint(tmp_path / "test")
    given = given_splits(tmp_path)
    assert (given.train.name, given.evaluation.name) == ("train", "val")
    assert [entry.path.name for entry in given.skipped] == ["test"]


@pytest.mark.parametrize("names", [["train", "val", "valid"], ["train", "Training", "val"]])
def test_two_folders_of_one_split_are_refused(tmp_path, names):
    with pytest.raises(
        DataError, match=r"contains several folders for one split: .*; keep one folder per split"
    ):
        load_image_folder(paint_splits(tmp_path, *names), size=4)


def test_splits_with_other_classes_are_refused(tmp_path):
    paint_splits(tmp_path, "train")
    paint_splits(tmp_path, "val", classes=("cat", "hound"))
    with pytest.raises(
        DataError,
        match=r"train has classes \['cat', 'dog'\], val has \['cat', 'hound'\]; use the same classes",
    ):
        load_image_folder(tmp_path, size=4)


def test_if_there_are_many_classes_only_the_different_ones_are_named(tmp_path):
    for number in range(11):
        (tmp_path / "train" / f"c{number:02}").mkdir(parents=True)
        (tmp_path / "val" / f"c{number + 1:02}").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train has classes \['c00'\], val has \['c11'\]"):
        given_splits(tmp_path)


def test_splits_without_classes_are_refused(tmp_path):
    paint(tmp_path / "train", tmp_path / "val")
    with pytest.raises(
        DataError,
        match="'train' and 'val' do not both contain one folder per class; add these folders, or rename",
    ):
        load_image_folder(tmp_path, size=4)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [(["train"], "evaluation, test or val"), (["test"], "train"), (["val", "test"], "train")],
)
def test_a_missing_split_is_reported(tmp_path, names, lacking):
    with pytest.raises(
        DataError, match=f"but no folder {lacking}; add that folder, or name a folder that contains one"
    ):
        load_image_folder(paint_splits(tmp_path, *names), size=4)


def test_splits_inside_class_folders_are_refused(tmp_path):
    paint_splits(tmp_path, "cat", "dog", classes=("train", "test"))
    with pytest.raises(
        DataError, match=r"each class folder contains splits, .*; put the classes inside the splits"
    ):
        load_image_folder(tmp_path, size=4)


@pytest.mark.parametrize(
    "classes", [("bus", "train"), ("car", "test"), ("test_tube", "train_station"), ("valid", "void")]
)
def test_classes_may_have_names_of_splits(tmp_path, classes):
    paint(*(tmp_path / name for name in classes), pictures=5)
    splits = load_image_folder(tmp_path, size=4)
    assert splits.train.count + splits.evaluation.count == 10
    assert sorted(set(splits.train.labels)) == [0, 1]


@pytest.fixture
def littered(tmp_path):
    """Two classes of two images, one in a nested folder, and other files as in real folders."""
    root = tmp_path / "pictures"
    paint(root / "cat", root / "dog" / "puppy", root / "dog" / ".thumbnails", root / "__MACOSX")
    for name in (
        "cat/._0.png",
        "cat/notes.txt",
        "cat/clip.mp4",
        "cat/raw.heic",
        "cat/list.csv",
        "README.md",
    ):
        (root / name).write_bytes(b"x")
    (root / "cat" / "gone.png").symlink_to("absent.png")
    (root / "dog" / "more").symlink_to(root / "cat")
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "bird").mkdir()
    return root


def test_the_note_on_skipped_files_gives_reasons_and_a_few_names(littered):
    (note,) = load_image_folder(littered, size=4, evaluation=2).notes
    start, _, rest = note.partition("; ")
    assert start == f"{littered}: files and folders skipped: 12"
    for part in (
        "hidden: 3 (__MACOSX, cat/._0.png, dog/.thumbnails)",
        "outside the class folders: 1 (README.md)",
        "classes without images: 1 (bird)",
        "no image extension: 4 (cat/clip.mp4, cat/list.csv, cat/notes.txt, …)",
        "broken symbolic links: 1 (cat/gone.png)",
        "symbolic links to folders: 1 (dog/more)",
        "not regular files: 1 (dog/pipe.png)",
    ):
        assert part in rest


def test_nested_pictures_belong_to_their_class_and_linked_classes_are_read(littered, tmp_path):
    found = find_pictures(littered)
    names = [(path.relative_to(littered).as_posix(), label) for path, label in found.files]
    assert names == [("cat/0.png", 1), ("cat/1.png", 1), ("dog/puppy/0.png", 2), ("dog/puppy/1.png", 2)]
    paint(tmp_path / "far")
    (littered / "bird").rmdir()
    (littered / "bird").symlink_to(tmp_path / "far")
    assert len(find_pictures(littered).files) == 6


def test_a_folder_that_cannot_be_read_is_named(littered, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("puppy"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=r"dog/puppy: cannot be read \(Permission denied\); fix its permissions"
    ):
        load_image_folder(littered, size=4)


def test_images_with_several_frames_are_noted(tmp_path):
    paint(tmp_path / "cat", tmp_path / "dog")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    assert load_image_folder(tmp_path, size=4, evaluation=2).notes == (
        f"{tmp_path}: images with several frames, only the first was read: 1 (cat/x.gif)",
    )


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(tmp_path, size):
    paint(tmp_path / "cat", tmp_path / "dog")
    with pytest.raises(DataError, match=f"size: is {size}; give the side length of the images in pixels"):
        load_image_folder(tmp_path, size=size)


def test_images_that_do_not_fit_in_memory_are_refused_in_one_line(tmp_path):
    paint(tmp_path / "cat", tmp_path / "dog")
    with pytest.raises(DataError, match=r"4 images of \d+ x \d+ pixels do not fit in memory; use fewer"):
        load_image_folder(tmp_path, size=10**7)
