"""Tables for people, JSON for programs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench.core.policy import ReleaseBudgets
from bench.inputs.manifest import read_manifest
from bench.judging.gate import compare
from bench.judging.verdicts import Metric, Verdict
from bench.measuring.measure import MeasureConfig
from bench.measuring.self_test import Verification
from bench.metrics.parity import Parity
from bench.views.tables import (
    bounds_text,
    budget_text,
    change_text,
    figures_table,
    judgement_json,
    manifest_lines,
    mebibytes,
    milliseconds,
    model_json,
    percent,
    plain_text,
    result_json,
    short_names,
    styled_verdict,
    verdict_table,
    verification_json,
    verification_view,
)

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
RATIO = Metric(ratio=0.5, lower=0.48, upper=0.52, budget=0.02, verdict=Verdict.PASS)
UNBOUNDED = Metric(ratio=1.0, budget=-0.4, verdict=Verdict.INCONCLUSIVE)
DIFFERENCE = Metric(difference=-0.002, lower=-0.004, upper=0.0, budget=0.01, verdict=Verdict.FAIL)
ABSENT = Metric(budget=0.01, verdict=Verdict.INVALID)
UNJUDGED = Metric(ratio=1.0, lower=0.9, upper=1.1)


@pytest.mark.parametrize(
    ("metric", "change", "bounds", "budget"),
    [
        (RATIO, "0.500 ×", "0.480 … 0.520", "≤ 1.020 ×"),
        (UNBOUNDED, "1.000 ×", "– … –", "≤ 0.600 ×"),
        (DIFFERENCE, "-0.20 points", "-0.40 … 0.00", "≥ -1.00 points"),
        (
            Metric(difference=0.0, lower=-0.01, upper=0.01, budget=0.0),
            "+0.00 points",
            "-1.00 … 1.00",
            "≥ +0.00 points",
        ),
        (ABSENT, "–", "–", "≥ -1.00 points"),
        (UNJUDGED, "1.000 ×", "0.900 … 1.100", "–"),
    ],
)
def test_metrics_as_text(metric, change, bounds, budget):
    assert (change_text(metric), bounds_text(metric), budget_text(metric)) == (change, bounds, budget)


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        (milliseconds, 1_234_567, "1.235 ms"),
        (milliseconds, 12_345_678, "12.3 ms"),
        (milliseconds, None, "–"),
        (mebibytes, 3 << 19, "1.50 MiB"),
        (mebibytes, None, "–"),
        (percent, 0.98765, "98.77%"),
        (percent, None, "–"),
        (change_text, None, ""),
    ],
)
def test_figures_as_text(text, value, shown):
    assert text(value) == shown


def lines(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def test_the_main_table_has_one_column_per_model(factory):
    models = {"old[int8].onnx": factory.model([factory.run()]), "new.onnx": factory.model([factory.run()])}
    head, *rows = lines(figures_table(models, {"latency_p50": RATIO}))
    assert head.split() == ["old[int8].onnx", "new.onnx", "change"]
    by_label = {row[:17].strip(): row[17:].split() for row in rows}
    assert by_label["latency p50"] == ["0.001", "ms", "0.001", "ms", "0.500", "×"]
    assert by_label["latency p99"] == ["–", "–"]
    assert by_label["samples"] == ["12", "12"]


def test_without_metrics_there_is_no_column_of_changes(factory):
    head, *_ = lines(figures_table({"a.onnx": factory.model([factory.run()])}, {}))
    assert head.split() == ["a.onnx"]


def test_the_verdict_table_has_one_row_per_metric():
    rows = lines(verdict_table({"latency_p50": RATIO, "size": UNJUDGED}))
    assert rows[0].split() == ["metric", "estimate", "bounds", "budget", "verdict"]
    assert rows[1].split()[0] == "latency_p50"
    assert rows[1].endswith("PASS")
    assert rows[2].endswith("not judged")


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_style(verdict):
    assert lines(styled_verdict(verdict)) == [verdict.value]


@pytest.fixture
def judgement(models, scripted):
    return compare(
        models.dynamic,
        models.rounded,
        budgets=ReleaseBudgets(),
        config=MeasureConfig(rounds=3),
        workers=scripted(),
    )


def test_a_judgement_as_json(judgement):
    content = json.loads(json.dumps(judgement_json(judgement), allow_nan=False))
    assert content["verdict"] == "PASS"
    assert content["blocks"] == 10
    assert set(content["metrics"]) == {"latency_p50", "latency_p90", "peak_rss", "size"}
    for metric in content["metrics"].values():
        assert set(metric) == METRIC_KEYS
    assert (content["repeated"], content["flips"]) == (False, [])
    assert content["certificate"].startswith("error rates of this host: not measured")
    assert content["float_twin"] == {}


def test_a_result_as_json(judgement):
    content = json.loads(json.dumps(result_json(judgement.result), allow_nan=False))
    assert set(content) == {"models", "host", "settings", "data", "stopped", "warnings"}
    assert content["models"] == [model_json(model) for model in judgement.result.models]
    assert content["models"][0]["latency_ns"].keys() == {"p50", "p90", "p99", "count", "bounds"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.onnx", "b/y.onnx"], ["x.onnx", "y.onnx"]),
        (["a/x.onnx", "b/x.onnx"], ["a/x.onnx", "b/x.onnx"]),
        (["a/x.onnx", "a/x.onnx"], ["a/x.onnx [0]", "a/x.onnx [1]"]),
        (["a/x\x1b[31m.onnx", "a/y\n"], ["x\ufffd[31m.onnx", "y\ufffd"]),
        ([" x", "x"], ["x [0]", "x [1]"]),
        (["", "x"], [" [0]", "x [1]"]),
    ],
)
def test_names_are_as_short_as_they_can_be(factory, paths, names):
    assert list(short_names([factory.model([factory.run()], path=path) for path in paths])) == names


def test_plain_text_has_neither_colours_nor_trailing_space():
    assert plain_text(["[bold red]FAIL[/]  ", verdict_table({"size": RATIO})]).splitlines() == [
        "FAIL",
        "metric  estimate         bounds     budget  verdict",
        "size     0.500 ×  0.480 … 0.520  ≤ 1.020 ×     PASS",
    ]


def test_lines_of_a_manifest(artifact):
    tensor = {"dtype": "float32", "shape": ["N", None, 4]}
    metric = {"value": 0.9, "direction": "higher", "split": "evaluation", "samples": 40}
    artifact.seal(
        task="classification",
        labels=["cat", "dog"],
        metrics={"accuracy": metric | {"baseline": 0.912345}, "recall\x1b": metric},
        signature={"inputs": [tensor | {"name": "x"}], "outputs": [tensor | {"name": "y"}]},
    )
    assert manifest_lines(read_manifest(artifact.folder)) == [
        "task: classification, 2 classes",
        "accuracy: 0.9 (float 0.9123), higher is better; 40 samples of evaluation",
        "recall\ufffd: 0.9, higher is better; 40 samples of evaluation",
        "input x: float32 [N, ?, 4]",
        "output y: float32 [N, ?, 4]",
    ]
    artifact.seal(task="detection")
    assert manifest_lines(read_manifest(artifact.folder)) == ["task: detection"]
    artifact.seal()
    assert manifest_lines(read_manifest(artifact.folder)) == []


def test_a_verification_is_shown_with_the_lines_of_the_manifest(artifact):
    artifact.seal(task="[red]classification")
    golden = Parity(max_error=0.0, sqnr_db=60.0, agreement=1.0, samples=8)
    found = Verification(artifact.folder, read_manifest(artifact.folder), golden)
    first, second = plain_text(verification_view(found), width=1000).splitlines()
    assert first.startswith(
        f"{artifact.folder}: 4 files match their hashes; 8 golden samples agree (SQNR 60.0"
    )
    assert second == "task: [red]classification"
    told = json.loads(json.dumps(verification_json(found)))
    assert told.keys() == {"artifact", "name", "files", "golden"}
