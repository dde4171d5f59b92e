"""Workers that die, hang, or report errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bench.core.arrays import write_npz
from bench.core.errors import ArtifactError, DataError, HostError, MeasurementError, ModelError
from bench.core.faults import WorkerFault, ending
from bench.measuring import worker_process as process
from bench.measuring.protocol import Burst, First, Golden, Memory, Open, Request, Times
from bench.measuring.worker_process import WorkerProcess, read_reply, worker_group


def opening(model, feeds=None):
    return Open(str(model), feeds=feeds, threads=1, arena=True, cores=None)


@dataclass(frozen=True)
class Juggle(Request[Times]):
    """A request that workers do not know."""

    op, reply = "juggle", Times


def wait_for_end(worker):
    """Wait until the process has ended, and return its signal or exit code.

    The process stays waitable, so `WorkerProcess` can still read its status.
    """
    return os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT).si_status


def is_gone(worker):
    return not Path(f"/proc/{worker.pid}").exists()


@pytest.fixture
def worker():
    with WorkerProcess(timeout_s=60) as started:
        yield started


def test_a_worker_answers_in_order(worker, models):
    assert worker.ask(opening(models.dynamic)).session_ns > 0
    assert worker.ask(First()).samples == 1
    assert len(worker.ask(Burst(count=3, untimed=0)).ns) == 3


def test_a_killed_worker_is_a_measurement_error(worker):
    os.kill(worker.pid, signal.SIGKILL)
    wait_for_end(worker)
    with pytest.raises(
        MeasurementError, match=r"died during 'first' \(signal SIGKILL\).*too little memory"
    ) as caught:
        worker.ask(First())
    assert caught.value.exit_code == 4


def test_a_worker_killed_during_a_request(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    worker.begin(Memory())
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(MeasurementError, match="SIGKILL"):
        worker.finish(Memory())


def test_the_error_quotes_the_last_output_of_a_worker_that_exits(worker):
    with pytest.raises(
        MeasurementError, match=r"\(exit code 1\); its last output:.*KeyError: 'juggle'"
    ) as caught:
        worker.ask(Juggle())
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_killed():
    with WorkerProcess(timeout_s=0.2) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(MeasurementError, match=r"did not reply to 'memory' within 0\.2 s"):
            worker.ask(Memory())
        assert wait_for_end(worker) == signal.SIGKILL


def test_a_reply_that_is_too_long_is_refused(worker, monkeypatch):
    monkeypatch.setattr(process, "MAX_REPLY_BYTES", 8)
    with pytest.raises(MeasurementError, match="its reply to 'memory' is longer than 8 bytes"):
        worker.ask(Memory())


def test_a_worker_that_does_not_end_is_killed():
    worker = WorkerProcess(patience_s=0.0)
    os.kill(worker.pid, signal.SIGSTOP)
    worker.close()
    assert is_gone(worker)


def test_errors_arrive_as_they_were_raised(worker, models, tmp_path):
    with pytest.raises(ModelError, match=r"truncated\.onnx: is truncated"):
        worker.ask(opening(models.truncated))
    with pytest.raises(DataError, match="no such file"):
        worker.ask(opening(models.dynamic, str(tmp_path / "none.npz")))
    worker.ask(opening(models.dynamic))
    golden = tmp_path / "golden.npz"
    write_npz(golden, {"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(ArtifactError, match="no expected outputs"):
        worker.ask(Golden(str(golden)))
    assert worker.ask(Memory()).steady.rss_bytes > 2**20


def test_a_group_ends_all_its_workers_after_an_exception():
    with pytest.raises(RuntimeError, match="meanwhile"), worker_group(2, 60) as workers:
        raise RuntimeError("meanwhile")
    assert [is_gone(worker) for worker in workers] == [True, True]


def test_files_in_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess(timeout_s=60) as worker:
        assert worker.ask(Memory()).steady.rss_bytes > 2**20


def test_a_fault_in_a_worker_is_one_line_with_its_traceback(worker, models):
    worker.ask(opening(models.dynamic))
    with pytest.raises(WorkerFault) as caught:
        worker.ask(Burst(count=1, untimed=0))  # before the first run there are no samples
    told = ending(caught.value)
    assert (told.exit_code, told.cause) == (70, "raised ZeroDivisionError (integer modulo by zero)")
    assert told.place.startswith("worker, bench/measuring/worker.py, line ")
    assert "Traceback (most recent call last)" in caught.value.trace
    assert worker.ask(Memory()).steady.rss_bytes > 2**20


@pytest.mark.parametrize(
    "line",
    [
        b"Segmentation fault",
        b"[1, 2]",
        b"\xff",
        b"[" * 100_000,
        b"",
        b"{}",
        b'{"ns": [1]}',
        b'{"peak_rss_bytes": 1}',
    ],
)
def test_an_invalid_reply_is_refused(line):
    with pytest.raises(
        MeasurementError, match=r"worker: its reply to 'memory' is not valid: .*; report"
    ) as caught:
        read_reply(line, Memory())
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.EACCES])
def test_a_worker_that_cannot_be_started(monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(HostError, match=f"worker: cannot be started \\({os.strerror(number)}\\)") as caught:
        WorkerProcess()
    assert caught.value.exit_code == 2


def test_only_the_last_line_of_a_traceback_is_quoted(worker):
    with pytest.raises(MeasurementError) as caught:
        worker.ask(Juggle())
    assert caught.value.cause == "died during 'juggle' (exit code 1); its last output: KeyError: 'juggle'"


def test_an_unusual_encoding_of_standard_streams_does_not_affect_workers(monkeypatch, models):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-16")
    with WorkerProcess(timeout_s=60) as started:
        assert started.ask(opening(models.dynamic)).session_ns > 0
