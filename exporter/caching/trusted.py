"""Whether nobody but a user, and root, could have written a file or changed what leads to it.

These are the rules of OpenSSH's StrictModes: owner and mode of the file and of each folder above it are
looked at, and nothing that others could have put there is used.
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
# No file, or one that was removed on another machine while it was read.
_GONE = {errno.ENOENT, errno.ESTALE}


def file_fault(place: Path, status: os.stat_result, uid: int) -> tuple[str, str] | None:
    """Why a file may be the work of others, and what to do about it; None if it can only be the user's."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file", "remove it"
    if status.st_uid != uid:
        return (
            f"belongs to user {status.st_uid}, not to user {uid}",
            "remove it, or use the account that wrote it",
        )
    return _writable_by_others(place, status)


def folder_fault(place: Path, status: os.stat_result, uid: int, *, above: bool) -> tuple[str, str] | None:
    """Why others may change what lies in a folder, and what to do about it; None if they cannot.

    Args:
        place: the folder.
        status: of it.
        uid: the user; root is trusted too.
        above: whether only one entry of the folder counts, and it is known to be the user's or root's. In a
            sticky folder, such as `/tmp`, others can add entries and cannot replace that one.
    """
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder", "move it away"
    if status.st_uid not in {uid, ROOT}:
        return (
            f"belongs to user {status.st_uid}, not to user {uid} or root",
            "choose a place in folders of your own",
        )
    if above and status.st_mode & stat.S_ISVTX:
        return None
    return _writable_by_others(place, status)


def check_folder(folder: Path, uid: int, *, status_of: Callable[[Path], os.stat_result] = os.stat) -> None:
    """Make sure that nobody but a user, and root, can change what lies in a folder, or replace the folder.

    What does not exist yet is passed over: the folders above it are checked.

    Raises:
        StageError: the folder or one above it belongs to others, or they can write to it.
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
    """The content of a file that nobody but a user can have written; None if there is no file.

    The open file itself is checked, so that what was checked is what is read. A symbolic link is not
    followed, and a pipe is not waited for.

    Args:
        path: the file; the caller checks its folder.
        uid: the user.
        limit: the most bytes that it may have.

    Raises:
        StageError: it is a link or no regular file, belongs to or can be written by others, is too large or
            cannot be read.
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
    """Make a folder, and what is missing above it, for its owner alone, whatever the umask is.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(folder):
        missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
        for place in reversed(missing):
            place.mkdir(mode=stat.S_IRWXU, exist_ok=True)


def resolved(path: Path) -> Path:
    """A path without links.

    Raises:
        StageError: its links run in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(path, "leads nowhere", "check the path for links that run in a circle") from error


def _writable_by_others(place: Path, status: os.stat_result) -> tuple[str, str] | None:
    if not status.st_mode & _OTHERS:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return f"others can write to it (mode {mode:04o})", f"run: chmod go-w {shlex.quote(str(place))}"
