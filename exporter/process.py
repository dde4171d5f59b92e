"""Locks for process-wide state that several threads use.

Quantizing an `.onnx` file, inspecting and judging change no state that another thread can see. A build and
PyTorch's exporter change such state: PyTorch's random number generator, its switch for deterministic
kernels, the modes and caches of its tracer, `sys.path`, the user's loaded modules and Python's warning
filter. So only one of them runs at a time, and the others wait. Builds that ran at the same time would also
distort each other's measurements.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_turn = threading.RLock()


@contextmanager
def one_at_a_time(on_wait: Callable[[str], None] = lambda _words: None) -> Iterator[None]:
    """Keep other threads of this process out; the thread inside may enter again (a reentrant lock).

    Args:
        on_wait: called once with a message if this thread has to wait for another.
    """
    if not _turn.acquire(blocking=False):
        on_wait("waiting for the build of another thread to finish")
        _turn.acquire()
    try:
        yield
    finally:
        _turn.release()


class _SharedFilter:
    """A warning filter that overlapping threads share; the last thread to leave removes it.

    `warnings.catch_warnings` restores the filters that it found at its start. If two threads overlap, the
    second finds the filter of the first, and would restore it permanently.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_filter = _SharedFilter()


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignore warnings of all threads; Python cannot filter the warnings of a single thread."""
    _filter.enter()
    try:
        yield
    finally:
        _filter.leave()


@contextmanager
def records_dropped(*names: str | None) -> Iterator[None]:
    """Drop log messages in this thread, except errors. Other threads are not affected.

    Args:
        names: the names of loggers; None is the root logger.
    """
    here = threading.get_ident()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_wanted)
