"""Write files that are either whole or absent: write a temporary file, flush it to the disk, rename it.

A process that is killed at any instant leaves at most a file or folder whose name starts with `.tmp-`;
nothing reads those, and `remove_leftovers` removes them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from bench.core.errors import StorageError, UsageError
from bench.core.model_file import external_data

# Types of a path that the public functions accept.
AnyPath: TypeAlias = str | os.PathLike[str]

TEMPORARY_PREFIX = ".tmp-"
# Suffix of the weights file of a large model, next to its .onnx.
DATA_SUFFIX = ".data"
# A folder with these files is an artifact: no file in it may be changed, and none may be added.
ARTIFACT_MARKS = ("manifest.json", "golden.npz")
# Most file systems limit a name to 255 bytes. A temporary name adds a prefix and 8 random digits.
_LONGEST_LABEL, _LONGEST_SUFFIX, _RANDOM_DIGITS = 200, 16, 8
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        found = storage_error(path, error)
        if found is None:
            raise
        raise found from error


def storage_error(place: object, error: OSError) -> StorageError | None:
    """Convert the error of a full or unwritable disk; return None for other errors."""
    if error.errno in FULL_DISK:
        return StorageError(
            place, "the disk is full", "free some space and run again; finished work is kept"
        )
    if error.errno in _UNWRITABLE:
        return StorageError(
            place,
            f"cannot be written ({error.strerror})",
            "choose another place or correct its permissions",
        )
    return None


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success, the file there replaces `path` in one step.

    On any exception the temporary file is removed and `path` stays unchanged. The file never has more
    permissions than `mode` minus the umask.
    """
    with storage_errors(path):
        _check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _new_file(path, mode)
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` to fill; on success it replaces `path`.

    An existing folder at `path` is renamed first and removed last, so the old or the new folder is on the
    disk at every instant.
    """
    with storage_errors(path):
        _check_name(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise StorageError(path, "exists and is not a folder", "choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _new_folder(path, 0o777)
        try:
            yield staging
            for file in sorted(staging.rglob("*")):
                if file.is_file():
                    sync_file(file)
            sync_directory(staging)
            old = _new_folder(path, 0o700)
            replaced = path.exists()
            if replaced:
                path.replace(old)
            try:
                staging.replace(path)
            except OSError:
                if replaced:
                    old.replace(path)
                raise
            sync_directory(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_writable(path: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Check, before long work, that `path` can be written and would not replace an input.

    Args:
        path: the file to write. The check includes the weights file that a large model adds next to it.
        inputs: the files and artifact folders that the command reads. The weights that a model names count
            as well.

    Raises:
        StorageError: `path` is a folder, or its parent folder cannot be created or written.
        UsageError: `path` is an input or inside an input, even if a link or another spelling hides this; or
            `path` is inside an artifact.
    """
    with storage_errors(path):
        _check_target(path)
        _refuse_inputs(path, inputs)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _new_file(path, 0o600)
        except FileNotFoundError as error:  # /proc raises this error for a new file
            raise PermissionError(errno.EACCES, "no file can be created there") from error
        temporary.unlink()


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write `content` to `path`; a reader sees the old or the new file, never a part of one."""
    with atomic_file(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, mode: int = 0o666) -> None:
    """Write `content` as UTF-8, in the same way as `write_bytes`."""
    write_bytes(path, content.encode(), mode=mode)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; keys keep their order. A NaN raises a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def path_text(path: Path) -> str:
    """Return a path as valid Unicode text; bytes of a name that are not UTF-8 become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_size(model: Path) -> int:
    """Return the bytes that a model needs on disk: the .onnx and the weights files that it names."""
    return sum(path.stat().st_size for path in (model, *external_data(model)))


def model_sha256(model: Path) -> str:
    """Return the SHA-256 of an .onnx; with external data, the SHA-256 of the joined hashes of its files."""
    hashes = [sha256_of(path) for path in (model, *external_data(model))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk, if the system allows opening the folder."""
    with contextlib.suppress(PermissionError):
        sync_file(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes in `folder`. The caller holds the folder's lock."""
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        _remove(entry)


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files of killed processes for `path` only. The caller holds a lock on `path`."""
    for entry in path.parent.glob(f"{glob.escape(temporary_prefix(path))}{'?' * _RANDOM_DIGITS}"):
        _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _refuse_inputs(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse an output that is an input of the same command, also by another spelling or a link."""
    # A large model consists of two files.
    written = (out, out.with_name(out.name + DATA_SUFFIX))
    for source in inputs:
        if source is None:
            continue
        if source.is_dir():
            if out.resolve().is_relative_to(source.resolve()):
                raise UsageError(out, f"is inside {source}, which is an input", "choose another --out")
            continue
        for read in (source, *external_data(source)):
            if any(_is_same(path, read) for path in written):
                raise UsageError(out, f"would overwrite {read}, which is an input", "choose another --out")
    for folder in out.resolve().parents:
        if all((folder / name).is_file() for name in ARTIFACT_MARKS):
            raise UsageError(out, f"is inside the artifact {folder}", "choose another --out")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file; symbolic and hard links are followed."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist, or its name is too long for a file
        return one.resolve() == other.resolve()


def _check_target(path: Path) -> None:
    """Refuse to replace a folder or a device by a file."""
    _check_name(path)
    if path.exists() and not path.is_file():
        raise StorageError(path, "exists and is not a regular file", "choose another place")


def _check_name(path: Path) -> None:
    """Refuse a name with a NUL, which no system can store; Python's own error does not name the file."""
    if "\0" in str(path):
        raise StorageError(
            str(path).replace("\0", "\\0"), "contains a NUL character", "choose another name"
        )


def temporary_prefix(path: Path) -> str:
    """Return the prefix of the temporary names for `path`; it is short even if the name is long."""
    name = os.fsencode(path.name)
    label = path.name if len(name) <= _LONGEST_LABEL else hashlib.sha256(name).hexdigest()
    return f"{TEMPORARY_PREFIX}{label}-"


def _suffix(path: Path) -> str:
    return path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""


def _new_file(path: Path, mode: int) -> Path:
    """Create an empty file next to `path`.

    The operating system applies the umask to `mode`. Python can read the umask only by setting it; new
    files of another thread would then have all permissions for a moment.
    """
    temporary = path.parent / f"{temporary_prefix(path)}{_random_digits()}{_suffix(path)}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    return temporary


def _new_folder(path: Path, mode: int) -> Path:
    """Create an empty folder next to `path`; the operating system applies the umask to `mode`."""
    temporary = path.parent / f"{temporary_prefix(path)}{_random_digits()}"
    temporary.mkdir(mode)
    return temporary


def _random_digits() -> str:
    return secrets.token_hex(_RANDOM_DIGITS // 2)
