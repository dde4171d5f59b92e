"""Checks of owners and modes, with made-up status values and on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bench.core.errors import StorageError
from exporter.caching.trusted import check_folder, file_fault, folder_fault, make_private, read_own
from exporter.errors import StageError

ME, OTHER, ROOT = 1000, 1001, 0
HOME = Path("/people/me/work")


def status(mode, uid=ME):
    return os.stat_result((mode, 0, 0, 1, uid, uid, 0, 0, 0, 0))


def folders(**changes):
    """A replacement of `os.stat` for HOME and the folders above it; `changes` replaces usual values."""
    usual = {
        "/": (0o755, ROOT),
        "/people": (0o755, ROOT),
        "/people/me": (0o750, ME),
        "/people/me/work": (0o700, ME),
    }
    found = {
        **usual,
        **{f"/{name.replace('_', '/')}".rstrip("/"): value for name, value in changes.items()},
    }
    return lambda place: status(stat.S_IFDIR | found[str(place)][0], found[str(place)][1])


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o755])
def test_the_users_own_file_is_accepted(mode):
    assert file_fault(Path("job"), status(stat.S_IFREG | mode), ME) is None


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (status(stat.S_IFREG | 0o600, OTHER), "belongs to user 1001, not to user 1000"),
        (status(stat.S_IFREG | 0o600, ROOT), "belongs to user 0, not to user 1000"),
        (status(stat.S_IFREG | 0o620), "others can write to it (mode 0620)"),
        (status(stat.S_IFREG | 0o602), "others can write to it (mode 0602)"),
        (status(stat.S_IFIFO | 0o600), "is not a regular file"),
        (status(stat.S_IFDIR | 0o700), "is not a regular file"),
    ],
)
def test_a_file_that_others_may_have_written_is_refused(found, cause):
    fault = file_fault(Path("job"), found, ME)
    assert fault is not None
    assert fault[0] == cause


def test_folders_of_the_user_and_of_root_are_accepted():
    check_folder(HOME, ME, status_of=folders())
    check_folder(HOME, ME, status_of=folders(people=(0o1777, ROOT)))
    check_folder(HOME, ME, status_of=folders(people_me=(0o1777, ME)))


@pytest.mark.parametrize(
    ("changes", "place", "cause"),
    [
        ({"people_me_work": (0o770, ME)}, "/people/me/work", "others can write to it (mode 0770)"),
        ({"people_me_work": (0o1777, ME)}, "/people/me/work", "others can write to it (mode 1777)"),
        ({"people_me": (0o775, ME)}, "/people/me", "others can write to it (mode 0775)"),
        ({"people": (0o777, ROOT)}, "/people", "others can write to it (mode 0777)"),
        ({"people_me": (0o755, OTHER)}, "/people/me", "belongs to user 1001, not to user 1000 or root"),
        ({"people": (0o1777, OTHER)}, "/people", "belongs to user 1001, not to user 1000 or root"),
    ],
)
def test_a_single_unsafe_folder_on_the_path_is_refused(changes, place, cause):
    with pytest.raises(StageError) as caught:
        check_folder(HOME, ME, status_of=folders(**changes))
    assert (caught.value.place, caught.value.cause) == (place, cause)


def test_the_fix_is_a_quoted_shell_command():
    fault = folder_fault(Path("/a b"), status(stat.S_IFDIR | 0o775), ME, above=True)
    assert fault == ("others can write to it (mode 0775)", "run: chmod go-w '/a b'")


def test_root_trusts_only_root():
    with pytest.raises(StageError, match=r"^/people/me/work: belongs to user 1000, not to user 0 or root"):
        check_folder(HOME, ROOT, status_of=folders())


def test_a_file_is_refused_and_a_missing_folder_is_skipped(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="file: is not a folder"):
        check_folder(tmp_path / "file", os.geteuid())
    check_folder(tmp_path / "later" / "still", os.geteuid())
    tmp_path.chmod(0o777)
    with pytest.raises(StageError, match=r"others can write to it \(mode 0777\)"):
        check_folder(tmp_path / "later" / "still", os.geteuid())


def test_links_are_resolved_before_the_check(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "inner").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "inner")
    with pytest.raises(StageError) as caught:
        check_folder(tmp_path / "link", os.geteuid())
    assert caught.value.place == str(tmp_path / "open")


def test_a_folder_that_cannot_be_read_is_refused():
    def refused(place):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(StageError, match=r"^/people/me/work: cannot be read \(Permission denied\)"):
        check_folder(HOME, ME, status_of=refused)


def test_read_own_checks_owner_mode_and_size(tmp_path):
    path = tmp_path / "job"
    assert read_own(path, os.geteuid(), 4) is None
    path.write_bytes(b"four")
    path.chmod(0o600)
    assert read_own(path, os.geteuid(), 4) == b"four"
    with pytest.raises(StageError, match="is larger than 3 bytes"):
        read_own(path, os.geteuid(), 3)
    with pytest.raises(StageError, match="belongs to user"):
        read_own(path, os.geteuid() + 1, 4)
    path.chmod(0o660)
    with pytest.raises(StageError, match=r"others can write to it \(mode 0660\); run: chmod go-w "):
        read_own(path, os.geteuid(), 4)


def test_the_file_that_was_checked_is_read(tmp_path, monkeypatch):
    """If the path is replaced just after the file was opened, the opened file is read."""
    path, other = tmp_path / "job", tmp_path / "other"
    for file, text in ((path, "first"), (other, "other")):
        file.write_text(text)
        file.chmod(0o600)
    fstat = os.fstat

    def replacing(descriptor):
        if other.exists():
            other.replace(path)
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", replacing)
    assert read_own(path, os.geteuid(), 100) == b"first"
    monkeypatch.undo()
    assert path.read_text() == "other"


def test_links_pipes_and_folders_are_not_read(tmp_path):
    (tmp_path / "target").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    with pytest.raises(StageError, match="link: is a symbolic link; remove it"):
        read_own(tmp_path / "link", os.geteuid(), 100)
    for name in ("pipe", "folder"):
        with pytest.raises(StageError, match=f"{name}: is not a regular file; remove it"):
            read_own(tmp_path / name, os.geteuid(), 100)
    with pytest.raises(StageError, match=r"cannot be read \(Not a directory\)"):
        read_own(tmp_path / "target" / "job", os.geteuid(), 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(tmp_path):
    path = tmp_path / "job"
    path.write_text("{}")
    os.chown(path, OTHER, OTHER)
    with pytest.raises(StageError, match="belongs to user 1001, not to user 0"):
        read_own(path, 0, 100)


@pytest.fixture
def generous_umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous_umask")
def test_private_folders_are_created_with_mode_700(tmp_path):
    (tmp_path / "old").mkdir()
    make_private(tmp_path / "old" / "new" / "inner")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("old", "old/new", "old/new/inner")]
    assert modes == [0o775, 0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        make_private(tmp_path / "file" / "inner")
