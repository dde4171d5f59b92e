"""The plugin as a user's CI runs it: pytest in a separate process, real models, real workers."""

from __future__ import annotations

import json
import re

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester, request, monkeypatch):
    """A function that runs pytest on a test file: `project(source, *options)`."""
    # With this variable set, pytest-benchmark assumes a worker of pytest-xdist and measures nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    installed = request.config.pluginmanager.hasplugin("edgeproof")

    def run(source, *options):
        pytester.makepyfile(test_user=source)
        plugin = () if installed else ("-p", "bench.pytest_plugin")
        return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *options)

    return run


GATE = """
def test_release(edgeproof_gate):
    edgeproof_gate({candidate!r}, {baseline!r}, {policy!r}, data={data!r}, same=True, out="result.json")
"""
BENCHMARK = """
def test_speed(edgeproof_benchmark):
    assert edgeproof_benchmark({model!r}, data={data!r}, rounds=50).accuracy() > 0.8
"""


@pytest.mark.slow
def test_a_good_release_passes(project, models, evaluation, pytester):
    policy = {
        "baseline": {
            "latency_p50": 10.0,
            "latency_p90": 10.0,
            "peak_rss": 10.0,
            "size": 0.5,
            "accuracy": 0.99,
        }
    }
    source = GATE.format(
        candidate=str(models.dynamic), baseline=str(models.dynamic), policy=policy, data=str(evaluation)
    )
    found = project(source, "--junitxml=junit.xml")
    found.assert_outcomes(passed=1)
    assert '<property name="edgeproof_verdict" value="PASS"' in (pytester.path / "junit.xml").read_text()
    assert json.loads((pytester.path / "result.json").read_text())["criteria"]["budgets"]


@pytest.mark.slow
def test_a_bad_release_fails_with_a_readable_message(project, models, evaluation):
    rest = dict.fromkeys(("latency_p50", "latency_p90", "peak_rss"))
    policy = {"baseline": {"size": 0.02, "accuracy": 0.99, **rest}}
    source = GATE.format(
        candidate=str(models.heavy), baseline=str(models.dynamic), policy=policy, data=str(evaluation)
    )
    found = project(source)
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert re.search(r"edgeproof FAIL: size FAIL: ", text)
    assert re.search(r"size .*≤ 1\.020 ×.*FAIL", text)
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"baseline": {"latency": 1.0}}, "edgeproof error: policy: baseline.latency: unknown key"),
        ("none.toml", "none.toml: cannot be read"),
    ],
)
def test_a_bad_policy_is_reported_in_one_line(project, models, evaluation, policy, words):
    source = GATE.format(
        candidate=str(models.dynamic), baseline=str(models.dynamic), policy=policy, data=str(evaluation)
    )
    found = project(source)
    found.assert_outcomes(failed=1)
    assert words in found.stdout.str()
    assert "Traceback" not in found.stdout.str()


@pytest.mark.long
def test_benchmarks_are_saved_and_compared(project, models, evaluation, pytester):
    source = BENCHMARK.format(model=str(models.dynamic), data=str(evaluation))
    saved = project(source, "--benchmark-json=one.json", "--benchmark-save=first")
    saved.assert_outcomes(passed=1)
    (entry,) = json.loads((pytester.path / "one.json").read_text())["benchmarks"]
    extra = entry["extra_info"]
    assert extra["accuracy"] == 0.9
    assert extra["feeds"] == "real"
    assert extra["peak_rss_bytes"] > 2**20
    assert len(entry["stats"]["data"]) == entry["stats"]["rounds"] == 50
    assert extra["latency_p50_ns"] == pytest.approx(entry["stats"]["median"] * 1e9, rel=0.01)
    compared = project(source, "--benchmark-compare", "--benchmark-histogram=histogram")
    compared.assert_outcomes(passed=1)
    assert "test_speed (0001_first" in compared.stdout.str()
    assert list(pytester.path.glob("histogram*.svg"))


def test_disabled_benchmarks_still_check_the_model(project, models, evaluation):
    source = BENCHMARK.format(model=str(models.dynamic), data=str(evaluation))
    project(source, "--benchmark-disable").assert_outcomes(passed=1)


def test_without_pytest_benchmark_the_message_has_the_command_to_install_it(project, models, evaluation):
    source = BENCHMARK.format(model=str(models.dynamic), data=str(evaluation))
    found = project(source, "-p", "no:benchmark")
    found.assert_outcomes(errors=1)
    assert "pytest-benchmark" in found.stdout.str()
    assert "pip install" in found.stdout.str()


@pytest.mark.slow
def test_a_verdict_is_shown_if_the_result_cannot_be_written(project, models, evaluation, pytester):
    conftest = """
import errno, os, pytest
from bench.core import files
from bench.measuring import result

def no_room(path, _content):
    with files.storage_errors(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

@pytest.fixture(autouse=True)
def full_disk(monkeypatch):
    monkeypatch.setattr(result, "write_text", no_room)
"""
    pytester.makeconftest(conftest)
    rest = dict.fromkeys(("latency_p50", "latency_p90", "peak_rss"))
    policy = {"baseline": {"size": 0.02, "accuracy": 0.99, **rest}}
    source = GATE.format(
        candidate=str(models.heavy), baseline=str(models.dynamic), policy=policy, data=str(evaluation)
    )
    found = project(source, "--junitxml=junit.xml")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["edgeproof FAIL: size*", "edgeproof error: result.json: the disk is full*"])
    assert '<property name="edgeproof_verdict" value="FAIL"' in (pytester.path / "junit.xml").read_text()


def test_a_wrong_output_path_is_reported_before_the_work(project, models, evaluation, tmp_path):
    source = GATE.format(
        candidate=str(models.dynamic), baseline=str(models.dynamic), policy=None, data=str(evaluation)
    ).replace("result.json", str(tmp_path))
    found = project(source)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines([f"edgeproof error: {tmp_path}: exists and is not a regular file*"])


def test_a_bug_keeps_its_traceback(project, models, evaluation, pytester):
    conftest = """
import pytest
from bench.judging import gate

@pytest.fixture(autouse=True)
def broken(monkeypatch):
    monkeypatch.setattr(gate, "subject", lambda *_: 1 / 0)
"""
    pytester.makeconftest(conftest)
    source = GATE.format(
        candidate=str(models.dynamic), baseline=str(models.dynamic), policy=None, data=str(evaluation)
    )
    found = project(source)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*ZeroDivisionError: division by zero"])
    assert "edgeproof FAIL" not in found.stdout.str()
