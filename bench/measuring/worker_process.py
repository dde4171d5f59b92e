"""Start worker processes, and report errors if one of them dies or hangs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from pydantic import TypeAdapter, ValidationError

from bench.core import errors
from bench.core.errors import EdgeproofError, HostError, MeasurementError
from bench.core.faults import WorkerFault
from bench.measuring.protocol import REQUESTS, Fault, Refusal, Reply, Request, request_line

DEFAULT_TIMEOUT_S = 300.0
_LAST_WORDS, _TAIL_BYTES = 400, 64 * 2**10
_TRACEBACK = "Traceback (most recent call last)"
MAX_REPLY_BYTES = 64 * 2**20


class WorkerHandle(Protocol):
    """Interface of a measured process. Tests replace it with a scripted one."""

    def ask(self, request: Request[Reply]) -> Reply:
        """Send a request and wait for its reply."""

    def begin(self, request: Request[Reply]) -> None:
        """Send a request without waiting for its reply."""

    def finish(self, request: Request[Reply]) -> Reply:
        """Wait for the reply to a request that `begin` sent."""

    def close(self) -> None:
        """End the process."""


class WorkerProcess:
    """A fresh `bench.measuring.worker`, started by exec so it inherits nothing of this process's memory."""

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S, *, patience_s: float = 2.0) -> None:
        """Start the process.

        Args:
            timeout_s: maximum time for one request.
            patience_s: time in which the process must end by itself before it is killed.

        Raises:
            HostError: the system cannot start it.
        """
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        try:
            # -P keeps the working directory off sys.path: a file numpy.py in it must not be imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.measuring.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env=os.environ | {"PYTHONPATH": _import_path()},
            )
        except OSError as error:
            self._words.close()
            raise HostError(
                "worker",
                f"cannot be started ({error.strerror})",
                f"make sure that memory is free and that this user may start {sys.executable}",
            ) from error
        self._pending = b""
        self._killed_for_memory = memory_kills()

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def ask(self, request: Request[Reply]) -> Reply:
        """Send a request and wait for its reply.

        Raises:
            EdgeproofError: the worker found an error in its input.
            MeasurementError: the worker died, did not reply in time, or sent an invalid reply.
            WorkerFault: an unexpected exception occurred in the worker.
        """
        self.begin(request)
        return self.finish(request)

    def begin(self, request: Request[Reply]) -> None:
        """Send a request without waiting for its reply.

        Raises:
            MeasurementError: the worker died.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request_line(request))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(request.op) from None

    def finish(self, request: Request[Reply]) -> Reply:
        """Wait for the reply to a request that `begin` sent.

        Raises:
            EdgeproofError: the worker found an error in its input.
            MeasurementError: the worker died, did not reply in time, or sent an invalid reply.
            WorkerFault: an unexpected exception occurred in the worker.
        """
        reply = read_reply(self._read_line(request.op), request)
        if isinstance(reply, Refusal):
            kind = getattr(errors, reply.error, EdgeproofError)
            raise kind(reply.place, reply.cause, reply.fix)
        if isinstance(reply, Fault):
            raise WorkerFault(reply.fault, reply.cause, reply.trace)
        return reply

    def close(self) -> None:
        """Close the pipes, so the process ends; kill it if it does not end in time."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(timeout=self._patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_line(self, op: str) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self._process.kill()
                raise MeasurementError(
                    "worker",
                    f"did not reply to {op!r} within {self._timeout_s:g} s{self._last_words()}",
                    "check that the model runs in ONNX Runtime, or raise timeout_s of the configuration",
                )
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._death(op)
            self._pending += chunk
            if len(self._pending) > MAX_REPLY_BYTES:
                self._process.kill()
                raise MeasurementError(
                    "worker",
                    f"its reply to {op!r} is longer than {MAX_REPLY_BYTES} bytes",
                    "use a smaller evaluation set or a shorter duration",
                )
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _death(self, op: str) -> MeasurementError:
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        fix = "run the model alone in ONNX Runtime to find the cause"
        if code == -signal.SIGKILL:
            now = memory_kills()
            if now is not None and self._killed_for_memory is not None and now > self._killed_for_memory:
                how = "killed by the system because memory was short"
                fix = "free some memory, or measure a smaller model"
            else:
                fix = "free some memory, or measure a smaller model: SIGKILL often means too little memory"
        return MeasurementError("worker", f"died during {op!r} ({how}){self._last_words()}", fix)

    def _last_words(self) -> str:
        self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, self._words.tell() - _TAIL_BYTES))
        words = self._words.read().decode(errors="replace").strip()
        if _TRACEBACK in words:
            words = words.splitlines()[-1]
        return f"; its last output: {words[-_LAST_WORDS:]}" if words else ""


@contextmanager
def worker_group(count: int, timeout_s: float) -> Iterator[list[WorkerHandle]]:
    """Start `count` fresh workers, and end all of them when the context ends, also after an exception."""
    with ExitStack() as stack:
        yield [stack.enter_context(WorkerProcess(timeout_s)) for _ in range(count)]


def memory_kills(root: Path = Path("/")) -> int | None:
    """Number of processes that the system has killed because memory was short; None if it is not reported.

    It is the sum of two counts: the control group's count for a container (cgroup-v2 memory.events), and
    the kernel's count for the whole machine (proc(5), vmstat).
    """
    found = None
    for path in (root / "sys/fs/cgroup/memory.events", root / "proc/vmstat"):
        try:
            lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                found = (found or 0) + int(count)
    return found


def read_reply(line: bytes, request: Request[Reply]) -> Reply | Refusal | Fault:
    """Decode the reply to a request.

    Raises:
        MeasurementError: the line is not a valid reply to this request.
    """
    try:
        reply = _replies()[request.op].validate_json(line, strict=True)
    except ValidationError as error:
        words = line[:_LAST_WORDS].decode(errors="replace")
        raise MeasurementError(
            "worker",
            f"its reply to {request.op!r} is not valid: {words!r}",
            "report this as a bug",
        ) from error
    return reply if isinstance(reply, Refusal | Fault) else cast("Reply", reply)


@cache
def _replies() -> dict[str, TypeAdapter[object]]:
    """Kind of request -> validator of its possible replies."""
    # mypy does not accept a union of variables as a type.
    return {kind.op: TypeAdapter(kind.reply | Refusal | Fault) for kind in REQUESTS}  # type: ignore[arg-type]


def _import_path() -> str:
    """PYTHONPATH of a worker: the folder of this package, then the present PYTHONPATH.

    The worker must import the same ONNX Runtime as this process.
    """
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # Empty entries are left out, because they mean the working directory.
    return os.pathsep.join([_package_root(), *(str(Path(entry).resolve()) for entry in inherited if entry)])


def _package_root() -> str:
    """The folder that contains the package `bench`."""
    return str(Path(__file__).resolve().parents[2])
