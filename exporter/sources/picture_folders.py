"""Find labelled images below a folder: its splits, their classes, and the files that are skipped."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import DataError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
TRAINING = frozenset({"train", "training"})
# If there are several, the first is used: on a split that a training was tuned on, accuracy is too high.
EVALUATION = (
    frozenset({"evaluation", "eval"}),
    frozenset({"test", "testing"}),
    frozenset({"validation", "valid", "val"}),
)
_SPLITS = TRAINING.union(*EVALUATION)
# Folder of metadata in archives that were made on macOS.
_HIDDEN = "__MACOSX"
NAMED = 3


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, with the reason in a few words."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FoundPictures:
    """Images in one folder per class.

    Attributes:
        classes: names of the classes; the label of a class is its index.
        files: (path, label) of each image, sorted by path within a class.
        skipped: other files and folders.
    """

    classes: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class GivenSplits:
    """The training and the evaluation folder, which contain the same classes, and skipped paths."""

    train: Path
    evaluation: Path
    skipped: tuple[Skipped, ...]


def given_splits(root: Path) -> GivenSplits | None:
    """Find the splits in a folder, for example `train` and `val`; None if its folders are classes.

    Upper and lower case do not matter. A name that contains such a word, for example `training_set`, is
    accepted if both folders contain the same classes.

    Raises:
        DataError: folders are named like splits, but the layout is unclear.
    """
    folders = _folders(root)
    training = [folder for folder in folders if _is_one_of(folder, TRAINING)]
    evaluating = [[folder for folder in folders if _is_one_of(folder, names)] for names in EVALUATION]
    for candidates in evaluating:
        agreeing = [
            (train, evaluation)
            for train in training
            for evaluation in candidates
            if train != evaluation
            and _class_names(train)
            and _class_names(train) == _class_names(evaluation)
        ]
        if len(agreeing) > 1:
            names = sorted({folder.name for pair in agreeing for folder in pair})
            raise DataError(
                root, f"contains several folders for one split: {names}", "keep one folder per split"
            )
        if agreeing:
            train, evaluation = agreeing[0]
            skipped = [Skipped(path, "outside the splits") for path in _entries(root)]
            kept = tuple(entry for entry in skipped if entry.path not in {train, evaluation})
            return GivenSplits(train, evaluation, kept)
    _refuse_unclear(root, folders)
    return None


def find_pictures(folder: Path) -> FoundPictures:
    """Find all images below the class folders in `folder`, by their file name extensions.

    Raises:
        DataError: a folder cannot be read.
    """
    classes = _folders(folder)
    files: list[tuple[Path, int]] = []
    skipped = [_beside_classes(path) for path in _entries(folder) if path not in classes]
    for label, one in enumerate(classes):
        pictures, others = _walk(one)
        files += [(path, label) for path in pictures]
        skipped += others if pictures else [*others, Skipped(one, "classes without images")]
    return FoundPictures(tuple(path.name for path in classes), tuple(files), tuple(skipped))


def skipped_note(root: Path, skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """A note about skipped paths, with a few names for each reason; empty if there are none."""
    if not skipped:
        return ()
    reasons: dict[str, list[Path]] = {}
    for entry in skipped:
        reasons.setdefault(entry.reason, []).append(entry.path)
    parts = [f"{reason}: {len(paths)} ({few_names(root, paths)})" for reason, paths in reasons.items()]
    return (f"{root}: files and folders skipped: {len(skipped)}; {', '.join(parts)}",)


def few_names(root: Path, paths: Sequence[Path]) -> str:
    """The first `NAMED` paths, relative to `root`."""
    names = [path.relative_to(root).as_posix() for path in paths[:NAMED]]
    return ", ".join([*names, "…"] if len(paths) > NAMED else names)


def _refuse_unclear(root: Path, folders: Sequence[Path]) -> None:
    """Refuse folders that are named like splits but do not form splits, and splits inside class folders."""
    exact = [folder for folder in folders if folder.name.lower() in _SPLITS]
    train = [folder for folder in exact if folder.name.lower() in TRAINING]
    others = [folder for names in EVALUATION for folder in exact if folder.name.lower() in names]
    if train and others:
        one, other = (_class_names(folder) for folder in (train[0], others[0]))
        if not one or not other:
            raise DataError(
                root,
                f"{train[0].name!r} and {others[0].name!r} do not both contain one folder per class",
                "add these folders, or rename the two folders if they are classes themselves",
            )
        raise DataError(
            root,
            f"{train[0].name} has classes {_only(one, other)}, {others[0].name} has {_only(other, one)}",
            "use the same classes in both",
        )
    if exact and len(exact) == len(folders):
        wanted = "evaluation, test or val" if train else "train"
        raise DataError(
            root,
            f"contains {[folder.name for folder in exact]} but no folder {wanted}",
            "add that folder, or name a folder that contains one folder per class",
        )
    within = [{name.lower() for name in _class_names(folder)} for folder in folders]
    if within and all(inner & TRAINING and inner & (_SPLITS - TRAINING) for inner in within):
        raise DataError(
            root,
            f"each class folder contains splits, for example {sorted(_class_names(folders[0]))}",
            "put the classes inside the splits: train/CLASS and evaluation/CLASS",
        )


def _only(classes: Sequence[str], others: Sequence[str], limit: int = 10) -> list[str]:
    """All names; if there are more than `limit`, only those that are not in `others`."""
    return list(classes) if len(classes) <= limit else [name for name in classes if name not in others]


def _is_one_of(folder: Path, names: frozenset[str]) -> bool:
    return not names.isdisjoint(re.split(r"[^a-z]+", folder.name.lower()))


def _class_names(folder: Path) -> list[str]:
    return [path.name for path in _folders(folder)]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not _is_hidden(path)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(error) from error


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == _HIDDEN


def _beside_classes(path: Path) -> Skipped:
    return Skipped(path, "hidden" if _is_hidden(path) else "outside the class folders")


def _walk(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """The images of a class, including those in nested folders, and the other files; both sorted."""
    pictures, skipped = [], []
    for path in sorted(_below(folder)):
        reason = _reason_against(path)
        if reason is None:
            pictures.append(path)
        else:
            skipped.append(Skipped(path, reason))
    return pictures, skipped


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, and the folders that are not entered."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        inner = [Path(parent, name) for name in folders]
        passed_over = [path for path in inner if path.is_symlink() or _is_hidden(path)]
        folders[:] = [path.name for path in inner if path not in passed_over]
        yield from passed_over
        yield from (Path(parent, name) for name in names)


def _reason_against(path: Path) -> str | None:
    if _is_hidden(path):
        return "hidden"
    if path.is_dir():
        return "symbolic links to folders"
    if path.suffix.lower() not in SUFFIXES:
        return "no image extension"
    if path.is_file():
        return None
    return "not regular files" if path.exists() else "broken symbolic links"


def _unreadable(error: OSError) -> DataError:
    return DataError(
        error.filename, f"cannot be read ({error.strerror})", "fix its permissions or move it away"
    )
