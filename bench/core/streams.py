"""Standard output and standard error that cannot crash a command.

A reader may go away, a disk may fill up, an encoding may lack a character. Nobody needs progress, so that
whatever goes wrong on standard error is forgotten. Standard output holds what was asked for: characters
that its encoding lacks are replaced, a reader that went away is not told more, and a disk that takes no
more is an error.
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
    """A text stream in the place of another, which it writes to at once.

    Attributes:
        used: whether anything was written.
    """

    def __init__(self, stream: TextIO, *, needed: bool, closed: bool = False) -> None:
        """Write to `stream`; where that fails, raise an error if the output is `needed`."""
        self._stream, self._needed, self._closed = stream, needed, closed
        self.used = False

    def check_open(self) -> None:
        """Refuse to work where nobody could see what comes of it.

        Raises:
            UsageError: the stream was closed when the program started.
        """
        if self._closed:
            raise UsageError(PLACE, "is closed", "send it to a file or to /dev/null")

    def write(self, text: str) -> int:
        """Write and flush.

        Raises:
            StorageError: a needed output cannot be written.
        """
        self.used = self.used or bool(text)
        try:
            self._stream.write(_encodable(text, self._stream))
            self._stream.flush()
        except BrokenPipeError:  # the reader went away, as `head` does
            self._give_up()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._give_up()
            if self._needed:
                cause = getattr(error, "strerror", None) or str(error)
                raise StorageError(
                    PLACE, f"cannot be written ({cause})", "send it to a place that takes it"
                ) from error
        return len(text)

    def flush(self) -> None:
        """Nothing waits to be flushed."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Let what is still in the stream's buffer go nowhere: Python flushes it when it ends."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def steady_streams() -> Iterator[Output]:
    """Put an `Output` in the place of standard output, which it gives, and of standard error."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        # Python has None for a stream that was closed when it started.
        output = Output(before[0] or null, needed=True, closed=before[0] is None)
        sys.stdout = cast("TextIO", output)
        sys.stderr = cast("TextIO", Output(before[1] or null, needed=False))
        try:
            yield output
        finally:
            sys.stdout, sys.stderr = before


def write_out(text: str) -> None:
    """Write text on standard output, in whatever state it is.

    Raises:
        StorageError: it cannot be written.
    """
    stream = sys.stdout
    (stream if isinstance(stream, Output) else Output(stream, needed=True)).write(text)


def _fill_descriptors() -> None:
    """Open the null device in the place of closed standard streams; the next file would take it instead."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _encodable(text: str, stream: TextIO) -> str:
    """`text` with `?` for each character that the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
    except UnicodeError:
        return text.encode(encoding, "replace").decode(encoding)
    return text
