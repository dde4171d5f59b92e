"""Standard output and standard error that do not crash a command.

A reader may close a pipe, a disk may be full, an encoding may lack a character. Standard error shows only
progress and messages, so failed writes there are ignored. Standard output has the results: characters that
its encoding lacks are replaced, output after a closed pipe is dropped, and a full disk is an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from bench.core.errors import StorageError, UsageError

PLACE = "standard output"


class Output:
    """Replacement for a text stream; writes to that stream without buffering.

    Attributes:
        used: whether any text was written.
    """

    def __init__(self, stream: TextIO, *, needed: bool, closed: bool = False) -> None:
        """Wrap `stream`.

        Args:
            stream: the stream to write to.
            needed: whether a failed write raises an error; otherwise it is ignored.
            closed: whether the stream was closed when the program started.
        """
        self._stream, self._needed, self._closed = stream, needed, closed
        self.used = False

    def check_open(self) -> None:
        """Raise an error if standard output was closed at the start, so results cannot be printed.

        Raises:
            UsageError: the stream was closed when the program started.
        """
        if self._closed:
            raise UsageError(PLACE, "is closed", "redirect it to a file or to /dev/null")

    def write(self, text: str) -> int:
        """Write and flush.

        Raises:
            StorageError: the stream is needed and cannot be written.
        """
        self.used = self.used or bool(text)
        try:
            self._stream.write(_encodable(text, self._stream))
            self._stream.flush()
        except BrokenPipeError:  # the reader closed the pipe, as `head` does
            self._give_up()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._give_up()
            if self._needed:
                cause = getattr(error, "strerror", None) or str(error)
                raise StorageError(
                    PLACE, f"cannot be written ({cause})", "redirect it to a writable file"
                ) from error
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Redirect the stream to the null device: Python flushes its buffer at exit, which would fail."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def steady_streams() -> Iterator[Output]:
    """Replace standard output and standard error by `Output` objects; yield the one for standard output."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        # Python sets a stream to None if it was closed at the start.
        output = Output(before[0] or null, needed=True, closed=before[0] is None)
        sys.stdout = cast("TextIO", output)
        sys.stderr = cast("TextIO", Output(before[1] or null, needed=False))
        try:
            yield output
        finally:
            sys.stdout, sys.stderr = before


def write_out(text: str) -> None:
    """Write text to standard output, whether `steady_streams` replaced it or not.

    Raises:
        StorageError: standard output cannot be written.
    """
    stream = sys.stdout
    (stream if isinstance(stream, Output) else Output(stream, needed=True)).write(text)


def _fill_descriptors() -> None:
    """Open the null device for closed standard streams, so no other file gets their descriptors."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _encodable(text: str, stream: TextIO) -> str:
    """Return `text` with `?` for each character that the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
    except UnicodeError:
        return text.encode(encoding, "replace").decode(encoding)
    return text
