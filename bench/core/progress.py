"""How long work reports its progress; the command line decides how that looks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of work with a known length."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more are done; `note` is a few words on the newest of them."""


class Progress(Protocol):
    """Receives what a person waiting would like to know."""

    def task(self, description: str, total: int) -> AbstractContextManager[Task]:
        """Begin a piece of work of `total` equal parts."""

    def say(self, line: str) -> None:
        """One line that stays on the screen."""


class _SilentTask:
    def advance(self, count: int = 1, note: str = "") -> None:
        """Say nothing."""


class SilentProgress:
    """For callers that do not wait, and for tests."""

    def task(self, description: str, total: int) -> AbstractContextManager[Task]:  # noqa: ARG002
        """Begin a piece of work without showing it."""
        return nullcontext(_SilentTask())

    def say(self, line: str) -> None:
        """Say nothing."""


SILENT = SilentProgress()
