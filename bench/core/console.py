"""Display of progress: bars with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.core.progress import Progress, Task

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console

PLAIN_INTERVAL_S = 10.0


class BarProgress:
    """Bars with the finished fraction and the remaining time, for a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """Show a bar until the task ends."""
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:<24}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            yield _Bar(bars, bars.add_task(description, total=total, note=""))

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self._console.print(line, highlight=False, markup=False)


class _Bar:
    def __init__(self, bars: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, count: int = 1, note: str = "") -> None:
        """Advance the progress bar by `count`, and show `note` after it."""
        self._bars.update(self._task, advance=count, note=note)


class PlainProgress:
    """Lines for a log file: at the start, at the end, and at most every `PLAIN_INTERVAL_S` between."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """Print lines until the task ends."""
        line = _Line(self, description, total)
        self.say(f"{description}: 0/{total}")
        yield line
        line.finish()

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Line:
    def __init__(self, parent: PlainProgress, description: str, total: int) -> None:
        self._parent, self._description, self._total = parent, description, total
        self._done, self._note = 0, ""
        self._start = self._spoken = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add to the count, and print a line if the last one is old enough."""
        self._done += count
        self._note = note
        now = time.monotonic()
        if now - self._spoken >= PLAIN_INTERVAL_S and self._done < self._total:
            self._spoken = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._say(f"about {left:.0f} s left")

    def finish(self) -> None:
        """Print the last line, with the time that the task took."""
        self._say(f"{time.monotonic() - self._start:.1f} s")

    def _say(self, suffix: str) -> None:
        note = f", {self._note}" if self._note else ""
        self._parent.say(f"{self._description}: {self._done}/{self._total}, {suffix}{note}")


def progress_for(console: Console) -> Progress:
    """Return bars for a terminal, plain lines for everything else."""
    return BarProgress(console) if console.is_terminal else PlainProgress(console)
