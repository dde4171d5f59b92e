"""Handling of Ctrl-C that loses no interrupt.

Python raises KeyboardInterrupt in the code that runs at that moment. In a finalizer or a callback, Python
prints the exception and continues. The handler here therefore also sets a flag that long loops check.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pressed = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Record every Ctrl-C in the block. Only the main thread receives signals; others do nothing here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _pressed.clear()
    before = signal.signal(signal.SIGINT, _mark)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _pressed.clear()


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if an earlier Ctrl-C was lost in a finalizer or a callback."""
    if _pressed.is_set():
        raise KeyboardInterrupt


def _mark(_number: int, _frame: FrameType | None) -> None:
    _pressed.set()
    raise KeyboardInterrupt
