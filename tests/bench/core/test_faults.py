"""Reports of exceptions that end a command: errors that a user can fix, and bugs in edgeproof."""

from __future__ import annotations

import errno
import os
import pickle
import traceback
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import HostError, MeasurementError, ModelError, StorageError, UsageError
from bench.core.faults import EXIT_FAULT, WorkerFault, ending, foreseen


def system_error(number, *names):
    return OSError(number, os.strerror(number), *names)


def raised(error):
    """Raise the error and return it with its traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (ModelError("m.onnx", "is bad", "fix it"), ModelError, "m.onnx: is bad; fix it"),
        (MeasurementError("worker", "died", "see"), MeasurementError, "worker: died; see"),
        (system_error(errno.ENOSPC), StorageError, "disk: the disk is full; free"),
        (system_error(errno.ENOSPC, "a.json"), StorageError, "a.json: the disk is full; free"),
        (system_error(errno.EFBIG), StorageError, "disk: the disk is full"),
        (system_error(errno.EIO), StorageError, "disk: cannot be used (Input/output error); check"),
        (system_error(errno.EACCES, "a"), StorageError, "a: cannot be used (Permission denied); check"),
        (system_error(errno.ENAMETOOLONG, b"a"), StorageError, "a: cannot be used (File name too long)"),
        (system_error(errno.ENOENT, "/a"), StorageError, "/a: cannot be used (No such file"),
        (
            system_error(errno.ENOMEM),
            HostError,
            "memory: the system is out of memory (Cannot allocate memory)",
        ),
        (system_error(errno.EMFILE, "a"), HostError, "a: a limit is reached (Too many open files); raise"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/t']"),
            StorageError,
            "TMPDIR: No usable temporary directory found in ['/t']; set it to a writable",
        ),
        (MemoryError(), HostError, "memory: is not sufficient; free some"),
        (MemoryError("9 GiB"), HostError, "memory: is not sufficient (9 GiB); free some"),
        (ImportError("no libx.so", name="numpy.core"), HostError, "numpy: cannot be imported (no libx.so)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), StorageError, "disk: is full ("),
    ],
)
def test_errors_of_the_environment_can_be_fixed_by_the_user(error, kind, line):
    known = foreseen(error)
    assert type(known) is kind
    assert str(known).startswith(line)
    assert ending(error).line() == f"error: {known}"
    assert ending(error).exit_code == (4 if kind is MeasurementError else 2)


def test_the_requested_memory_is_in_the_message():
    with pytest.raises(MemoryError) as caught:
        np.empty((2**50,), np.float64)
    assert "PiB" in ending(caught.value).cause


def test_a_removed_working_folder_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path.cwd()
    assert isinstance(foreseen(caught.value), UsageError)
    assert ending(caught.value).line() == (
        "error: working directory: was removed; change to a folder that exists"
    )
    os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ZeroDivisionError("by\nzero"), "raised ZeroDivisionError (by zero)"),
        (RecursionError("too deep"), "raised RecursionError (too deep)"),
        (system_error(errno.EINVAL), "raised OSError ([Errno 22] Invalid argument)"),
        (
            ImportError("cannot import name 'x'", name="bench.core.files"),
            "raised ImportError (cannot import name",
        ),
        (SystemExit(0), "raised SystemExit (0)"),
        (KeyError(), "raised KeyError"),
    ],
)
def test_other_exceptions_are_bugs(error, cause):
    error = raised(error)
    assert foreseen(error) is None
    told = ending(error)
    assert (told.kind, told.exit_code) == (type(error).__name__, EXIT_FAULT) == (told.kind, 70)
    assert told.cause.startswith(cause)
    assert told.cause.endswith(f"in test_faults.py, line {error.__traceback__.tb_lineno}")
    assert "\n" not in told.line()


def test_the_place_of_a_bug_is_the_innermost_line_in_edgeproof():
    from bench.core.policy import log_budget

    with pytest.raises(TypeError) as caught:
        log_budget("2 %")
    place, _, line = ending(caught.value).place.partition(", line ")
    assert place == "bench/core/policy.py"
    assert int(line) == traceback.extract_tb(caught.value.__traceback__)[-1].lineno


def test_an_exception_without_a_message_is_reported_by_its_type():
    class MuteError(Exception):
        def __str__(self):
            raise ValueError

    assert ending(MuteError()).cause == "raised MuteError"


def test_a_library_that_does_not_load_is_named_by_its_module():
    space = {"__name__": "onnxruntime.capi"}
    with pytest.raises(ImportError) as caught:
        exec("raise ImportError('no lib.so')", space)  # like a module that fails to load
    assert ending(caught.value).line() == (
        "error: onnxruntime: cannot be imported (no lib.so); install the version that constraints.txt names"
    )


def test_a_bug_in_a_worker_keeps_its_traceback():
    fault = WorkerFault("bench/measuring/worker.py, line 1", "raised KeyError ('x')", "Traceback: there")
    told = ending(fault)
    assert told.line() == (
        "error: worker, bench/measuring/worker.py, line 1: raised KeyError ('x'); "
        "this is a bug in edgeproof: report it with the output of --debug"
    )
    assert told.exit_code == EXIT_FAULT
    assert "Traceback: there" in "".join(traceback.format_exception(pickle.loads(pickle.dumps(fault))))


def test_the_json_report_has_the_same_parts():
    assert ending(ModelError("m.onnx", "is bad", "fix it")).as_json() == {
        "error": {"kind": "ModelError", "place": "m.onnx", "cause": "is bad", "fix": "fix it"},
        "exit_code": 2,
    }
