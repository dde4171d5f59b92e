"""Interface for progress reports of long work; the command line decides how to display them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """A task with a known number of parts."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report that `count` more parts are done; `note` describes the latest part in a few words."""


class Progress(Protocol):
    """Receiver of progress reports and messages."""

    def task(self, description: str, total: int) -> AbstractContextManager[Task]:
        """Begin a task of `total` equal parts."""

    def say(self, line: str) -> None:
        """Show one line that stays on the screen."""


class _SilentTask:
    def advance(self, count: int = 1, note: str = "") -> None:
        """Show nothing."""


class SilentProgress:
    """Progress that shows nothing: the default of the Python functions."""

    def task(self, description: str, total: int) -> AbstractContextManager[Task]:  # noqa: ARG002
        """Begin a task without showing it."""
        return nullcontext(_SilentTask())

    def say(self, line: str) -> None:
        """Show nothing."""


SILENT = SilentProgress()
