"""The errors that edgeproof raises on purpose.

    EdgeproofError                 exit code 2
    ├── UsageError                 a command or a public function was called wrongly
    ├── DataError                  feeds or labels cannot be used
    ├── ModelError                 an .onnx cannot be loaded or run on this host
    ├── ArtifactError              an artifact folder is incomplete or was changed
    ├── ResultError                a result file cannot be read
    ├── PolicyError                a policy has unknown keys or impossible budgets
    ├── StorageError               the disk is full or not writable
    ├── HostError                  too little memory, too few processes or files, or a library does not load
    ├── MissingExtraError          an optional dependency is not installed
    ├── MeasurementError           exit code 4: a worker process died, hung or sent an invalid reply
    └── (exporter.errors)          recipes, checkpoints, stages, exports

Every other exception is a bug in edgeproof: `bench.core.faults`, exit code 70.
Every message is one line of three parts: place, cause, fix.
"""

from __future__ import annotations

EXIT_BAD_INPUT = 2
EXIT_INVALID = 4


class EdgeproofError(Exception):
    """Base class of all errors that a user can fix.

    Args:
        place: the file, the key, the layer or the option that is wrong.
        cause: what is wrong with the place.
        fix: what the user can do about it.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, place: object, cause: str, fix: str) -> None:
        # Spaces stay because paths may contain several; a line break in a key or file name becomes a space.
        self.place = " ".join(str(place).splitlines())
        self.cause, self.fix = one_line(cause), one_line(fix)
        super().__init__(f"{self.place}: {self.cause}; {self.fix}")

    def __reduce__(self) -> tuple[type[EdgeproofError], tuple[str, str, str]]:
        return type(self), (self.place, self.cause, self.fix)


class UsageError(EdgeproofError):
    """A command or a public function was called wrongly."""


class DataError(EdgeproofError):
    """Feeds or labels that cannot be used."""


class ModelError(EdgeproofError):
    """An .onnx file that cannot be loaded or run with this runtime."""


class ArtifactError(EdgeproofError):
    """An artifact folder that is incomplete or was changed."""


class ResultError(EdgeproofError):
    """A result file that cannot be read."""


class PolicyError(EdgeproofError):
    """A policy with unknown keys or impossible budgets."""


class StorageError(EdgeproofError):
    """The disk is full, or a folder cannot be written."""


class HostError(EdgeproofError):
    """The host lacks memory, processes or open files, or a library does not load."""


class MissingExtraError(EdgeproofError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            module,
            "this Python module is not installed",
            f'run: pip install -c constraints.txt "edgeproof[{extra}]"',
        )
        self.module, self.extra = module, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.module, self.extra)


class MeasurementError(EdgeproofError):
    """A worker process died, hung, or sent an invalid reply: nothing was measured."""

    exit_code = EXIT_INVALID


def one_line(text: str, limit: int = 600) -> str:
    """Return `text` on one line of at most `limit` characters, for messages that quote a library."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"
