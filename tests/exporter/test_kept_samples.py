"""Recipes and models of earlier versions still work on the workstation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[1] / "data"
ARTIFACTS = ("artifact-1", "artifact-2")


def test_a_recipe_of_all_tables_is_read(command):
    # The whole recipe is read before the step is looked up; the files that it names need not exist.
    ran = command("build", KEPT / "recipe.toml", "--until", "nowhere")
    assert ran.code == 2
    steps = "pretrained, pretrain, finetune, moved, prune, shrink, distill, reestimate, export, quantize"
    assert f"--until nowhere: is not a step of this recipe; choose one of: {steps}, parity, gate" in ran.err


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_inspected(command, name):
    ran = command("inspect", KEPT / name, "--layers", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["int8_mac_ratio"] == 1.0
    assert found["layers"]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_float_model_is_quantized_again(command, name, tmp_path):
    artifact, out = KEPT / name, tmp_path / "int8.onnx"
    data = artifact / "evaluation.npz"
    arguments = ("--data", data, "--target", "portable", "--out", out, "--json")
    ran = command("quantize", artifact / "model.fp32.onnx", *arguments)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["target"] == "portable"
    assert command("inspect", out, "--data", data, "--min-int8", "1").code == 0
