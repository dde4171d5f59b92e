"""One build at a time in one cache, and in one process: the second waits."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.core.files import storage_errors
from exporter.process import one_at_a_time


@contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`, and have this process to oneself; the system frees both.

    Args:
        path: the lock file, made if need be; it holds the number of the process that has the lock.
        on_wait: told once who holds the lock, if it has to be waited for.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The holder writes its number just after it got the lock: a moment earlier nobody can name it.
            number = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            on_wait(
                f"waiting for the build of {f'process {number}' if number else 'another process'} to finish"
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            with one_at_a_time(on_wait):
                yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
