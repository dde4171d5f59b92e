"""Two builds with the same cache run one after the other."""

from __future__ import annotations

import os
import threading

import pytest

from bench.core.errors import StorageError
from exporter.caching.lock import exclusive


def test_the_second_waits_for_the_first(tmp_path):
    path = tmp_path / "cache" / "lock"
    waiting, order, said = threading.Event(), [], []

    def told(line):
        said.append(line)
        waiting.set()

    def second():
        with exclusive(path, told):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(path, told):
        assert path.read_text() == f"{os.getpid()}\n"
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert said == [f"waiting for the build of process {os.getpid()} to finish"]


def test_a_leftover_lock_file_does_not_block(tmp_path):
    path = tmp_path / "lock"
    path.write_text("4194304000\nand more than a number")
    with exclusive(path, pytest.fail):
        assert path.read_text() == f"{os.getpid()}\n"


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock", print):
        raise KeyError
    with exclusive(tmp_path / "lock", pytest.fail):
        assert (tmp_path / "lock").exists()


def test_a_lock_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="cannot be written"),
        exclusive(tmp_path / "file" / "lock", print),
    ):
        pytest.fail("the lock was taken")
