"""Files are whole or absent, also after an error or a kill while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core import files
from bench.core.errors import StorageError, UsageError
from bench.core.files import (
    TEMPORARY_PREFIX,
    atomic_directory,
    atomic_file,
    check_writable,
    path_text,
    remove_leftovers,
    remove_leftovers_of,
    sha256_of,
    write_json,
    write_text,
)


def leftovers(folder):
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]


def enter_directory(path):
    with atomic_directory(path):
        pass


def fail_after_writing(path):
    path.write_text("half")
    raise KeyError


def test_a_file_replaces_the_old_file(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    write_text(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
    assert path.read_text() == "new"
    assert leftovers(path.parent) == []


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        fail_after_writing(temporary)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file.txt", "")
        write_text(tmp_path / "own.txt", "", mode=0o600)
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "own.txt").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_reported(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with (
        pytest.raises(StorageError, match=r"file\.txt: the disk is full; free some space"),
        atomic_file(path),
        open("/dev/full", "w") as full,  # noqa: PTH123
    ):
        full.write("x" * 100_000)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_on_flushing(tmp_path, monkeypatch, code):
    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_text(tmp_path / "file.txt", "new")
    with pytest.raises(StorageError, match="the disk is full"), atomic_directory(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, code):
    def refuse(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(
        StorageError, match=f"cannot be written .{os.strerror(code)}.; choose another place"
    ):
        write_text(tmp_path / "file.txt", "new")


def test_other_errors_are_not_converted(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file.txt"):
        (tmp_path / "none").read_bytes()


@pytest.mark.parametrize("place", ["file.txt/below", "x" * 300, "folder"])
def test_places_that_cannot_hold_a_file(tmp_path, place):
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        write_text(tmp_path / place, "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="exists and is not a regular file"):
        write_text(pipe, "new")
    assert pipe.is_fifo()


def test_a_folder_replaces_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with atomic_directory(path) as staging:
            (staging / text).write_text(text)
            (staging / "sub").mkdir()
            (staging / "sub" / "file").write_text(text)
            assert path.exists() == (text == "new")
    assert sorted(entry.name for entry in path.iterdir()) == ["new", "sub"]
    assert (path / "sub" / "file").read_text() == "new"
    assert leftovers(tmp_path) == []


def test_an_exception_leaves_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    with atomic_directory(path) as staging:
        (staging / "file").write_text("old")
    with pytest.raises(KeyError), atomic_directory(path) as staging:
        fail_after_writing(staging / "file")
    assert (path / "file").read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_does_not_replace_a_file_or_a_link(tmp_path, kind):
    path, target = tmp_path / "taken", tmp_path / "target"
    target.mkdir()
    path.write_text("old") if kind == "file" else path.symlink_to(target)
    with pytest.raises(StorageError, match="exists and is not a folder"), atomic_directory(path):
        pass
    assert path.is_symlink() if kind == "link" else path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("writer", ["atomic_file", "atomic_directory"])
def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path, writer):
    path = tmp_path / "target"
    with getattr(files, writer)(path) as temporary:
        (temporary if writer == "atomic_file" else temporary / "file").write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from bench.core.files import {writer}
with {writer}(Path({str(path)!r})) as temporary:
    part = temporary if temporary.is_file() else temporary / "file"
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    assert (path if writer == "atomic_file" else path / "file").read_text() == "old"
    assert len(leftovers(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_only_temporary_files_are_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = tmp_path / "folder"
    (folder / f"{TEMPORARY_PREFIX}dir" / "deep").mkdir(parents=True)
    (folder / f"{TEMPORARY_PREFIX}file").touch()
    (folder / f"{TEMPORARY_PREFIX}link").symlink_to(outside)
    (folder / "kept").touch()
    remove_leftovers(folder)
    assert [entry.name for entry in folder.iterdir()] == ["kept"]
    assert (outside / "kept").exists()


def test_only_the_temporary_files_of_one_name_are_removed(tmp_path):
    names = ("mine[1]", "mine1", "mine[1]-int8")
    mine, *others = (tmp_path / f"{TEMPORARY_PREFIX}{name}-12345678" for name in names)
    for entry in (mine, *others):
        entry.mkdir()
    remove_leftovers_of(tmp_path / "mine[1]")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_folders_that_cannot_be_opened_are_not_flushed(tmp_path, monkeypatch):
    synced = []

    def sync(path):
        if path.is_dir():
            raise PermissionError
        synced.append(path)

    monkeypatch.setattr(files, "sync_file", sync)
    write_text(tmp_path / "file.txt", "new")
    assert len(synced) == 1
    assert (tmp_path / "file.txt").read_text() == "new"


def test_written_json_is_valid(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ü"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 1, "a": "ü"}


def test_a_hash_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_of(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_an_output_is_checked_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "result.json")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(StorageError, match="not a regular file"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        check_writable(tmp_path / "file" / "result.json")
    with pytest.raises(StorageError, match=r"^/proc/x/result.json: cannot be written"):
        check_writable(Path("/proc/x/result.json"))


@pytest.mark.parametrize(
    "spelling", ["model.onnx", "./sub/../model.onnx", "link.onnx", "hard.onnx", "link/model.onnx"]
)
def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path, spelling):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    (tmp_path / "hard.onnx").hardlink_to(model)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(
        UsageError, match=r"would overwrite .*model\.onnx, which is an input; choose another"
    ):
        check_writable(tmp_path / spelling, [None, model])
    assert model.read_bytes() == b"weights"
    check_writable(tmp_path / "other.onnx", [None, model])


def test_an_output_whose_weights_would_replace_those_of_an_input_is_refused(external_model, tmp_path):
    """A large model is written as `b.onnx` and `b.onnx.data`; the input may use `b.onnx.data` as well."""
    given = tmp_path / "a.onnx"
    external_model(given, "b.onnx.data")
    with pytest.raises(UsageError, match=r"would overwrite .*b\.onnx\.data"):
        check_writable(tmp_path / "b.onnx", [given])
    with pytest.raises(UsageError, match=r"would overwrite .*b\.onnx\.data"):
        check_writable(tmp_path / "b.onnx.data", [given])
    check_writable(tmp_path / "c.onnx", [given])


def test_an_output_inside_a_folder_that_is_an_input_is_refused(tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "artifact")
    for out in ("artifact/result.json", "link/deep/result.json"):
        with pytest.raises(UsageError, match=r"is inside .*artifact, which is an input"):
            check_writable(tmp_path / out, [tmp_path / "artifact"])
    check_writable(tmp_path / "result.json", [tmp_path / "artifact"])


LONGEST = 255


@pytest.mark.parametrize("name", ["x" * LONGEST, "é" * (LONGEST // 2), "x." + "y" * (LONGEST - 2)])
def test_a_name_may_have_the_longest_length(tmp_path, name):
    path = tmp_path / name
    check_writable(path)
    write_text(path, "content")
    assert path.read_text() == "content"
    path.unlink()
    with atomic_directory(path) as staging:
        (staging / "file").touch()
        assert staging.name.startswith(TEMPORARY_PREFIX)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_temporary_files_of_long_names_differ(tmp_path):
    paths = [tmp_path / ("x" * (LONGEST - 1) + letter) for letter in "ab"]
    with atomic_directory(paths[0]) as first, atomic_directory(paths[1]) as second:
        remove_leftovers_of(paths[0])
        assert (first.exists(), second.exists()) == (False, True)
        first.mkdir()


@pytest.mark.parametrize("write", [check_writable, lambda path: write_text(path, ""), enter_directory])
def test_impossible_file_names_are_refused(tmp_path, write):
    with pytest.raises(StorageError, match="File name too long"):
        write(tmp_path / ("x" * (LONGEST + 1)))
    with pytest.raises(StorageError, match=r"a\\0b: contains a NUL character; choose another name"):
        write(tmp_path / "a\0b")
    assert not list(tmp_path.iterdir())


def test_a_path_as_text_is_valid_unicode():
    assert path_text(Path("a/é.onnx")) == "a/é.onnx"
    assert path_text(Path(os.fsdecode(b"a/\x80.onnx"))) == "a/\\udc80.onnx"
