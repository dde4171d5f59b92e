"""The command: its output, exit codes and errors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from bench.core.policy import Policy, TwinBudgets, criteria
from bench.judging.gate import judgement_from
from bench.measuring.result import read_result
from exporter import extras
from exporter.pipeline import gate_step

METRIC_KEYS = {
    "ratio",
    "difference",
    "lower",
    "upper",
    "budget",
    "verdict",
    "reason",
    "value",
    "unit",
    "details",
    "not_measured_on",
}
TEACHER = '{ factory = "net:Net", args = { classes = 3 }, checkpoint = "teacher.pth" }'

MODEL_TEACHER = """
[[stage]]
kind = "distill"
name = "other"
teacher = { model = "teacher.onnx" }
"""


def test_help_lists_every_command(command):
    ran = command("--help")
    assert ran.code == 0
    for name in ("build", "bench", "compare", "gate", "verify", "inspect", "quantize", "demo", "new"):
        assert f" {name} " in ran.out


def test_the_version_is_printed(command):
    from importlib.metadata import version

    assert command("--version").out == f"edgeproof {version('edgeproof')}\n"


def test_python_m_exporter_is_the_command():
    ran = subprocess.run(
        [sys.executable, "-m", "exporter", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("edgeproof ")


def test_build_prints_exactly_one_object(built_once):
    content = json.loads(built_once.out)
    assert built_once.code == 0
    assert content["artifact"] == str(built_once.artifact)
    assert content["verdict"] == "PASS"
    assert {"latency_p50", "size", "accuracy"} <= content["metrics"].keys()
    assert all(set(metric) == METRIC_KEYS for metric in content["metrics"].values())
    assert content["ran"] == list(content["stages"])
    assert [model["path"] for model in content["models"]] == ["model.fp32.onnx", "model.onnx"]
    lines = built_once.err.splitlines()
    assert lines[0] == "reading data"
    assert lines[-1] == "gate: done (PASS)"


def test_a_second_build_reports_that_nothing_changed(built, command):
    ran = command("build", built.recipe)
    assert ran.code == 0
    assert "nothing to do: every stage is unchanged and the artifact is up to date" in ran.out
    assert ran.out.splitlines()[-1] == f"PASS  {built.artifact}"
    assert ran.err.splitlines()[-1] == "gate: unchanged (PASS)"


def test_build_stops_at_until(project, command):
    ran = command("build", project.recipe, "--until", "pretrained")
    assert (ran.code, ran.out) == (0, "stopped after pretrained because of --until\n")
    ran = command("build", project.recipe, "--until", "pretrained", "--fresh", "--json")
    content = json.loads(ran.out)
    assert (content["artifact"], content["verdict"], content["metrics"]) == (None, None, {})
    assert content["ran"] == ["pretrained"]


def test_a_repackaged_artifact_is_not_reported_as_unchanged(built, command):
    (built.artifact / "model.onnx").write_bytes(b"altered")
    ran = command("build", built.recipe)
    assert ran.code == 0
    assert "nothing to do" not in ran.out


@pytest.mark.parametrize(("budget", "answer"), [(-0.99, (1, "FAIL")), (10.0, (0, "PASS"))])
def test_the_verdict_is_the_exit_code(built, command, monkeypatch, budget, answer):
    result = read_result(built.artifact / "result.json")
    budgets = TwinBudgets(accuracy=0.5, latency_p50=10.0, size=budget)
    monkeypatch.setattr(
        gate_step,
        "gate_subjects",
        lambda *_, **__: judgement_from(result, criteria(Policy(), [budgets])),
    )
    ran = command("build", built.recipe, "--set", f"gate.float_twin.size={budget}", "--fresh")
    assert (ran.code, ran.out.splitlines()[-1].split()[0]) == answer
    assert ("size FAIL:" in ran.out) is (answer[1] == "FAIL")


def test_inspect_prints_one_object(built_once, command):
    for place in (built_once.artifact, built_once.artifact / "model.onnx"):
        ran = command("inspect", place, "--json")
        content = json.loads(ran.out)
        assert (ran.code, ran.err) == (0, "")
        assert content["int8_mac_ratio"] == 1.0
        assert content["float_ops"] == content["needless_pairs"] == []
        assert content["samples"] == (32 if place == built_once.artifact else 0)
        assert isinstance(content["saturation"], list)
        assert content["macs"] == content["int8_macs"] == 8 * 64 * 9 + 8 * 16 * 8 * 9 + 8 * 3


def test_inspect_shows_what_stayed_in_float(built_once, command):
    ran = command("inspect", built_once.artifact / "model.fp32.onnx")
    first, *rest = ran.out.splitlines()
    assert first == "0.0% of 13,848 multiply-adds run in int8"
    assert rest[0].startswith("  float: body (")
    assert len(rest) == 3


def test_inspect_shows_layers_that_may_saturate_if_such_a_target_is_asked_for(built_once, command):
    """The tiny network was quantized for VNNI, so its weights use all 8 bits."""
    model, data = (built_once.artifact / name for name in ("model.onnx", "evaluation.npz"))
    assert "saturate" not in command("inspect", model, "--data", data).out
    avx2 = ("--target", "x86-avx2")
    bounded = [line for line in command("inspect", model, *avx2).out.splitlines() if "saturate" in line]
    assert bounded
    assert all(line.startswith("  may saturate without VNNI: ") for line in bounded)
    assert all(line.endswith(" channels; not observed)") for line in bounded)
    seen = command("inspect", model, "--data", data, *avx2).out
    assert seen == command("inspect", built_once.artifact, *avx2).out
    lines = [line for line in seen.splitlines() if "saturate" in line]
    assert len(lines) <= len(bounded)
    assert all("of its sums saturate on 32 samples, SQNR " in line for line in lines)
    refused = command("inspect", model, "--target", "z80")
    assert (refused.code, "x86-avx2" in refused.err) == (2, True)


def test_inspect_fails_below_min_int8(built_once, command):
    float_model = built_once.artifact / "model.fp32.onnx"
    ran = command("inspect", float_model, "--min-int8", 0.5, "--json")
    assert (ran.code, json.loads(ran.out)["int8_mac_ratio"]) == (1, 0.0)
    assert ran.err == (
        "FAIL: 0.0% of multiply-adds run in int8, at least 50.0% required; "
        "3 operators stay in float, the largest is body: it was not quantized\n"
    )
    assert command("inspect", built_once.artifact, "--min-int8", 1).code == 0
    assert command("inspect", built_once.artifact, "--min-int8", 1.5).code == 2


def test_inspect_names_uncounted_operators(command, tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w"], ["i"], name="product"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Det", ["f"], ["y"], name="[b]volume"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.uint8(128), "z"),
            numpy_helper.from_array(np.ones((2, 2), np.int8), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "half.onnx")
    cause = "Det '[b]volume' is not counted (no formula for its multiply-adds is known)"
    ran = command("inspect", tmp_path / "half.onnx", "--min-int8", 0.95)
    assert ran.code == 1
    assert ran.out.splitlines() == [
        f"at most 100.0% of 8 multiply-adds run in int8: {cause}",
        "  not counted: [b]volume (Det): no formula for its multiply-adds is known",
    ]
    assert ran.err == (
        f"FAIL: at most 100.0% of multiply-adds run in int8, at least 95.0% required; {cause}\n"
    )
    content = json.loads(command("inspect", tmp_path / "half.onnx", "--json").out)
    assert [one["op_type"] for one in content["uncounted"]] == ["Det"]


def test_inspect_prints_names_unchanged(built_once, command, tmp_path):
    model = onnx.load(built_once.artifact / "model.fp32.onnx")
    for node in model.graph.node:
        node.name = f"[/red]{node.name}[bold]"
    onnx.save(model, tmp_path / "odd.onnx")
    ran = command("inspect", tmp_path / "odd.onnx")
    assert (ran.code, "float: [/red]body[bold] (" in ran.out) == (0, True)


def test_inspect_without_onnx_names_the_extra(built_once, command, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    ran = command("inspect", built_once.artifact)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: onnx: this Python module is not installed; run: pip install")


@pytest.mark.slow
def test_new_then_build(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = command("new", "[b]mine")
    assert (ran.code, ran.out) == (0, "wrote [b]mine; next: edgeproof build [b]mine/recipe.toml\n")
    assert command("new", "[b]mine").code == 2
    smaller = {
        "data.args.train": 90,
        "data.args.calibration": 30,
        "data.args.evaluation": 120,
        "stage.finetune.epochs": 1,
        "gate.float_twin.accuracy": 1.0,
        "gate.float_twin.latency_p50": 10.0,
    }
    overrides = [part for key, value in smaller.items() for part in ("--set", f"{key}={value}")]
    ran = command("build", "[b]mine/recipe.toml", "--json", *overrides)
    content = json.loads(ran.out)
    assert (ran.code, content["verdict"]) == (0, "PASS")
    assert content["artifact"] == str(tmp_path / "artifacts" / "my-model")
    assert command("verify", content["artifact"]).code == 0


def checkpoint(project, content):
    """Name a checkpoint in the recipe, and write it unless `content` is None."""
    name = "weights.safetensors" if isinstance(content, dict) else "weights.pth"
    project.edit("recipe.toml", "[data]", f'checkpoint = "{name}"\n\n[data]')
    if isinstance(content, dict):
        save_file(content, project.folder / name)
    elif content is not None:
        (project.folder / name).write_bytes(content)


class Program:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def truncated(project):
    torch.save({"stem.weight": torch.zeros(400)}, project.folder / "whole.pth")
    return (project.folder / "whole.pth").read_bytes()[:900]


def data(project, statement):
    """Change the data factory so that it runs `statement` on its splits before it returns them."""
    with (project.folder / "shapes.py").open("a") as stream:
        stream.write(f"\n\ndef spoilt():\n    s = make_splits()\n    {statement}\n    return s\n")
    project.edit("recipe.toml", "shapes:make_splits", "shapes:spoilt")


def module(project, text):
    (project.folder / "net.py").write_text(text)


BAD_PROJECTS = {
    "no TOML": (lambda p: p.recipe.write_text("name = "), "is not valid TOML"),
    "unknown key": (
        lambda p: p.edit("recipe.toml", "epochs", "epoch"),
        "recipe.toml: stage.0.finetune.epoch: unknown key; use one of: batch_size",
    ),
    "wrong type": (
        lambda p: p.edit("recipe.toml", "epochs = 2", 'epochs = "two"'),
        "recipe.toml: stage.0.finetune.epochs: 'two' is refused; input should be a valid integer",
    ),
    "missing module": (lambda p: p.edit("recipe.toml", "net:Net", "nut:Net"), "there is no module 'nut'"),
    "missing attribute": (
        lambda p: p.edit("recipe.toml", "net:Net", "net:Nett"),
        "module 'net' has no 'Nett'; did you mean 'Net'?",
    ),
    "module raises": (lambda p: module(p, "1 / 0\n"), "raised ZeroDivisionError"),
    "module ends the process": (lambda p: module(p, "exit(0)\n"), "raised SystemExit"),
    "syntax": (lambda p: module(p, "def Net(:\n"), "fix net.py, line 1"),
    "factory raises": (
        lambda p: p.edit("recipe.toml", "classes = 3 }", "sizes = 3 }"),
        "model.factory: raised TypeError",
    ),
    "checkpoint missing": (lambda p: checkpoint(p, None), "there is no file 'weights.pth'"),
    "checkpoint truncated": (lambda p: checkpoint(p, truncated(p)), "is truncated or not a checkpoint"),
    "checkpoint empty": (lambda p: checkpoint(p, b""), "is truncated or not a checkpoint"),
    "checkpoint foreign": (
        lambda p: checkpoint(p, {"other.weight": torch.zeros(3)}),
        "belongs to another network",
    ),
    "checkpoint a program": (
        lambda p: checkpoint(p, pickle.dumps(Program())),
        "is a pickle that would run code",
    ),
    "NaN": (
        lambda p: data(p, "s.train.inputs['image'][7] = np.nan"),
        "data: train: input 'image': sample 7 contains NaN or infinity; correct or remove such samples",
    ),
    "one class": (lambda p: data(p, "s.train.labels[:] = 1"), "data: train: contains a single class"),
    "labels out of range": (
        lambda p: data(p, "s.evaluation.labels[3] = 9"),
        "model: label 9 in evaluation is out of range for the network's 3 classes",
    ),
    "too few samples": (
        lambda p: p.edit("recipe.toml", "samples = 16", "samples = 4000"),
        "quantize.samples: 4000 samples are requested, but the calibration split has 24",
    ),
    "data do not fit": (
        lambda p: p.edit("net.py", "nn.Conv2d(1,", "nn.Conv2d(3,"),
        "model: the network does not run on inputs of shapes",
    ),
    "teacher missing": (
        lambda p: p.edit(
            "recipe.toml", "[quantize]", f'[[stage]]\nkind = "distill"\nteacher = {TEACHER}\n\n[quantize]'
        ),
        "error: distill.teacher.checkpoint: there is no file 'teacher.pth'",
    ),
    "teacher model missing": (
        lambda p: p.edit("recipe.toml", "[quantize]", f"{MODEL_TEACHER}\n[quantize]"),
        "error: other.teacher.model: there is no file 'teacher.onnx'",
    ),
    "all frozen": (
        lambda p: p.edit(
            "recipe.toml", "epochs = 2", 'epochs = 2\nfreeze = ["stem", "norm", "body", "head"]'
        ),
        "finetune.freeze: all weights are frozen in epoch 0",
    ),
    "unknown node": (
        lambda p: p.edit("recipe.toml", "samples = 16", 'samples = 16\nexclude = ["neck"]'),
        "quantize.exclude: the graph has no node 'neck'",
    ),
    "control flow": (
        lambda p: p.edit("net.py", "        return self.head(x)", CONTROL_FLOW),
        "branches on the values of a tensor",
    ),
}
CONTROL_FLOW = "        if x.sum() > 0:\n            x = x * 2\n        return self.head(x)"


def check_refusal(ran, words):
    """Check that a single line begins with `error:`, at the end, without traceback or standard output."""
    assert (ran.code, ran.out) == (2, "")
    *before, last = ran.err.splitlines()
    assert last.startswith("error: ")
    assert words in last
    assert not any(line.startswith("error: ") for line in before)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", BAD_PROJECTS)
def test_bad_projects_are_refused_in_one_line(project, command, name):
    spoil, words = BAD_PROJECTS[name]
    spoil(project)
    check_refusal(command("build", project.recipe), words)
    assert not project.artifact.exists()
    assert not (project.folder / "it-ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "absent.toml"], "absent.toml: cannot be read (No such file or directory)"),
        (["build", "recipe.toml", "--set", "seed"], "--set seed: does not have the form table.key=value"),
        (["build", "recipe.toml", "--set", "stage.tune.epochs=1"], "there is no stage 'tune'"),
        (["build", "recipe.toml", "--until", "never"], "is not a step of this recipe"),
        (
            ["build", "recipe.toml", "--out", "."],
            "is not empty and has no manifest.json",
        ),
        (["build", "recipe.toml", "--out", "net.py"], "is a file"),
        (["inspect", "absent.onnx"], "absent.onnx: there is no such file or folder"),
        (["inspect", "net.py"], "net.py: is truncated or not an ONNX model"),
        (["inspect", "."], "manifest.json: cannot be read"),
        (["ablate", "recipe.toml", "--out", "/proc/x.json"], "/proc/x.json: cannot be written"),
        (["ablate", "recipe.toml", "--out", "net.py/x.json"], "net.py/x.json: cannot be written"),
        (["new", "."], "exists and is not empty"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(project, command, arguments, words):
    check_refusal(command(*arguments), words)


def test_follow_refuses_a_recipe_that_does_not_exist(command, tmp_path):
    check_refusal(
        command("follow", tmp_path / "none.toml", "--node", 1), "none.toml: there is no such file"
    )


def test_a_truncated_model_is_refused(built_once, command, tmp_path):
    content = (built_once.artifact / "model.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])
    check_refusal(
        command("inspect", tmp_path / "half.onnx"), "half.onnx: is truncated or not an ONNX model"
    )


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_an_altered_artifact_is_refused(built_once, command, tmp_path, name):
    shutil.copytree(built_once.artifact, tmp_path / "artifact")
    with (tmp_path / "artifact" / "evaluation.npz").open("r+b") as stream:
        stream.seek(30)
        stream.write(b"\x00\x01")
    check_refusal(command(name, tmp_path / "artifact"), "differs from the hash in the manifest")


def test_a_users_numpy_does_not_replace_the_real_one(project, command):
    (project.folder / "numpy.py").write_text("raise RuntimeError('not the real one')\n")
    (project.folder / "typing.py").write_text("raise RuntimeError('not the real one')\n")
    assert command("build", project.recipe, "--until", "pretrained").code == 0
    assert np.__file__
