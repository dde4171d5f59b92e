"""Run a command line; it always ends with one line, an exit code and, with `--json`, an object.

The options `--debug` (show the traceback of the exception that ended the command) and `--json` apply to
every command, at any position of the command line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer

from bench.core.errors import HostError, StorageError
from bench.core.faults import Ending, ending
from bench.core.interrupt import interruptible
from bench.core.streams import Output, steady_streams, write_out

EXIT_INTERRUPTED: Final = 130
DEBUG, JSON = "--debug", "--json"
_INTERRUPTED = "finished work is kept, run the command again to continue"
# Base class of all errors in a command line; Typer has no public name for it.
_WRONG_COMMAND_LINE: type[Exception] = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class _Line:
    """The arguments of a command line without `--debug`, and whether `--debug` and `--json` were given."""

    arguments: list[str]
    debug: bool
    as_json: bool


def run(application: typer.Typer) -> None:
    """Run the command line of this process and exit; report an error in one line.

    Raises:
        SystemExit: with the exit code.
    """
    line = _read_line(sys.argv[1:])
    with steady_streams() as output:
        try:
            _check_system()
            output.check_open()
            with interruptible():
                code = application(line.arguments, standalone_mode=False)
            if code == EXIT_INTERRUPTED:  # Typer has turned the KeyboardInterrupt into this code
                code = _interrupted(line, output)
        except KeyboardInterrupt:
            code = _interrupted(line, output)
        except _WRONG_COMMAND_LINE as error:
            code = _wrong(error, line, output)
        except BaseException as error:  # noqa: BLE001 (an unknown exception must not look like a verdict)
            code = _stopped(error, line, output)
    raise SystemExit(code or 0)


def _check_system() -> None:
    """Raise an error on other systems than Linux: they lack /proc, core affinity and memory figures."""
    if sys.platform != "linux":
        raise HostError("operating system", f"{sys.platform} is not supported", "run edgeproof on Linux")


def _read_line(arguments: Sequence[str]) -> _Line:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = arguments[:end]
    kept = [argument for argument in options if argument != DEBUG]
    return _Line([*kept, *arguments[end:]], DEBUG in options, JSON in options)


def _interrupted(line: _Line, output: Output) -> int:
    sys.stderr.write(f"interrupted: {_INTERRUPTED}\n")
    told = Ending("Interrupted", "command", "was interrupted", _INTERRUPTED, EXIT_INTERRUPTED)
    return _tell(told, line, output)


def _wrong(error: Exception, line: _Line, output: Output) -> int:
    """Exit after an invalid command line; Typer shows the usage of the command."""
    from typer.rich_utils import rich_format_error

    found: Any = error
    rich_format_error(found)
    names = getattr(getattr(found, "param", None), "opts", ["command line"])
    told = Ending("UsageError", names[0], found.format_message(), "see --help", found.exit_code)
    return _tell(told, line, output)


def _stopped(error: BaseException, line: _Line, output: Output) -> int:
    # Typer turns a broken pipe and the end of standard input into its own exceptions.
    hidden = isinstance(error, SystemExit | typer.Abort) and isinstance(
        error.__context__, BrokenPipeError | EOFError
    )
    told = ending(error.__context__ if hidden and error.__context__ is not None else error)
    if line.debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    sys.stderr.write(f"{told.line()}\n")
    return _tell(told, line, output)


def _tell(told: Ending, line: _Line, output: Output) -> int:
    """Print the JSON object if it is requested and not printed yet; return the exit code."""
    if line.as_json and not output.used:
        with contextlib.suppress(StorageError):  # standard error already has the line
            write_out(json.dumps(told.as_json(), indent=2) + "\n")
    return told.exit_code
