"""Files and folders that the arguments of a factory name: what the factory may read, as hashes."""

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

# A folder of more bytes than this counts by the sizes and times of its files instead of by their content.
MAX_FOLDER_BYTES = 4 << 30
MAX_FOLDER_FILES = 1_000_000
# What Python writes beside modules when they are loaded.
_GENERATED = "__pycache__"


def named_files(arguments: JsonValue, roots: Sequence[Path]) -> dict[str, list[str]]:
    """Texts in `arguments` that name files or folders -> SHA-256 of what lies there, one for each place.

    A text is looked for from each of `roots`, because only the factory knows where it starts. Texts that
    name nothing are left out. So are folders that hold one of `roots`: a build writes there itself.

    Args:
        arguments: plain values; texts may lie in lists and tables.
        roots: folders where relative paths may start.

    Raises:
        LookupFailed: a folder holds too many files to look at.
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
    """Where a text leads, in the order of `roots`; without those where nothing is."""
    if text.startswith(PACKAGE_SCHEME):
        try:
            return [find_file(text, Path(), text)]
        except LookupFailed:  # a factory that reads it says so itself
            return []
    path = os.path.expanduser(text)  # noqa: PTH111 (Path's raises for unknown users)
    return [root / path for root in roots if text and _status(root / path) is not None]


def _status(path: Path) -> os.stat_result | None:
    """What the system says of a path; None for nothing, for no possible path, for what is out of reach."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _hash(text: str, place: Path, roots: Sequence[Path]) -> str | None:
    """A hash of a file or folder; None for a folder that holds a root, and for what is neither."""
    status = _status(place)
    if status is not None and stat.S_ISREG(status.st_mode):
        return _file_hash(place)
    if status is not None and stat.S_ISDIR(status.st_mode) and not _holds_one(place, roots):
        return _folder_hash(text, place, roots)
    return None  # to read a device or a pipe could take forever


def _file_hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # what cannot be read here, a factory cannot read either
        return "unreadable"


def _folder_hash(text: str, folder: Path, roots: Sequence[Path]) -> str:
    """Over the names below a folder and their content."""
    files = []
    for path in _files_below(folder, roots):
        status = _status(path)
        if status is not None and stat.S_ISREG(status.st_mode):
            files.append((path, status))
        if len(files) > MAX_FOLDER_FILES:
            raise LookupFailed(
                text,
                f"an argument names this folder, which holds more than {MAX_FOLDER_FILES} files",
                "name a smaller folder, or a file",
            )
    whole = sum(status.st_size for _, status in files) <= MAX_FOLDER_BYTES
    digest = hashlib.sha256()
    for path, status in files:
        content = _file_hash(path) if whole else f"{status.st_size}|{status.st_mtime_ns}"
        digest.update(f"{path.relative_to(folder).as_posix()!r}|{content}\n".encode())
    return digest.hexdigest()


def _files_below(folder: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """All files but hidden ones, sorted in each folder; links are followed, each folder is seen once."""
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
