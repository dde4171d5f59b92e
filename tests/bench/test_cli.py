"""The command line with scripted workers: exit codes, output streams, written files."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from pathlib import Path

import pytest
import typer

from bench import cli
from bench.core import files
from bench.core.command import EXIT_INTERRUPTED, run
from bench.core.errors import MeasurementError, ModelError
from bench.judging import gate
from bench.measuring import measure, result
from bench.measuring.measure import MeasureConfig
from bench.measuring.result import read_result

METRIC_KEYS = {
    "ratio",
    "difference",
    "value",
    "unit",
    "lower",
    "upper",
    "budget",
    "verdict",
    "reason",
    "details",
    "not_measured_on",
}
RIGHT = [0] * 40
# Forty samples cannot resolve a smaller loss.
LENIENT = {"float_twin": {"accuracy": 0.2}, "baseline": {"accuracy": 0.2}}
NAMES = ("model.onnx", "model.fp32.onnx", "dynamic.onnx", "rounded.onnx")


@pytest.fixture
def workers(scripted, monkeypatch):
    """Scripted workers for all commands; the artifact's int8 model takes half of float's time."""
    script = scripted(
        predictions=dict.fromkeys(NAMES, RIGHT), labels=RIGHT, slowdown={"model.fp32.onnx": 2.0}
    )
    for name in ("compare", "gate"):
        monkeypatch.setattr(gate, name, functools.partial(getattr(gate, name), workers=script))
    monkeypatch.setattr(measure, "measure", functools.partial(measure.measure, workers=script))
    monkeypatch.setattr(measure, "MeasureConfig", functools.partial(MeasureConfig, rounds=3))
    return script


def test_bench_prints_one_object(command, workers, artifact):
    ran = command("bench", artifact.folder, "--json", "--blocks", 2)
    content = json.loads(ran.out)
    twin = str(artifact.folder / "model.fp32.onnx")
    assert (ran.code, [model["path"] for model in content["models"]][1]) == (0, twin)
    for model in content["models"]:
        assert len(model["sha256"]) == 64
        assert model["latency_ns"].keys() == {"p50", "p90", "p99", "count", "bounds"}
        assert model["peak_rss_bytes"] > model["size_bytes"] > 0
        assert model["accuracy"] == 1.0
    assert content["data"]["synthetic"] is False
    assert workers.counts["memory"] == 4
    assert ran.err.splitlines()[0] == "accuracy: 0/2"


def test_bench_shows_a_table(command, workers, models, tmp_path):
    out = tmp_path / "result.json"
    ran = command("bench", models.dynamic, models.rounded, "--blocks", 1, "--threads", 2, "--out", out)
    head, *rows = ran.out.splitlines()
    assert head.split() == ["dynamic.onnx", "rounded.onnx"]
    assert rows[-1] == "feeds: synthetic (made from the input signature); no accuracy"
    written = read_result(out)
    assert written.settings.threads == 2
    assert len(written.models[0].runs) == 1
    assert workers.asked("open")[0].threads == 2


def test_bench_takes_data(command, workers, models, evaluation):
    ran = command("bench", models.dynamic, "--data", evaluation, "--blocks", 1)
    assert "100.00%" in ran.out
    assert "synthetic" not in ran.out


@pytest.mark.parametrize("name", ["bench", "gate", "compare"])
def test_a_model_for_another_kind_of_cpu_causes_a_warning(command, workers, artifact, name):
    artifact.recipe["gate"] = LENIENT
    artifact.seal(target="z80")
    arguments = [name, artifact.folder, *([artifact.folder] if name == "compare" else [])]
    ran = command(*arguments, "--json")
    warnings = json.loads(ran.out)["warnings"]
    assert len(warnings) == (2 if name == "compare" else 1)
    assert warnings[0].startswith(f"{artifact.folder} was made for 'z80', this CPU is ")
    assert ran.err.splitlines()[0] == f"warning: {warnings[0]}"
    artifact.seal(target="portable")
    ran = command(*arguments, "--json")
    assert (json.loads(ran.out)["warnings"], "warning" in ran.err) == ([], False)


def test_compare_prints_one_object(command, workers, models, evaluation, tmp_path):
    out = tmp_path / "result.json"
    ran = command("compare", models.dynamic, models.rounded, "--data", evaluation, "--json", "--out", out)
    content = json.loads(ran.out)
    # Forty samples are too few to resolve a loss of one point of accuracy.
    assert (ran.code, content["verdict"]) == (3, "INCONCLUSIVE")
    assert set(content["metrics"]) == {
        "latency_p50",
        "latency_p90",
        "peak_rss",
        "size",
        "accuracy",
        "agreement",
    }
    assert all(set(metric) == METRIC_KEYS for metric in content["metrics"].values())
    assert content["metrics"]["accuracy"]["difference"] == 0.0
    assert content["reasons"][0].startswith("accuracy INCONCLUSIVE: ")
    assert len(read_result(out).models) == 2


@pytest.mark.parametrize(
    ("slowdown", "code", "verdict"), [(1.0, 0, "PASS"), (1.3, 1, "FAIL"), (1.02, 3, "INCONCLUSIVE")]
)
def test_the_exit_code_is_the_verdict(command, workers, models, *, slowdown, code, verdict):
    workers.slowdown["rounded.onnx"] = slowdown
    ran = command("compare", models.dynamic, models.rounded)
    assert ran.code == code
    assert f"\n{verdict}\n" in ran.out
    assert ("latency_p50 FAIL" in ran.out) == (verdict == "FAIL")


def test_a_gate_without_labels_is_invalid(command, workers, models):
    ran = command("gate", models.rounded, "--baseline", models.dynamic, "--json")
    assert ran.code == 4
    assert json.loads(ran.out)["metrics"]["accuracy"]["verdict"] == "INVALID"


def test_a_gate_judges_by_the_recipe(command, workers, artifact):
    artifact.recipe["gate"] = {"min_accuracy": 0.9, "float_twin": {"accuracy": 0.2}}
    artifact.seal()
    ran = command("gate", artifact.folder, "--json")
    metrics = json.loads(ran.out)["metrics"]
    assert ran.code == 0
    assert metrics["accuracy"]["budget"] == 0.2
    assert metrics["min_accuracy"]["verdict"] == "PASS"


def test_a_policy_replaces_that_of_the_recipe(command, workers, artifact, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[float_twin]\naccuracy = 0.3\nlatency_p50 = -0.6\n")
    ran = command("gate", artifact.folder, "--policy", policy, "--json")
    metrics = json.loads(ran.out)["metrics"]
    assert ran.code == 1
    assert "min_accuracy" not in metrics
    assert metrics["latency_p50"]["verdict"] == "FAIL"


def test_a_gate_shows_both_judgements(command, workers, artifact, models):
    artifact.recipe["gate"] = LENIENT
    artifact.seal()
    ran = command("gate", artifact.folder, "--baseline", models.dynamic)
    assert "against its own float model" in ran.out
    assert ran.out.count("latency_p50") >= 2
    head = ran.out.splitlines()[0].split()
    assert head == ["dynamic.onnx", "model.fp32.onnx", "model.onnx", "change"]


def test_a_wrong_key_in_the_gate_of_a_recipe_is_reported(command, workers, artifact):
    artifact.recipe["gate"] = {"speed": 1}
    artifact.seal()
    ran = command("gate", artifact.folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {artifact.folder}: speed: unknown key")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("bench", "none.onnx"), "error: none.onnx: there is no such file or folder; check the path"),
        (("compare", "none", "none"), "error: none: there is no such file or folder; check the path"),
        (("verify", "none"), "error: none: is not a folder; pass the artifact folder of a build"),
        (("gate", "none", "--policy", "none.toml"), "error: none.toml: cannot be read ("),
    ],
)
def test_a_missing_path_is_reported_in_one_line(command, arguments, line):
    ran = command(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(line)
    assert ran.err.count("\n") == 1


def test_a_lone_model_cannot_be_gated(command, models):
    ran = command("gate", models.dynamic)
    assert ran.code == 2
    assert "add --baseline" in ran.err


@pytest.mark.parametrize("arguments", [("bench",), ("bench", "m", "--blocks", 0), ("juggle",)])
def test_a_wrong_command_line_is_bad_input(command, arguments):
    ran = command(*arguments)
    assert (ran.code, ran.out) == (2, "")


def test_a_result_does_not_replace_a_folder(command, workers, models, tmp_path):
    ran = command("bench", models.dynamic, "--blocks", 1, "--out", tmp_path)
    assert ran.code == 2
    assert (
        ran.err.splitlines()[-1]
        == f"error: {tmp_path}: exists and is not a regular file; choose another place"
    )


def test_paths_are_not_interpreted_as_markup(command, workers, models, tmp_path):
    path = tmp_path / "model[int8].onnx"
    path.write_bytes(models.dynamic.read_bytes())
    assert "model[int8].onnx" in command("bench", path, "--blocks", 1).out


def application(action):
    app = typer.Typer()
    app.command()(action)
    return app


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModelError("m.onnx", "is bad", "fix it"), 2, "error: m.onnx: is bad; fix it\n"),
        (MeasurementError("worker", "died", "see"), 4, "error: worker: died; see\n"),
        (
            KeyboardInterrupt(),
            EXIT_INTERRUPTED,
            "interrupted: finished work is kept, run the command again to continue\n",
        ),
    ],
)
def test_exit_code_and_line_of_an_error(monkeypatch, capsys, error, code, words):
    def act():
        raise error

    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as end:
        run(application(act))
    assert end.value.code == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("show", [cli.print_rich, cli.print_json])
def test_a_closed_pipe_raises_nothing(monkeypatch, show):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        show("dropped")
        show("dropped too")
        monkeypatch.undo()


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        cli.print_json({"value": float("nan")})


@pytest.fixture
def own_files(artifact, models, evaluation, tmp_path):
    """Input files of a user: placeholder in the arguments -> path."""
    files = {"ARTIFACT": artifact.folder, "RESULT": tmp_path / "result.json"}
    for name, source in (("MODEL", models.dynamic), ("OTHER", models.rounded), ("DATA", evaluation)):
        files[name] = tmp_path / source.name
        files[name].write_bytes(source.read_bytes())
    files["POLICY"] = tmp_path / "policy.toml"
    files["POLICY"].write_text("min_accuracy = 0.5\n")
    return files


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "MODEL", "--out", "MODEL"),
        ("bench", "MODEL", "--data", "DATA", "--out", "DATA"),
        ("bench", "ARTIFACT", "--out", "ARTIFACT/result.json"),
        ("compare", "OTHER", "MODEL", "--out", "OTHER"),
        ("compare", "OTHER", "MODEL", "--out", "MODEL"),
        ("gate", "MODEL", "--baseline", "OTHER", "--out", "OTHER"),
        ("gate", "MODEL", "--baseline", "OTHER", "--policy", "POLICY", "--out", "POLICY"),
        ("gate", "ARTIFACT", "--out", "ARTIFACT/manifest.json"),
        ("show", "RESULT", "--format", "junit", "--out", "RESULT"),
    ],
    ids=" ".join,
)
def test_an_output_that_is_an_input_is_refused(command, workers, own_files, arguments):
    folder = own_files["ARTIFACT"].parent
    assert command("bench", own_files["MODEL"], "--blocks", 1, "--out", own_files["RESULT"]).code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    asked = len(workers.requests)
    named = []
    for word in arguments:
        name, slash, inner = word.partition("/")
        named.append(f"{own_files.get(name, name)}{slash}{inner}")
    ran = command(*named)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert "which is an input; choose another --out" in ran.err
    assert ran.err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(workers.requests) == asked


def no_room(path, _content):
    with files.storage_errors(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["bench", "compare", "gate"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_verdict_is_shown_even_if_the_disk_is_full(
    command, workers, artifact, models, tmp_path, *, monkeypatch, name, options
):
    """The complete result is shown once, before the error of the file that cannot be written."""
    arguments = {
        "bench": (models.dynamic, "--blocks", 1),
        "compare": (models.dynamic, models.rounded),
        "gate": (artifact.folder,),
    }[name]
    artifact.recipe["gate"] = LENIENT
    artifact.seal()
    expected = command(name, *arguments, *options)
    out = tmp_path / "result.json"
    monkeypatch.setattr(result, "write_text", no_room)
    ran = command(name, *arguments, *options, "--out", out)
    assert (expected.code, ran.code) == (0, 2)
    assert len(ran.out.splitlines()) == len(expected.out.splitlines()) > 5
    assert ran.err.splitlines()[-1].startswith(f"error: {out}: the disk is full")
    if options:
        assert json.loads(ran.out).keys() == json.loads(expected.out).keys()


def test_a_result_is_written_even_if_standard_output_fails(command, workers, models, tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ran = command("bench", models.dynamic, "--blocks", 1, "--out", out)
        monkeypatch.undo()
    assert ran.code == 2
    assert "error: standard output: cannot be written (No space left on device)" in ran.err
    assert len(read_result(out).models) == 1


def test_names_that_are_not_utf8_are_kept_in_the_result(command, workers, models, evaluation, tmp_path):
    data, out = tmp_path / os.fsdecode(b"d\x80.npz"), tmp_path / "result.json"
    data.write_bytes(evaluation.read_bytes())
    ran = command("bench", models.dynamic, "--data", data, "--blocks", 1, "--out", out)
    assert ran.code == 0
    assert read_result(out).data.path.endswith("/d\\udc80.npz")


@pytest.mark.parametrize("name", ["bench", "compare", "gate"])
def test_only_a_result_is_replaced_by_a_result(command, workers, own_files, name):
    """A typing error in --out must not destroy another file."""
    source = own_files["MODEL"].with_name("network.py")
    source.write_text("class Network: ...\n")
    others = {"compare": [own_files["OTHER"]], "gate": ["--baseline", own_files["OTHER"]]}.get(name, [])
    ran = command(name, own_files["MODEL"], *others, "--out", source)
    assert (ran.code, "exists and is not a result file; choose another --out" in ran.err) == (2, True)
    assert source.read_text() == "class Network: ...\n"


def test_an_output_inside_an_artifact_is_refused(command, workers, own_files):
    """The command names a file of the artifact, not the artifact itself."""
    folder = own_files["ARTIFACT"]
    before = (folder / "golden.npz").read_bytes()
    for out in ("result.json", "deep/result.json"):
        ran = command("bench", folder / "model.onnx", "--blocks", 1, "--out", folder / out)
        assert (ran.code, f"is inside the artifact {folder.resolve()}" in ran.err) == (2, True)
    assert (folder / "golden.npz").read_bytes() == before
    assert not (folder / "deep").exists()
