"""Files that are either whole or absent: write aside, flush to the disk, rename.

A process killed at any instant leaves at most a file or folder whose name starts with `.tmp-`; nothing
ever reads those, and `remove_leftovers` sweeps them.
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

# How callers from Python name a file or a folder.
AnyPath: TypeAlias = str | os.PathLike[str]

TEMPORARY_PREFIX = ".tmp-"
# The second file of a large model, beside the first.
DATA_SUFFIX = ".data"
# Files by which an artifact's folder is known; no file may be added to it, or changed in it.
ARTIFACT_MARKS = ("manifest.json", "golden.npz")
# A name has at most 255 bytes on most file systems; a temporary one has a prefix and 8 random digits more.
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
    """What to say of a full or unwritable disk; None of other errors."""
    if error.errno in FULL_DISK:
        return StorageError(
            place, "the disk is full", "free some space and run again; finished work is kept"
        )
    if error.errno in _UNWRITABLE:
        return StorageError(
            place, f"cannot be written ({error.strerror})", "choose another place or mend its rights"
        )
    return None


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path` in one step.

    On any exception the file written so far is removed and `path` stays as it was. At no instant has the
    file more rights than `mode` without what the umask takes.
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
    """Yield a folder beside `path` to fill; on success it takes the place of `path`.

    An existing folder at `path` is moved aside first and removed last, so that the old or the new one
    can be found on the disk at every instant.
    """
    with storage_errors(path):
        _check_name(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise StorageError(path, "is there and is no folder", "choose another place")
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
    """Make sure, before long work, that `path` can be written afterwards and replaces no input.

    Args:
        path: the file to write; a large model also writes its weights beside it.
        inputs: the files that the command reads, and the artifact folders. The weights that a model names
            count too.

    Raises:
        StorageError: it is a folder, or its own folder cannot be made or written.
        UsageError: it is one of `inputs` or lies in one of them, links and other spellings included; or it
            lies in any artifact.
    """
    with storage_errors(path):
        _check_target(path)
        _refuse_inputs(path, inputs)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _new_file(path, 0o600)
        except FileNotFoundError as error:  # what /proc says of a new file
            raise PermissionError(errno.EACCES, "no file can be made there") from error
        temporary.unlink()


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write `content` to `path` so that a reader finds the old file or the new one, never a part."""
    with atomic_file(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, mode: int = 0o666) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode(), mode=mode)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; keys keep their order. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def path_text(path: Path) -> str:
    """A path as text that any file can hold: bytes of a name that are not UTF-8 are written as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_size(model: Path) -> int:
    """Bytes that a model takes on the device: the .onnx and the files of weights that it names."""
    return sum(path.stat().st_size for path in (model, *external_data(model)))


def model_sha256(model: Path) -> str:
    """The SHA-256 of an .onnx; with external data, of the hashes of all its files in turn."""
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
    """Flush a folder's entries to the disk, where the system allows opening a folder."""
    with contextlib.suppress(PermissionError):
        sync_file(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`. The caller holds the folder's lock."""
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        _remove(entry)


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes left of `path` alone. The caller holds a lock on `path`."""
    for entry in path.parent.glob(f"{glob.escape(temporary_prefix(path))}{'?' * _RANDOM_DIGITS}"):
        _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _refuse_inputs(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse an output that is an input of the same command, whatever name or link it is called by."""
    # A large model is written as two files.
    written = (out, out.with_name(out.name + DATA_SUFFIX))
    for source in inputs:
        if source is None:
            continue
        if source.is_dir():
            if out.resolve().is_relative_to(source.resolve()):
                raise UsageError(out, f"lies in {source}, which is an input", "choose another --out")
            continue
        for read in (source, *external_data(source)):
            if any(_is_same(path, read) for path in written):
                raise UsageError(out, f"would overwrite {read}, which is an input", "choose another --out")
    for folder in out.resolve().parents:
        if all((folder / name).is_file() for name in ARTIFACT_MARKS):
            raise UsageError(out, f"lies in the artifact {folder}", "choose another --out")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file; links of both kinds are followed."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there, or its name is longer than any file's
        return one.resolve() == other.resolve()


def _check_target(path: Path) -> None:
    """A folder or a device must not be replaced by a file."""
    _check_name(path)
    if path.exists() and not path.is_file():
        raise StorageError(path, "is there and is no regular file", "choose another place")


def _check_name(path: Path) -> None:
    """No system can store a name with a NUL; Python's own error for it names no file."""
    if "\0" in str(path):
        raise StorageError(str(path).replace("\0", "\\0"), "holds a NUL character", "choose another name")


def temporary_prefix(path: Path) -> str:
    """How the temporary names of `path` start; short enough even where its own name is as long as any."""
    name = os.fsencode(path.name)
    label = path.name if len(name) <= _LONGEST_LABEL else hashlib.sha256(name).hexdigest()
    return f"{TEMPORARY_PREFIX}{label}-"


def _suffix(path: Path) -> str:
    return path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""


def _new_file(path: Path, mode: int) -> Path:
    """Make an empty file beside `path`.

    The system itself takes away the rights that the umask takes: nobody can ask for the umask without
    setting it, and then another thread's new files would have all rights.
    """
    temporary = path.parent / f"{temporary_prefix(path)}{_random_digits()}{_suffix(path)}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    return temporary


def _new_folder(path: Path, mode: int) -> Path:
    """Make an empty folder beside `path`; of `mode`, the umask takes its part."""
    temporary = path.parent / f"{temporary_prefix(path)}{_random_digits()}"
    temporary.mkdir(mode)
    return temporary


def _random_digits() -> str:
    return secrets.token_hex(_RANDOM_DIGITS // 2)
