"""The base install, as on a device, in a new environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from tests.integration.conftest import Device

FORBIDDEN = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "PIL", "matplotlib", "jinja2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def device(make_device: Callable[[], Device]) -> Path:
    """The `bin` folder of a virtual environment that contains only the base install."""
    return make_device().folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier [N, 4] -> [N, 3], with an evaluation set in the same folder."""
    folder = tmp_path_factory.mktemp("model")
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, folder / "model.onnx")
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    np.savez(folder / "evaluation.npz", x=x, labels=(x @ weight).argmax(axis=1))
    return folder / "model.onnx"


@pytest.mark.parametrize("module", FORBIDDEN)
def test_heavy_libraries_are_absent(device: Path, module: str) -> None:
    found = subprocess.run([device / "python", "-c", f"import {module}"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in found.stderr


def test_bench_measures_a_model(device: Path, model: Path) -> None:
    run = subprocess.run(
        [
            device / "edgeproof",
            "bench",
            model,
            "--data",
            model.with_name("evaluation.npz"),
            "--blocks",
            "2",
            "--json",
        ],
        capture_output=True,
        check=True,
        cwd=model.parent,
    )
    (measured,) = json.loads(run.stdout)["models"]
    assert measured["accuracy"] == 1.0
    assert 0 < measured["latency_ns"]["p50"] <= measured["latency_ns"]["p90"]
    assert measured["peak_rss_bytes"] > 10 * 2**20
    assert measured["size_bytes"] == model.stat().st_size


def test_compare_judges_a_model_against_itself(device: Path, model: Path) -> None:
    run = subprocess.run(
        [device / "edgeproof", "compare", model, model, "--same", "--json"],
        capture_output=True,
        check=False,
    )
    answer = json.loads(run.stdout)
    assert answer["metrics"]["size"]["verdict"] == "PASS"
    assert answer["verdict"] in {"PASS", "INCONCLUSIVE"}


def test_the_wheel_contains_the_templates(device: Path, tmp_path: Path) -> None:
    subprocess.run([device / "edgeproof", "new", tmp_path / "project"], check=True, capture_output=True)
    names = sorted(path.name for path in (tmp_path / "project").iterdir())
    assert names == ["data.py", "model.py", "recipe.schema.json", "recipe.toml"]


@pytest.mark.parametrize(("command", "module"), [("build", "torch"), ("inspect", "onnx")])
def test_commands_of_the_workstation_name_the_extra_to_install(
    device: Path, model: Path, tmp_path: Path, command: str, module: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("")
    subject = recipe if command == "build" else model
    run = subprocess.run(
        [device / "edgeproof", command, subject], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {module}: ")
    assert "pip install -c constraints.txt" in run.stderr
