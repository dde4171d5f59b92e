"""The report of an exception that ends a command: one line, one JSON object, one exit code.

The errors of `bench.core.errors` already have place, cause and fix. This module converts exceptions that
the environment causes (a full disk, no memory, missing permissions, a broken installation) into these
errors. Every other exception counts as a bug in edgeproof.
"""

from __future__ import annotations

import errno
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.core.errors import EdgeproofError, HostError, StorageError, UsageError, one_line
from bench.core.files import FULL_DISK, storage_error

if TYPE_CHECKING:
    from bench.core.schema import Json

EXIT_FAULT: Final = 70  # EX_SOFTWARE of sysexits.h
_OWN_PACKAGES = ("bench", "exporter")
_ROOT = Path(__file__).resolve().parents[2]
_REPORT = "this is a bug in edgeproof: report it with the output of --debug"
_TOO_MANY = {errno.EMFILE, errno.ENFILE, errno.EAGAIN}
# Some libraries write files with their own code, and raise their own exceptions when the disk is full.
_FULL_DISK_WORDS = tuple(os.strerror(number) for number in FULL_DISK)


class WorkerFault(Exception):  # noqa: N818 (a fault is not an error that a user can fix)
    """An unexpected exception ended a worker process.

    Args:
        place: file and line in edgeproof.
        cause: type and message of the exception.
        trace: traceback of the exception in the worker.
    """

    def __init__(self, place: str, cause: str, trace: str) -> None:
        super().__init__(f"{place}: {cause}")
        self.place, self.cause, self.trace = place, cause, trace
        self.add_note(f"In the worker process:\n{trace}")

    def __reduce__(self) -> tuple[type[WorkerFault], tuple[str, str, str]]:
        return type(self), (self.place, self.cause, self.trace)


@dataclass(frozen=True)
class Ending:
    """The report of an exception that ended a command, and the exit code.

    Attributes:
        kind: name of the exception's class.
        place, cause, fix: the parts of the message, as in `EdgeproofError`.
    """

    kind: str
    place: str
    cause: str
    fix: str
    exit_code: int

    def line(self) -> str:
        """Return the report as one line for a person."""
        return f"error: {self.place}: {self.cause}; {self.fix}"

    def as_json(self) -> Json:
        """Return the report as an object for a program."""
        told: Json = {"kind": self.kind, "place": self.place, "cause": self.cause, "fix": self.fix}
        return {"error": told, "exit_code": self.exit_code}


def ending(error: BaseException) -> Ending:
    """Return the report of the exception that ended a command."""
    known = foreseen(error)
    if known is not None:
        return Ending(type(known).__name__, known.place, known.cause, known.fix, known.exit_code)
    if isinstance(error, WorkerFault):
        return Ending("WorkerFault", f"worker, {error.place}", error.cause, _REPORT, EXIT_FAULT)
    return Ending(type(error).__name__, place_of(error), cause_of(error), _REPORT, EXIT_FAULT)


def foreseen(error: BaseException) -> EdgeproofError | None:
    """Return `error` as an error that a user can fix; None if it is a bug in edgeproof."""
    if isinstance(error, EdgeproofError):
        return error
    if isinstance(error, MemoryError):
        return HostError(
            "memory", _with_words("is not sufficient", error), "free some memory, or use less data"
        )
    if isinstance(error, ImportError):
        return _broken_library(error)
    if isinstance(error, OSError):
        return _refused(error)
    if any(words in _words(error) for words in _FULL_DISK_WORDS):
        return StorageError(
            "disk", f"is full ({one_line(_words(error), 200)})", "free some space and run again"
        )
    return None


def place_of(error: BaseException) -> str:
    """Return file and line of the innermost frame in edgeproof."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [(name, frame.lineno) for frame in frames if (name := _inside(frame.filename))]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else "edgeproof"


def cause_of(error: BaseException) -> str:
    """Return type and message of an exception; add where it was raised if that is outside edgeproof."""
    cause = _with_words(f"raised {type(error).__name__}", error)
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not _inside(frames[-1].filename):
        cause += f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    return cause


def _inside(filename: str) -> str:
    """Return the path of a file of edgeproof, such as `bench/measuring/worker.py`; "" for other files."""
    path = Path(filename)
    if not path.is_relative_to(_ROOT):
        return ""
    inner = path.relative_to(_ROOT)
    return inner.as_posix() if inner.parts[0] in _OWN_PACKAGES else ""


def _with_words(cause: str, error: BaseException) -> str:
    words = one_line(_words(error))
    return f"{cause} ({words})" if words else cause


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (a third-party exception may fail to convert itself to text)
        return ""


def _broken_library(error: ImportError) -> EdgeproofError | None:
    library = (error.name or _raised_in(error)).partition(".")[0]
    if not library or library in _OWN_PACKAGES:
        return None
    return HostError(
        library, _with_words("cannot be imported", error), "install the version that constraints.txt names"
    )


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an exception."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _refused(error: OSError) -> EdgeproofError | None:
    """Convert an error of the operating system; None if the environment is not its cause."""
    named = error.filename if error.filename is not None else error.filename2
    place = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else ""
    words = one_line(error.strerror or _words(error))
    found: EdgeproofError | None = None
    if isinstance(error, FileNotFoundError) and not Path(place).is_absolute() and _has_no_folder():
        found = UsageError("working directory", "was removed", "change to a folder that exists")
    elif "temporary directory" in words:
        found = StorageError("TMPDIR", words, "set it to a writable folder")
    elif error.errno == errno.ENOMEM:
        found = HostError(
            place or "memory", f"the system is out of memory ({words})", "free some memory and run again"
        )
    elif error.errno in _TOO_MANY:
        found = HostError(
            place or "the system", f"a limit is reached ({words})", "raise the limit (ulimit -a)"
        )
    elif error.errno in FULL_DISK:
        found = storage_error(place or "disk", error)
    elif place or error.errno == errno.EIO:
        found = StorageError(
            place or "disk", f"cannot be used ({words})", "check the path, its permissions and its disk"
        )
    return found


def _has_no_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 (the folder has no path any more)
    except OSError:
        return True
    return False
