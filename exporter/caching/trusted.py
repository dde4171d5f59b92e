"""Checks that only a given user and root could have written a file or replaced a folder of its path.

The rules are those of OpenSSH's StrictModes: they check owner and mode of the file and of each folder above
it. A file that other users could have written is not used.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

from bench.core.files import storage_errors
from exporter.errors import StageError

ROOT = 0
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# The file does not exist, or was removed on another machine (ESTALE on a network file system) while it was
# read.
_GONE = {errno.ENOENT, errno.ESTALE}


def file_fault(place: Path, status: os.stat_result, uid: int) -> tuple[str, str] | None:
    """Return cause and fix if another user could have written a file, otherwise None.

    Args:
        place: path of the file.
        status: status of the file.
        uid: id of the user who must own the file.
    """
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file", "remove it"
    if status.st_uid != uid:
        return (
            f"belongs to user {status.st_uid}, not to user {uid}",
            "remove it, or use the account that wrote it",
        )
    return _writable_by_others(place, status)


def folder_fault(place: Path, status: os.stat_result, uid: int, *, above: bool) -> tuple[str, str] | None:
    """Return cause and fix if another user could change the content of a folder, otherwise None.

    Args:
        place: path of the folder.
        status: status of the folder.
        uid: id of the user who must own the folder; root may own it too.
        above: True for a folder above the checked one. Only its entry on the path matters, and the caller
            knows that this entry belongs to the user or root. If the folder has the sticky bit, as `/tmp`
            has, other users cannot replace this entry, so they may add entries.
    """
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder", "move it away"
    if status.st_uid not in {uid, ROOT}:
        return (
            f"belongs to user {status.st_uid}, not to user {uid} or root",
            "choose a path inside your own folders",
        )
    if above and status.st_mode & stat.S_ISVTX:
        return None
    return _writable_by_others(place, status)


def check_folder(folder: Path, uid: int, *, status_of: Callable[[Path], os.stat_result] = os.stat) -> None:
    """Check that only a given user and root can change the content of a folder or replace the folder.

    A folder that does not exist yet is skipped; the folders above it are checked.

    Raises:
        StageError: the folder or a folder above it belongs to another user, or another user can write to
            it.
    """
    inner = resolved(folder)
    for place in (inner, *inner.parents):
        try:
            status = status_of(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StageError(place, f"cannot be read ({error.strerror})", "fix its permissions") from error
        if (fault := folder_fault(place, status, uid, above=place != inner)) is not None:
            raise StageError(place, *fault)


def read_own(path: Path, uid: int, limit: int) -> bytes | None:
    """Read a file that only a given user can have written; return None if the file does not exist.

    The checks are made on the open file, so the file cannot be exchanged between check and read. Symbolic
    links are not followed, and opening a pipe does not block.

    Args:
        path: the file; the caller checks its folder.
        uid: id of the user.
        limit: largest allowed size in bytes.

    Raises:
        StageError: the file is a symbolic link or not a regular file, belongs to another user or can be
            written by one, is too large, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if (fault := file_fault(path, os.fstat(descriptor), uid)) is not None:
                raise StageError(path, *fault)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _GONE:
            return None
        if error.errno == errno.ELOOP:
            raise StageError(path, "is a symbolic link", "remove it") from error
        raise StageError(
            path, f"cannot be read ({error.strerror})", "use the account that wrote it"
        ) from error
    if len(content) > limit:
        raise StageError(path, f"is larger than {limit} bytes", "remove it")
    return content


def make_private(folder: Path) -> None:
    """Create a folder, and missing folders above it, accessible only to the owner whatever the umask is.

    Raises:
        StorageError: a folder cannot be created.
    """
    with storage_errors(folder):
        missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            place.mkdir(mode=stat.S_IRWXU, exist_ok=True)


def resolved(path: Path) -> Path:
    """A path with all symbolic links resolved.

    Raises:
        StageError: the links form a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(
            path, "cannot be resolved", "check the path for symbolic links that form a circle"
        ) from error


def _writable_by_others(place: Path, status: os.stat_result) -> tuple[str, str] | None:
    if not status.st_mode & _OTHERS:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return f"others can write to it (mode {mode:04o})", f"run: chmod go-w {shlex.quote(str(place))}"
