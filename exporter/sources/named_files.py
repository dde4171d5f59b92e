"""Hashes of the files and folders that the arguments of a factory name; the factory may read them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from bench.core.files import sha256_of
from exporter.errors import LookupFailed
from exporter.sources.lookup import PACKAGE_SCHEME, find_file

# In a folder with more bytes, the size and modification time of each file are hashed, not its content.
MAX_FOLDER_BYTES = 4 << 30
MAX_FOLDER_FILES = 1_000_000
# The folder into which Python writes compiled modules.
_GENERATED = "__pycache__"


def named_files(arguments: JsonValue, roots: Sequence[Path]) -> dict[str, list[str]]:
    """Find the files and folders that `arguments` name, and hash them.

    A text is looked up in each of `roots`, because only the factory knows in which of them a relative path
    starts. Texts that name no file are left out. Folders that contain one of `roots` are left out too,
    because the build itself writes there.

    Args:
        arguments: JSON values; texts may be nested in lists and tables.
        roots: folders in which relative paths may start.

    Returns:
        Text -> SHA-256 hashes, one for each file or folder that it names.

    Raises:
        LookupFailed: a folder contains more than `MAX_FOLDER_FILES` files.
    """
    resolved = [root.resolve() for root in roots]
    found: dict[str, list[str]] = {}
    for text in sorted(set(_texts(arguments))):
        places = dict.fromkeys(place.resolve() for place in _places(text, roots))
        hashes = [_hash(text, place, resolved) for place in places]
        if kept := [digest for digest in hashes if digest is not None]:
            found[text] = kept
    return found


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _places(text: str, roots: Sequence[Path]) -> list[Path]:
    """Existing paths that a text names, in the order of `roots`."""
    if text.startswith(PACKAGE_SCHEME):
        try:
            return [find_file(text, Path(), text)]
        except LookupFailed:  # a factory that reads the file raises its own error
            return []
    path = os.path.expanduser(text)  # noqa: PTH111 (Path's raises for unknown users)
    return [root / path for root in roots if text and _status(root / path) is not None]


def _status(path: Path) -> os.stat_result | None:
    """The status of a path; None if it does not exist, is not a valid path or cannot be accessed."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _hash(text: str, place: Path, roots: Sequence[Path]) -> str | None:
    """Hash of a file or folder; None for a folder that contains a root, and for other kinds of paths."""
    status = _status(place)
    if status is not None and stat.S_ISREG(status.st_mode):
        return _file_hash(place)
    if status is not None and stat.S_ISDIR(status.st_mode) and not _holds_one(place, roots):
        return _folder_hash(text, place, roots)
    return None  # reading a device or a pipe might never end


def _file_hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # a factory cannot read the file either
        return "unreadable"


def _folder_hash(text: str, folder: Path, roots: Sequence[Path]) -> str:
    """Hash of the names and the content of all files below a folder."""
    files = []
    for path in _files_below(folder, roots):
        status = _status(path)
        if status is not None and stat.S_ISREG(status.st_mode):
            files.append((path, status))
        if len(files) > MAX_FOLDER_FILES:
            raise LookupFailed(
                text,
                f"is a folder with more than {MAX_FOLDER_FILES} files, named by an argument of a factory",
                "name a smaller folder, or a file",
            )
    whole = sum(status.st_size for _, status in files) <= MAX_FOLDER_BYTES
    digest = hashlib.sha256()
    for path, status in files:
        content = _file_hash(path) if whole else f"{status.st_size}|{status.st_mtime_ns}"
        digest.update(f"{path.relative_to(folder).as_posix()!r}|{content}\n".encode())
    return digest.hexdigest()


def _files_below(folder: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """All files except hidden ones, sorted in each folder; follows links, but enters each folder once."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen or _holds_one(real, roots):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != _GENERATED)
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _holds_one(folder: Path, others: Sequence[Path]) -> bool:
    return any(other.is_relative_to(folder) for other in others)
