"""Files of every earlier schema can still be read, shown, verified and gated."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[1] / "data"
ARTIFACTS = ("artifact-1", "artifact-2")
# Result -> the exit code of its verdict, and the verdict; None if the result was not judged.
RESULTS = {
    "result-1.json": (0, None),
    "result-2.json": (0, "PASS"),
    "result-3.json": (0, "PASS"),
    "result-3-other-cpu.json": (3, "INCONCLUSIVE"),
    "result-3-unjudged.json": (0, None),
    "artifact-1/result.json": (0, "PASS"),
    "artifact-2/result.json": (0, "PASS"),
}
SCENARIOS = ("multi-stream", "offline", "sustained")
FORMATS = ("bencher", "customSmallerIsBetter", "junit", "markdown", "pyperf", "pytest-benchmark")


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_verified(command, name):
    ran = command("verify", KEPT / name, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["name"], found["files"]) == ("tiny", 6)
    assert (found["golden"]["agreement"], found["golden"]["samples"]) == (1.0, 8)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_shown(command, name):
    code, verdict = RESULTS[name]
    ran = command("show", KEPT / name, "--json")
    assert ran.code == code, ran.err
    found = json.loads(ran.out)
    assert found.get("verdict") == verdict
    models = found["models"]
    assert len(models) == 2
    assert all(model["accuracy"] == 1.0 and model["latency_ns"]["p50"] > 0 for model in models)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_shown_as_a_table(command, name):
    ran = command("show", KEPT / name)
    assert ran.code == RESULTS[name][0]
    assert "100.00%" in ran.out
    assert (RESULTS[name][1] or "accuracy") in ran.out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["result-2.json", "result-3.json"])
def test_a_result_is_converted_to_other_formats(command, name, form):
    ran = command("show", KEPT / name, "--format", form)
    assert ran.code == 0, ran.err
    assert "model.onnx" in ran.out


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_is_shown(command, scenario):
    path = KEPT / f"scenario-1-{scenario}.json"
    found = json.loads(command("show", path, "--json").out)
    assert found["scenario"] == scenario
    assert [Path(model["path"]).name for model in found["models"]] == ["model.onnx"]
    assert scenario in command("show", path).out


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_judged(command, name, tmp_path):
    # Both models are the same file: the command reports this at once and measures no times.
    out = tmp_path / "result.json"
    arguments = ("--baseline", KEPT / name, "--policy", KEPT / "policy.toml", "--out", out, "--json")
    ran = command("gate", KEPT / name, *arguments)
    assert ran.code == 4, ran.err
    judged = json.loads(ran.out)
    assert judged["verdict"] == "INVALID"
    assert "the same file" in judged["reasons"][0]
    (baseline, twin) = json.loads(out.read_text())["criteria"]["budgets"]
    assert baseline == twin == {
        "accuracy": 0.5,
        "agreement": 0.5,
        "latency_p50": 10.0,
        "latency_p90": 10.0,
        "peak_rss": 10.0,
        "size": 10.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_judged_by_its_own_budgets(command, name, tmp_path):
    out = tmp_path / "result.json"
    ran = command("gate", KEPT / name, "--baseline", KEPT / name, "--out", out)
    assert ran.code == 2
    assert "baseline.accuracy = 0.01: 60 evaluation samples are too few" in ran.err
    copy = tmp_path / "copy"
    shutil.copytree(KEPT / name, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["gate"]["baseline"]["accuracy"] = 0.25
    (copy / "manifest.json").write_text(json.dumps(manifest))
    ran = command("gate", copy, "--baseline", copy, "--out", out)
    assert ran.code == 4, ran.err
    assert json.loads(out.read_text())["criteria"]["budgets"][0]["accuracy"] == 0.25


def test_a_certificate_is_read(command, tmp_path):
    model, out = KEPT / "artifact-2" / "model.onnx", tmp_path / "result.json"

    def line():
        assert command("compare", model, model, "--out", out).code == 4
        return json.loads(out.read_text())["certificate"]

    assert "not measured" in line()
    # A certificate is valid for its host only, so its host is replaced by this one.
    certificate = json.loads((KEPT / "certificate-1.json").read_text())
    certificate["host"] = json.loads(out.read_text())["host"]
    host = json.dumps(certificate["host"], separators=(",", ":"), ensure_ascii=False)
    folder = tmp_path / "cache" / "edgeproof" / "certificates"
    folder.mkdir(parents=True)
    key = hashlib.sha256(host.encode()).hexdigest()[:16]
    (folder / f"{key}.json").write_text(json.dumps(certificate))
    assert "10 pairs of model.onnx, budget 50%): 0 FAIL in 2 runs with an unchanged model" in line()


def test_no_sample_contains_local_paths():
    for path in KEPT.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(place in content for place in (b"/tmp/", b"/home/", b"/root/", b"/Users/")), path
