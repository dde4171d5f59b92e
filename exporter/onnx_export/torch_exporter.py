"""Run PyTorch's exporter in one thread at a time, because its state is global, and without its output.

`torch.export` and `torch.onnx.export` have no option to turn off their remarks (for example, that
torchvision is not installed), and print whole graphs to standard error before they raise. The exception
alone is sufficient.
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
    """Run the exporter inside the context in one thread at a time, without its output to standard error.

    The output of other threads is still shown.
    """
    with (
        one_at_a_time(),
        rules_in_use,  # the exporter also applies the simplification rules
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
    """A text stream that discards the output of the thread that created it, and passes on the rest."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
