"""Checks of the output folder: a build replaces only folders of builds, and no folder that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.core.errors import ArtifactError, UsageError
from bench.inputs.artifact import unlisted_files
from bench.inputs.manifest import MANIFEST, read_manifest
from exporter.recipes import OnnxTeacherConfig, Recipe, TeacherConfig, teachers_of
from exporter.sources.lookup import PACKAGE_SCHEME, local_path


def check_destination(destination: Path, mark: str) -> None:
    """Refuse to replace a folder unless an earlier build of the same kind wrote it.

    Args:
        destination: the folder to write.
        mark: name of a file that every folder of this kind contains.

    Raises:
        UsageError: the path is a file, or the folder contains files that no build wrote.
    """
    if destination.exists() and not destination.is_dir():
        raise UsageError(destination, "is a file", "choose another --out")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    if not (destination / mark).is_file():
        raise UsageError(
            destination, f"is not empty and has no {mark} of an earlier build", "choose another --out"
        )
    if mark != MANIFEST:
        return
    try:
        strangers = unlisted_files(destination, read_manifest(destination))
    except ArtifactError:  # a damaged artifact is built again
        return
    if strangers:
        raise UsageError(
            destination / strangers[0],
            "is not a file of the artifact, and replacing the artifact would delete it",
            "move it away, or choose another --out",
        )


def check_new_folder(folder: Path) -> None:
    """Refuse a path that is a file or a folder with content.

    Raises:
        UsageError: the path is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(folder, "exists and is not empty", "name a new folder")


def check_not_read(destination: Path, recipe: Recipe, folder: Path) -> None:
    """Refuse to replace a folder that contains the recipe's checkpoint or a teacher.

    Raises:
        UsageError: the folder contains a file that the recipe reads.
    """
    for address in _files_read(recipe):
        if local_path(address, folder).resolve().is_relative_to(destination.resolve()):
            raise UsageError(
                destination, f"contains {address}, which the recipe reads", "choose another --out"
            )


def _files_read(recipe: Recipe) -> Iterator[str]:
    """Paths of the checkpoint and the teachers that a recipe names, except files in packages."""
    addresses = [recipe.model.checkpoint]
    for teacher in (teacher for stage in recipe.stage for teacher in teachers_of(stage)):
        if isinstance(teacher, TeacherConfig):
            addresses.append(teacher.checkpoint)
        elif isinstance(teacher, OnnxTeacherConfig):
            addresses.append(teacher.model)
    for address in addresses:
        if address is not None and not address.startswith(PACKAGE_SCHEME):
            yield address
