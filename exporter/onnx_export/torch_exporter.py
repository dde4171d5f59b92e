"""Running PyTorch's exporter: alone, because its state is the process's, and without what it tells.

`torch.export` and `torch.onnx.export` have no switch for their remarks on themselves (torchvision is not
installed, ...), and print whole graphs on standard error before they raise; the error says what matters.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from exporter.graphs.simplify import rules_in_use
from exporter.process import one_at_a_time, warnings_ignored

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


@contextmanager
def torch_exporter() -> Iterator[None]:
    """Run what is inside alone and quietly; what other threads write on standard error is shown."""
    with (
        one_at_a_time(),
        rules_in_use,  # it simplifies too
        _errors_only(),
        warnings_ignored(),
        redirect_stderr(_OfOtherThreads(sys.stderr)),
    ):
        yield


@contextmanager
def _errors_only() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _OfOtherThreads:
    """A text stream that swallows what the thread that made it writes, and passes on the rest."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
