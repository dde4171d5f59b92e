"""Every format, checked with the tool that reads it: pyperf, pytest-benchmark, a JUnit parser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import junitparser
import numpy as np
import pyperf
import pytest
from pytest_benchmark.stats import Stats

from bench.core.errors import UsageError
from bench.core.policy import Budgets
from bench.judging.gate import GateOptions, compare
from bench.judging.verdicts import Verdict
from bench.measuring.measure import MeasureConfig
from bench.views.formats import Format, convert
from bench.views.formats.markdown import code
from bench.views.formats.pytest_benchmark import pooled_statistics

HOSTILE = 'a"b<c>&|`$(x)` \u0007 ＠all.onnx'


@pytest.fixture
def judge(tmp_path, models, scripted, evaluation):
    """A function that judges two models with scripted times: `judge(slowdown, name=..., **budgets)`."""

    def run(slowdown=1.0, name="new.onnx", **budgets):
        paths = tmp_path / "old.onnx", tmp_path / name
        for path in paths:
            shutil.copyfile(models.dynamic, path)
        right = [0] * 40
        workers = scripted(
            slowdown={name: slowdown},
            predictions={path.name: [1, *right[1:]] for path in paths},
            labels=right,
        )
        return compare(
            *paths,
            data=evaluation,
            budgets=Budgets(**budgets or {"latency_p50": 0.02}),
            options=GateOptions(same=True),
            config=MeasureConfig(rounds=3),
            workers=workers,
        )

    return run


@pytest.fixture
def written(tmp_path):
    """A function that converts a judgement's result and writes it; returns the path."""

    def write(judgement, target, name="converted"):
        path = tmp_path / name
        path.write_text(convert(judgement.result, judgement, target), encoding="utf-8")
        return path

    return write


def test_pyperf_loads_every_process_and_its_warmups(judge, written):
    judgement = judge()
    suite = pyperf.BenchmarkSuite.load(str(written(judgement, Format.PYPERF)))
    assert suite.get_benchmark_names() == [
        f"{name} {what}" for name in ("old.onnx", "new.onnx") for what in ("latency", "size", "peak_rss")
    ]
    for model, name in zip(judgement.result.models, ("old.onnx", "new.onnx"), strict=True):
        latency = suite.get_benchmark(f"{name} latency")
        assert latency.get_unit() == "second"
        assert latency.get_nrun() == len(model.runs)
        samples = np.concatenate([run.samples_ns() for run in model.runs])
        np.testing.assert_allclose(latency.get_values(), samples / 1e9)
        assert latency.median() == pytest.approx(model.latency().p50 / 1e9)
        assert latency.get_runs()[0].warmups == tuple((1, ns / 1e9) for ns in model.runs[0].warmup_ns)
        assert suite.get_benchmark(f"{name} size").get_values() == (model.size_bytes,)
    assert latency.get_metadata()["edgeproof_verdict"] == "PASS"


def test_pyperf_compares_two_results(judge, written):
    before, after = (
        written(judge(slowdown, name="model.onnx"), Format.PYPERF, f"{slowdown}.json")
        for slowdown in (1.0, 1.5)
    )
    run = subprocess.run(
        [sys.executable, "-m", "pyperf", "compare_to", str(before), str(after)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"model.onnx latency: Mean .*: 1\.\d\dx slower", run.stdout)


def test_pytest_benchmark_compares_the_models_of_a_result(judge, written):
    path = written(judge(1.5), Format.PYTEST_BENCHMARK, "result.json")
    run = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=path.parent,
    )
    assert re.search(r"old\.onnx .*\n.*new\.onnx|new\.onnx .*\n.*old\.onnx", run.stdout + run.stderr)


def test_pytest_benchmark_finds_percentiles_and_the_verdict(judge, written):
    judgement = judge()
    content = json.loads(written(judgement, Format.PYTEST_BENCHMARK).read_text())
    extra = content["benchmarks"][-1]["extra_info"]
    assert extra["latency_p50_ns"] == judgement.result.models[-1].latency().p50
    assert extra["accuracy"] == 39 / 40
    assert extra["verdict"] == "PASS"
    assert extra["metrics"]["latency_p50"]["verdict"] == "PASS"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 31])
def test_the_statistics_are_those_of_pytest_benchmark(count):
    seconds = np.random.default_rng(count).lognormal(-6, 1, count).tolist()
    theirs = Stats()
    for value in seconds:
        theirs.update(value)
    found = pooled_statistics(seconds)
    for name in theirs.fields:
        if name not in {"data", "iterations"}:
            wanted = getattr(theirs, name)
            assert found[name] == (wanted if isinstance(wanted, str) else pytest.approx(wanted)), name


@pytest.mark.parametrize(
    ("slowdown", "verdict", "counts"),
    [
        (1.0, Verdict.PASS, (0, 0, 0)),
        (1.5, Verdict.FAIL, (2, 0, 0)),
        (1.02, Verdict.INCONCLUSIVE, (1, 0, 1)),
    ],
)
def test_junit_reports_the_verdict(judge, written, slowdown, verdict, counts):
    judgement = judge(slowdown)
    assert judgement.verdict is verdict
    path = written(judgement, Format.JUNIT, "junit.xml")
    suites = junitparser.JUnitXml.fromfile(str(path))
    (suite,) = suites
    assert (suite.failures, suite.errors, suite.skipped) == counts
    cases = {case.name: case for case in suite}
    assert list(cases) == ["latency_p50", "verdict"]
    assert {case.classname for case in cases.values()} == {"edgeproof.new.onnx"}
    if verdict is Verdict.PASS:
        assert all(case.is_passed for case in cases.values())
    else:
        (outcome,) = cases["verdict"].result
        assert outcome.type == verdict.value
        assert judgement.reasons[0] in outcome.message


def test_an_invalid_metric_is_an_error(judge, written):
    judgement = judge()
    metrics = {
        "latency_p50": judgement.metrics["latency_p50"].model_copy(update={"verdict": Verdict.INVALID})
    }
    text = convert(
        judgement.result, judgement.__class__(**{**vars(judgement), "metrics": metrics}), Format.JUNIT
    )
    assert ET.fromstring(text).find(".//testcase[@name='latency_p50']/error") is not None


def test_junit_needs_a_verdict(judge):
    with pytest.raises(UsageError, match="junit: the result contains no verdict"):
        convert(judge().result, None, Format.JUNIT)


def test_custom_smaller_is_better(judge, written):
    content = json.loads(written(judge(), Format.CUSTOM_SMALLER_IS_BETTER).read_text())
    by_name = {entry["name"]: entry for entry in content}
    assert len(by_name) == len(content)
    for entry in content:
        assert (
            {"name", "unit", "value", "extra"}
            <= entry.keys()
            <= {"name", "unit", "value", "range", "extra"}
        )
        assert isinstance(entry["value"], int | float)
    assert by_name["new.onnx: error_share"]["value"] == pytest.approx(1 / 40)
    assert "throughput" not in " ".join(by_name)
    assert "processes" not in by_name["new.onnx: size_bytes"]["unit"]


def test_bencher_metric_format(judge, written):
    judgement = judge()
    content = json.loads(written(judgement, Format.BENCHER).read_text())
    assert list(content) == ["old.onnx", "new.onnx"]
    for measures in content.values():
        for slug, metric in measures.items():
            assert re.fullmatch(r"[a-z0-9-]{1,64}", slug)
            assert {"value"} <= metric.keys() <= {"value", "lower_value", "upper_value"}
    ratio = content["new.onnx"]["latency-p50-ratio-to-baseline"]
    metric = judgement.metrics["latency_p50"]
    assert ratio == {"value": metric.ratio, "lower_value": metric.lower, "upper_value": metric.upper}


def test_markdown_for_a_pull_request(judge, written):
    text = written(judge(1.5), Format.MARKDOWN).read_text()
    assert text.startswith("### edgeproof: FAIL\n")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("text", ["plain", "a|b", "``", "`a", "@all <b>x</b>", "", "line\nbreak"])
def test_a_code_span_with_any_text_stays_in_one_cell(text):
    span = code(text)
    assert "\n" not in span
    fence = re.match("`+", span).group()
    inside = span[len(fence) : -len(fence)]
    assert not re.search(f"(?<!`){fence}(?!`)", inside)
    assert not re.search(r"(?<!\\)\|", span)


@pytest.mark.parametrize("target", list(Format))
def test_hostile_names_are_escaped_in_every_format(judge, written, target):
    path = written(judge(name=HOSTILE), target)
    text = path.read_text(encoding="utf-8")
    if target is Format.JUNIT:
        assert len(list(junitparser.JUnitXml.fromfile(str(path)))) == 1
    elif target is Format.MARKDOWN:
        assert "\u0007" not in text
    elif target is Format.PYPERF:
        assert len(pyperf.BenchmarkSuite.load(str(path)).get_benchmarks()) == 6
    else:
        assert len(json.loads(text)) >= 2


@pytest.mark.parametrize("target", [t for t in Format if t is not Format.JUNIT])
def test_an_unjudged_result_is_converted_without_a_verdict(judge, target):
    text = convert(judge().result, None, target)
    assert text.endswith("\n")
    assert "PASS" not in text


def test_unknown_figures_are_omitted(factory, judge):
    result = judge().result
    silent = [factory.model([factory.run(rss=None)], path=f"{n}.onnx") for n in "ab"]
    text = convert(
        result.model_copy(update={"models": tuple(silent)}), None, Format.CUSTOM_SMALLER_IS_BETTER
    )
    assert "peak_rss" not in text
    assert "accuracy" not in text
    assert "error_share" not in text
