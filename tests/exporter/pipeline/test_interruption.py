"""Builds that are killed, that run at the same time, or that run out of disk space."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from exporter.caching.cache import Cache

pytestmark = pytest.mark.slow


def built_model(project):
    return (project.entry("quantize") / "model.onnx").read_bytes()


def kill_at(process, project, event, step):
    """Kill a build with SIGKILL as soon as its log contains an event."""
    while not any(line["event"] == event and line.get("step") == step for line in project.events()):
        try:
            process.wait(
                timeout=0.002
            )  # waits between reads of the log, and detects a build that ended early
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the build ended before {event} {step}: {process.stderr.read()}")
    process.kill()
    process.communicate()
    assert process.returncode == -9


def test_a_killed_build_resumes_at_the_interrupted_step(project, built_once):
    """The build is killed four times, each at another step; finished steps never run again."""
    moments = [("start", "pretrained"), ("done", "finetune"), ("start", "export"), ("start", "parity")]
    for event, step in moments:
        kill_at(project.start("--until", "parity"), project, event, step)
        done = {line["step"]: line["key"] for line in project.events("done")}
        cache = Cache(project.cache)
        # Each kind of step occurs once in this recipe, so the name of each step is its kind.
        assert all(cache.find(key, step) is not None for step, key in done.items())
    process = project.start("--until", "parity", "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert '"artifact": null' in out
    assert built_model(project) == (built_once.artifact / "model.onnx").read_bytes()
    assert not list(project.cache.rglob(".tmp-*"))
    done = [line["step"] for line in project.events("done")]
    assert sorted(done) == sorted(set(done))


def test_two_builds_at_the_same_time_do_the_work_once(project, built_once):
    processes = [project.start("--until", "parity") for _ in range(2)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    done = [line["step"] for line in project.events("done")]
    assert done == ["pretrained", "finetune", "prune", "export", "quantize", "parity"]
    assert built_model(project) == (built_once.artifact / "model.onnx").read_bytes()
    pids = {line["pid"] for line in project.events()}
    assert pids == {process.pid for process in processes}
    waited = [err for _, err in ends if "waiting for the build of " in err]
    assert len(waited) == 1
    # If the second build comes just after the lock was taken, it does not know the holder yet.
    holders = [*(f"process {pid}" for pid in pids), "another process"]
    assert any(f"waiting for the build of {holder} to finish" in waited[0] for holder in holders)


# Runs `edgeproof` with a limit on the size of files, to simulate a full disk.
LIMITED = """
import atexit, resource, sys
from exporter.cli import main
limit, sys.argv = int(sys.argv[1]), ["edgeproof", *sys.argv[2:]]
free = resource.getrlimit(resource.RLIMIT_FSIZE)
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, free)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, free[1]))
main()
"""


@pytest.mark.parametrize(
    ("step", "file"),
    [("pretrained", "weights.safetensors"), ("quantize", "model.onnx"), ("parity", "evaluation.npz")],
)
def test_a_full_disk_is_reported_in_one_line(project, built_once, step, file):
    """The limit is one byte below the size of a file; all files written before it are smaller."""
    limit = (built_once.entry(step) / file).stat().st_size - 1
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "build", str(project.recipe), "--until", "parity"],
        cwd=project.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    *_, last = ran.stderr.splitlines()
    assert last.startswith("error: ")
    assert "the disk is full; free some space and run again" in last
    assert ran.stderr.count("error: ") == 1
    assert "Traceback" not in ran.stderr
    assert project.events("failed")[0]["step"] == step
    assert not list(project.cache.rglob(".tmp-*"))
    assert not project.artifact.exists()
    # With enough space, the next build resumes at the failed step.
    finished = {line["step"] for line in project.events("done")}
    outcome = project.build(until="parity")
    assert outcome.ran[0] == step
    assert finished.isdisjoint(outcome.ran)


def test_a_full_disk_during_packaging_keeps_the_old_artifact(built):
    before = {path.name: path.read_bytes() for path in built.artifact.iterdir()}
    limit = (built.artifact / "report.html").stat().st_size - 1
    ran = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, str(limit)),
            *("build", str(built.recipe), "--out", str(built.folder / "other")),
        ],
        cwd=built.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert "the disk is full" in ran.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in built.artifact.iterdir()} == before
    assert not (built.folder / "other").exists()
    assert not list(built.folder.glob(".tmp-*"))
