"""Measure the figures of the README again: `make perf`, by hand, on an idle machine.

The tests measure the reference artifact, which `make demo` builds; finished steps come from the cache.
Float and int8 take turns in fresh processes; each ratio comes with its bounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.inputs.evaluation import read_evaluation
from bench.inputs.session import RuntimeOptions, open_session

pytestmark = pytest.mark.perf

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "models" / "efficientnet_lite" / "digits.toml"
MIN_SPEEDUP = 1.7


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the reference artifact."""
    out = tmp_path_factory.mktemp("reference") / "artifact"
    run = subprocess.run(
        [sys.executable, "-m", "exporter", "build", str(RECIPE), "--out", str(out), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(run.stdout)["verdict"] == "PASS"
    return out


def test_int8_is_at_least_1_7_times_as_fast_as_float(artifact: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench", "gate", str(artifact), "--json"],
        stdout=subprocess.PIPE,
        check=False,
    )
    metric = json.loads(run.stdout)["metrics"]["latency_p50"]
    print(f"int8 / float: {metric['ratio']:.3f} ({metric['lower']:.3f} ... {metric['upper']:.3f})")
    assert metric["upper"] <= 1 / MIN_SPEEDUP


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.onnx"])
def test_latency_of_one_inference(artifact: Path, name: str, benchmark) -> None:
    session = open_session(artifact / name, RuntimeOptions(threads=1))
    evaluation = read_evaluation(artifact / "evaluation.npz", rows=1)
    feeds = {key: np.ascontiguousarray(value) for key, value in evaluation.feeds.items()}
    benchmark.pedantic(session.run, args=(None, feeds), rounds=500, iterations=1, warmup_rounds=50)
    assert benchmark.stats.stats.rounds == 500


def test_second_build_does_no_work(artifact: Path) -> None:
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "exporter", "build", str(RECIPE), "--out", str(artifact), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    print(f"second build: {time.monotonic() - start:.1f} s")
    assert json.loads(run.stdout)["ran"] == []
