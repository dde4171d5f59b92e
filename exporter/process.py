"""What belongs to the whole process, and how threads share it.

Quantizing an `.onnx`, inspecting and judging change nothing that another thread can see. A build and
PyTorch's exporter do: PyTorch's random numbers, its switch for deterministic kernels, the modes and caches
that it traces with, `sys.path` and the user's modules, Python's filter of warnings. So one of them runs at
a time, and the others wait. What a build measures would be worth nothing otherwise, either.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_turn = threading.RLock()


@contextmanager
def one_at_a_time(on_wait: Callable[[str], None] = lambda _words: None) -> Iterator[None]:
    """Let no other thread of this process in; the thread that is inside may enter again.

    Args:
        on_wait: told once, if another thread has to be waited for.
    """
    if not _turn.acquire(blocking=False):
        on_wait("waiting for the build of another thread to finish")
        _turn.acquire()
    try:
        yield
    finally:
        _turn.release()


class _SharedFilter:
    """A filter of warnings that threads share while they overlap: the last one to leave takes it away.

    `warnings.catch_warnings` puts back what it found: of two threads that overlap, the second would put
    back the filter of the first, for good.
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
    """Show no warnings, whichever thread they come from; Python has no filter of a single thread's."""
    _filter.enter()
    try:
        yield
    finally:
        _filter.leave()
