"""A lock that allows one build at a time per cache and per process; a second build waits."""

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
    """Hold an exclusive lock on a file, and keep other threads of this process from building.

    The operating system releases the file lock when the process ends, even if it is killed.

    Args:
        path: the lock file, created if it does not exist. It contains the id of the process that holds the
            lock.
        on_wait: called once with a message that names the holder if this build has to wait.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The holder writes its process id just after it gets the lock, so the file may still be empty.
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
