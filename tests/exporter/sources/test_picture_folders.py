"""How folders of pictures are understood, and what is said of the rest."""

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
    """Pictures in each folder, no two of them alike."""
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
def test_given_splits_are_no_classes(tmp_path, train, evaluation):
    splits = check_splits(load_image_folder(paint_splits(tmp_path, train, evaluation), size=4), "data")
    assert sorted(set(splits.train.labels)) == sorted(set(splits.evaluation.labels)) == [0, 1]
    assert {name.split("/")[0] for name in (*splits.train.ids, *splits.calibration.ids)} == {train}
    assert {name.split("/")[0] for name in splits.evaluation.ids} == {evaluation}
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["val", "test"], "test"), (["valid", "eval", "test"], "eval"), (["val", "evaluation"], "evaluation")],
)
def test_of_several_to_evaluate_on_the_last_to_be_seen_is_read(tmp_path, names, chosen):
    splits = load_image_folder(paint_splits(tmp_path, "train", *names), size=4)
    assert {name.split("/")[0] for name in splits.evaluation.ids} == {chosen}
    others = ", ".join(sorted(set(names) - {chosen}))
    skipped = len(names) - 1
    assert splits.notes == (
        f"{tmp_path}: files and folders skipped: {skipped}; beside the splits: {skipped} ({others})",
    )


def test_a_test_folder_without_labels_is_not_evaluated_on(tmp_path):
    paint_splits(tmp_path, "train", "val")
    paint(tmp_path / "test")
    given = given_splits(tmp_path)
    assert (given.train.name, given.evaluation.name) == ("train", "val")
    assert [entry.path.name for entry in given.skipped] == ["test"]


@pytest.mark.parametrize("names", [["train", "val", "valid"], ["train", "Training", "val"]])
def test_two_folders_of_one_split_are_refused(tmp_path, names):
    with pytest.raises(DataError, match=r"holds several folders of one split: .*; keep one of each"):
        load_image_folder(paint_splits(tmp_path, *names), size=4)


def test_splits_with_other_classes_are_refused(tmp_path):
    paint_splits(tmp_path, "train")
    paint_splits(tmp_path, "val", classes=("cat", "hound"))
    with pytest.raises(
        DataError, match=r"train has classes \['cat', 'dog'\], val \['cat', 'hound'\]; make them equal"
    ):
        load_image_folder(tmp_path, size=4)


def test_of_many_classes_the_different_ones_are_named(tmp_path):
    for number in range(11):
        (tmp_path / "train" / f"c{number:02}").mkdir(parents=True)
        (tmp_path / "val" / f"c{number + 1:02}").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train has classes \['c00'\], val \['c11'\]"):
        given_splits(tmp_path)


def test_splits_without_classes_are_refused(tmp_path):
    paint(tmp_path / "train", tmp_path / "val")
    with pytest.raises(
        DataError,
        match="'train' and 'val' do not both hold one folder per class; add these folders, or rename",
    ):
        load_image_folder(tmp_path, size=4)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [(["train"], "evaluation, test or val"), (["test"], "train"), (["val", "test"], "train")],
)
def test_half_of_the_splits_is_refused(tmp_path, names, lacking):
    with pytest.raises(
        DataError, match=f"and no folder {lacking}; add it, or name a folder that holds one"
    ):
        load_image_folder(paint_splits(tmp_path, *names), size=4)


def test_splits_below_the_classes_are_refused(tmp_path):
    paint_splits(tmp_path, "cat", "dog", classes=("train", "test"))
    with pytest.raises(
        DataError, match=r"each of its classes holds splits, .*; put the splits above the classes"
    ):
        load_image_folder(tmp_path, size=4)


@pytest.mark.parametrize(
    "classes", [("bus", "train"), ("car", "test"), ("test_tube", "train_station"), ("valid", "void")]
)
def test_classes_may_be_called_as_splits_are(tmp_path, classes):
    paint(*(tmp_path / name for name in classes), pictures=5)
    splits = load_image_folder(tmp_path, size=4)
    assert splits.train.count + splits.evaluation.count == 10
    assert sorted(set(splits.train.labels)) == [0, 1]


@pytest.fixture
def littered(tmp_path):
    """Two classes of two pictures, one in a nested folder, and what lies about in real folders."""
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


def test_what_is_skipped_is_told_with_a_few_names(littered):
    (note,) = load_image_folder(littered, size=4, evaluation=2).notes
    start, _, rest = note.partition("; ")
    assert start == f"{littered}: files and folders skipped: 12"
    for part in (
        "hidden: 3 (__MACOSX, cat/._0.png, dog/.thumbnails)",
        "outside the folders of classes: 1 (README.md)",
        "classes without a picture: 1 (bird)",
        "not named as pictures: 4 (cat/clip.mp4, cat/list.csv, cat/notes.txt, …)",
        "broken links: 1 (cat/gone.png)",
        "links to folders: 1 (dog/more)",
        "no regular files: 1 (dog/pipe.png)",
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


def test_pictures_of_several_frames_are_told(tmp_path):
    paint(tmp_path / "cat", tmp_path / "dog")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    assert load_image_folder(tmp_path, size=4, evaluation=2).notes == (
        f"{tmp_path}: pictures of several frames, of which the first was read: 1 (cat/x.gif)",
    )


@pytest.mark.parametrize("size", [0, -1])
def test_a_picture_has_a_side(tmp_path, size):
    paint(tmp_path / "cat", tmp_path / "dog")
    with pytest.raises(DataError, match=f"size: is {size}; give the side of the pictures in pixels"):
        load_image_folder(tmp_path, size=size)


def test_more_pictures_than_memory_give_one_line(tmp_path):
    paint(tmp_path / "cat", tmp_path / "dog")
    with pytest.raises(DataError, match=r"4 pictures of \d+ x \d+ pixels do not fit in memory; take fewer"):
        load_image_folder(tmp_path, size=10**7)
