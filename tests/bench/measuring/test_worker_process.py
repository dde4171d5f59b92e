"""Workers that die, hang, or complain."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import numpy as np
import pytest

from bench.core.arrays import write_npz
from bench.core.errors import ArtifactError, DataError, HostError, MeasurementError, ModelError
from bench.core.faults import WorkerFault, ending
from bench.measuring import worker_process as process
from bench.measuring.worker_process import WorkerProcess, worker_group


def open_request(model, feeds=None):
    return {"model": str(model), "feeds": feeds, "threads": 1, "arena": True, "cores": None}


@pytest.fixture
def worker():
    with WorkerProcess(timeout_s=60) as started:
        yield started


def test_a_worker_answers_in_order(worker, models):
    assert worker.ask("open", **open_request(models.dynamic))["session_ns"] > 0
    assert worker.ask("first")["samples"] == 1
    assert len(worker.ask("burst", count=3, untimed=0)["ns"]) == 3


def test_a_killed_worker_is_a_measurement_that_failed(worker):
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    with pytest.raises(
        MeasurementError, match=r"died during 'first' \(signal SIGKILL\).*for memory"
    ) as caught:
        worker.ask("first")
    assert caught.value.exit_code == 4


def test_a_worker_killed_while_it_works(worker):
    os.kill(worker._process.pid, signal.SIGSTOP)
    worker._process.stdin.write(b'{"op": "memory"}\n')
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(MeasurementError, match="SIGKILL"):
        worker._read_line("memory")


def test_a_worker_that_exits_leaves_its_last_words(worker):
    with pytest.raises(
        MeasurementError, match=r"\(exit code 1\); its last words:.*KeyError: 'juggle'"
    ) as caught:
        worker.ask("juggle")
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_killed():
    with WorkerProcess(timeout_s=0.2) as worker:
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(MeasurementError, match=r"no answer to 'memory' within 0\.2 s"):
            worker.ask("memory")
        assert worker._process.wait() == -signal.SIGKILL


def test_an_answer_without_end_is_cut_off(worker, monkeypatch):
    monkeypatch.setattr(process, "_MAX_ANSWER_BYTES", 8)
    with pytest.raises(MeasurementError, match="its answer has no end"):
        worker.ask("memory")


def test_a_worker_that_will_not_end_is_killed(worker, monkeypatch):
    wait, patience = worker._process.wait, []

    def impatient(timeout=None):
        if timeout is not None:
            patience.append(timeout)
            raise subprocess.TimeoutExpired("worker", timeout)
        return wait()

    monkeypatch.setattr(worker._process, "wait", impatient)
    os.kill(worker._process.pid, signal.SIGSTOP)
    worker.close()
    assert len(patience) == 1
    assert worker._process.returncode == -signal.SIGKILL


def test_errors_arrive_as_they_were_raised(worker, models, tmp_path):
    with pytest.raises(ModelError, match=r"truncated\.onnx: is truncated"):
        worker.ask("open", **open_request(models.truncated))
    with pytest.raises(DataError, match="no such file"):
        worker.ask("open", **open_request(models.dynamic, str(tmp_path / "none.npz")))
    worker.ask("open", **open_request(models.dynamic))
    golden = tmp_path / "golden.npz"
    write_npz(golden, {"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(ArtifactError, match="no expected outputs"):
        worker.ask("golden", golden=str(golden))
    assert worker.ask("memory").keys() == {"peak_rss_bytes", "memory"}


def test_a_group_ends_all_its_workers_whatever_happens():
    with pytest.raises(RuntimeError, match="meanwhile"), worker_group(2, 60) as workers:
        raise RuntimeError("meanwhile")
    assert [worker._process.returncode is None for worker in workers] == [False, False]


def test_files_in_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess(timeout_s=60) as worker:
        assert "peak_rss_bytes" in worker.ask("memory")


class Unforeseen:
    """Stands for the worker's process: whatever is asked, it answers with one line."""

    def __init__(self, line):
        self.line = line

    def answer(self, _op):
        return self.line


def test_a_fault_in_a_worker_is_one_line_with_its_traceback(worker, models):
    worker.ask("open", **open_request(models.dynamic))
    with pytest.raises(WorkerFault) as caught:
        worker.ask("burst")
    told = ending(caught.value)
    assert (told.exit_code, told.cause) == (70, "met KeyError ('untimed')")
    assert told.place.startswith("worker, bench/measuring/worker.py, line ")
    assert "Traceback (most recent call last)" in caught.value.trace
    assert worker.ask("memory").keys() == {"peak_rss_bytes", "memory"}


@pytest.mark.parametrize("line", [b"Segmentation fault", b"[1, 2]", b"\xff", b"[" * 100_000, b""])
def test_an_answer_that_is_no_object(worker, monkeypatch, line):
    monkeypatch.setattr(worker, "_read_line", Unforeseen(line).answer)
    worker.begin("memory")
    with pytest.raises(
        MeasurementError, match=r"worker: answered 'memory' with .*, no JSON; report"
    ) as caught:
        worker.finish()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.EACCES])
def test_a_worker_that_cannot_be_started(monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(HostError, match=f"worker: cannot be started \\({os.strerror(number)}\\)") as caught:
        WorkerProcess()
    assert caught.value.exit_code == 2


def test_last_words_are_the_last_line_of_a_traceback(worker):
    with pytest.raises(MeasurementError) as caught:
        worker.ask("juggle")
    assert caught.value.cause == "died during 'juggle' (exit code 1); its last words: KeyError: 'juggle'"


def test_a_strange_encoding_of_standard_streams_reaches_no_worker(monkeypatch, models):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-16")
    with WorkerProcess(timeout_s=60) as started:
        assert started.ask("open", **open_request(models.dynamic))["session_ns"] > 0
