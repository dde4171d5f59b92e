"""Commands open no connection and write nothing outside their folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bench

# System calls that open a connection, or create, open or rename a file.
CALLS = "%network,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink"
CALL = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<arguments>.*)", re.MULTILINE)
PATH = re.compile(r'"(?P<path>/[^"]*)"')
# Devices and the kernel's files about processes do not remain after a command.
NO_FILES = ("/dev/", "/proc/")


def test_telemetry_is_off_before_onnxruntime_is_imported():
    script = "import os, {module}; print([os.environ.get(n) for n in {names}])"
    bare = {name: value for name, value in os.environ.items() if name not in bench.TELEMETRY_OFF}
    names = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
    for module in (
        "bench",
        "exporter",
        "bench.measuring.worker",
        "exporter.pipeline.follow",
        "bench.pytest_plugin",
    ):
        ran = subprocess.run(
            [sys.executable, "-c", script.format(module=module, names=names)],
            env=bare,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == "['1', '1']"


@pytest.fixture
def traced(tmp_path):
    """A function that runs a command under strace, with its own home folder.

    It returns the connections that the command and its processes opened, and the paths that they wrote.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    allowed = subprocess.run([strace, "-f", "-e", "trace=none", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip(f"strace may not trace here: {allowed.stderr.decode().strip()}")
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()

    def run(*arguments: object, cwd: Path) -> tuple[list[str], list[Path]]:
        trace = tmp_path / "trace.txt"
        tracer = [strace, "-f", "--seccomp-bpf", "-s", "4096", "-e", f"trace={CALLS}"]
        # Only these variables, because a library that this process imported may have set its cache folder.
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        folders = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "scratch")}
        own = folders | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(
            [*tracer, "-o", trace, sys.executable, "-m", "exporter", *map(str, arguments)],
            cwd=cwd,
            env=kept | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        calls = [(found["name"], found["arguments"]) for found in CALL.finditer(trace.read_text())]
        connections = [
            arguments
            for name, arguments in calls
            if name in {"socket", "connect", "sendto", "sendmsg", "bind"}
            and "AF_UNIX" not in arguments
            and ("AF_" in arguments or "sa_family" in arguments)
        ]
        written = [
            Path(found["path"])
            for name, arguments in calls
            if not arguments.rstrip().endswith("(No such file or directory)")
            and (not name.startswith("open") or re.search(r"O_WRONLY|O_RDWR|O_CREAT", arguments))
            and name not in {"socket", "connect", "sendto", "sendmsg", "bind", "recvfrom", "recvmsg"}
            for found in PATH.finditer(arguments)
            if not found["path"].startswith(NO_FILES)
        ]
        return connections, written

    return run


def outside(written: list[Path], *folders: Path) -> list[Path]:
    return [path for path in written if not any(path.is_relative_to(folder) for folder in folders)]


def test_a_bench_opens_no_connection_and_leaves_no_file(traced, onnx_models, tmp_path, splits):
    sample = tmp_path / "data.npz"
    np.savez(sample, **splits.evaluation.inputs, labels=splits.evaluation.labels)
    out = tmp_path / "results" / "result.json"
    connections, written = traced(
        "bench", onnx_models.int8, "--data", sample, "--blocks", 1, "--out", out, cwd=tmp_path
    )
    assert connections == []
    assert out.parent in {path.parent for path in written}  # the trace does record writes
    assert outside(written, out.parent, tmp_path / "scratch") == []
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.slow
def test_a_build_opens_no_connection_and_writes_only_in_its_folders(traced, project, tmp_path):
    connections, written = traced("build", project.recipe, cwd=project.folder)
    assert connections == []
    assert project.cache in {path.parent for path in written}
    assert outside(written, project.cache, project.folder / "artifacts", tmp_path / "scratch") == []
    assert not list((tmp_path / "home").iterdir())
