"""The commands as a user runs them, with real processes and real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench
from bench.core.arrays import read_npz, write_npz

ROOT = Path(bench.__file__).parent.parent


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def bench_command(*arguments):
    """Run `python -m bench`; return exit code, standard output and standard error."""
    process = start(*arguments)
    out, err = process.communicate(timeout=200)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def test_help_names_the_commands():
    ran = bench_command("--help")
    assert ran.code == 0
    for name in ("bench", "compare", "gate", "verify"):
        assert name in ran.out


def test_bench_measures_two_models(models, evaluation, samples):
    ran = bench_command(
        "bench", models.dynamic, models.heavy, "--data", evaluation, "--blocks", 2, "--json"
    )
    assert ran.code == 0
    light, heavy = json.loads(ran.out)["models"]
    assert light["accuracy"] == heavy["accuracy"] == pytest.approx(samples.accuracy)
    assert light["latency_ns"]["p50"] < heavy["latency_ns"]["p50"]
    assert light["size_bytes"] == models.dynamic.stat().st_size
    if heavy["peak_rss_bytes"] is not None:
        assert heavy["peak_rss_bytes"] > light["peak_rss_bytes"] > 2**20
    assert "latency and memory: 2/2" in ran.err


@pytest.mark.long
def test_compare_passes_a_clearly_lighter_model(models):
    ran = bench_command("compare", models.heavy, models.dynamic, "--json")
    content = json.loads(ran.out)
    assert (ran.code, content["verdict"]) == (0, "PASS")
    for metric in content["metrics"].values():
        assert 0 < metric["ratio"] < 1
        assert metric["lower"] <= metric["ratio"] <= metric["upper"] <= 1 + metric["budget"]


@pytest.mark.parametrize("as_json", [True, False])
def test_verify_passes_a_complete_artifact(artifact, as_json):
    ran = bench_command("verify", artifact.folder, *["--json"] * as_json)
    assert (ran.code, ran.err) == (0, "")
    if as_json:
        content = json.loads(ran.out)
        assert set(content) == {"artifact", "name", "files", "golden"}
        assert (content["files"], content["golden"]["agreement"]) == (4, 1.0)
    else:
        assert ran.out.startswith(f"{artifact.folder}: 4 files match their hashes; 8 golden samples agree")


def test_verify_finds_other_outputs(artifact):
    golden = artifact.folder / "golden.npz"
    arrays = read_npz(golden)
    write_npz(golden, arrays | {"expected.y": arrays["expected.y"][:, ::-1]})
    artifact.seal()
    ran = bench_command("verify", artifact.folder)
    assert (ran.code, ran.out) == (2, "")
    assert "its outputs on this CPU differ from the outputs at its build" in ran.err


def test_feeds_that_do_not_fit_are_reported_in_one_line(models, tmp_path):
    feeds = tmp_path / "feeds.npz"
    write_npz(feeds, {"x": np.zeros((2, 5), np.float32)})
    ran = bench_command("bench", models.dynamic, "--data", feeds, "--json")
    told = json.loads(ran.out)  # standard output has one object in every case
    assert (ran.code, told["exit_code"]) == (2, 2)
    assert (told["error"]["place"], told["error"]["fix"]) == (str(feeds), "change its shape to ['N', 4]")
    assert (
        ran.err.splitlines()[-1]
        == f"error: {feeds}: feed 'x' has shape [2, 5]; change its shape to ['N', 4]"
    )
    assert "Traceback" not in ran.err


def test_an_interrupt_ends_with_one_line_and_its_exit_code(models):
    process = start("bench", models.dynamic, "--blocks", 1000)
    assert process.stderr.readline() == "latency and memory: 0/1000\n"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted: ")
