"""`show`: every figure and the verdict are computed again from the result file alone."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.core.errors import ResultError
from bench.core.policy import Budgets
from bench.judging.gate import GateOptions, compare
from bench.judging.replay import replay
from bench.measuring.measure import MeasureConfig
from bench.measuring.result import write_result
from bench.views.formats import Format
from bench.views.tables import judgement_json


@pytest.fixture
def judged(tmp_path, models, scripted):
    """A judgement and its result file."""

    def make(slowdown):
        paths = tmp_path / "old.onnx", tmp_path / "new.onnx"
        for path in paths:
            shutil.copyfile(models.dynamic, path)
        judgement = compare(
            *paths,
            budgets=Budgets(latency_p50=0.02, size=0.0),
            options=GateOptions(same=True),
            config=MeasureConfig(rounds=3),
            workers=scripted(slowdown={"new.onnx": slowdown}),
        )
        result = tmp_path / "result.json"
        write_result(result, judgement.result)
        for path in paths:
            path.unlink()
        return judgement, result

    return make


@pytest.mark.parametrize("slowdown", [1.0, 1.02, 1.5])
def test_the_same_verdict_and_figures_without_the_models(judged, slowdown):
    judgement, path = judged(slowdown)
    result, again = replay(path)
    assert result == judgement.result
    assert judgement_json(again) == judgement_json(judgement)


@pytest.mark.parametrize(("slowdown", "code"), [(1.0, 0), (1.5, 1), (1.02, 3)])
def test_show_ends_with_the_code_of_the_verdict(judged, command, slowdown, code):
    judgement, path = judged(slowdown)
    shown = command("show", path, "--json")
    assert shown.code == code
    assert json.loads(shown.out)["verdict"] == judgement.verdict.value
    assert judgement.verdict.value in command("show", path).out


def test_show_writes_other_formats(judged, command, tmp_path):
    _, path = judged(1.5)
    printed = command("show", path, "--format", "junit")
    assert (printed.code, printed.out[:5]) == (1, "<?xml")
    for target in Format:
        out = tmp_path / "out"
        shown = command("show", path, "--format", target.value, "--out", out, "--json")
        assert shown.code == 1
        assert out.read_text()
        assert json.loads(shown.out)["verdict"] == "FAIL"


def test_a_result_without_criteria_is_shown_without_verdict(judged, command):
    _, path = judged(1.0)
    content = json.loads(path.read_text())
    content["criteria"] = None
    path.write_text(json.dumps(content))
    shown = command("show", path, "--json")
    assert shown.code == 0
    assert "verdict" not in json.loads(shown.out)


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(schema_version=99), "schema_version"),
        (lambda c: c.update(models=[]), "contains no models"),
        (lambda c: c.update(started_utc="yesterday"), "'yesterday' is not a time"),
        (lambda c: c["models"].pop(), "contains 1 models and 1 sets of budgets instead of 0"),
        (lambda c: c["models"][0].update(runs=[]), "contains no runs of"),
        (lambda c: c["models"][0]["runs"].pop(), "differ in the number of runs"),
        (
            lambda c: c["models"][0]["runs"][0]["rounds_ns"][0].__setitem__(0, 0),
            "contains a latency of 0 ns",
        ),
        (lambda c: c["models"][0].update(predictions=[1], labels=[1, 2]), "differ in number"),
        (lambda c: c["criteria"].update(surprise=1), "unknown key"),
        (lambda c: c["criteria"].update(looks=[]), "criteria.looks"),
    ],
)
def test_a_contradictory_result_is_refused_in_one_line(judged, command, change, words):
    _, path = judged(1.0)
    edited(path, change)
    with pytest.raises(ResultError):
        replay(path)
    shown = command("show", path)
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "x"), "--out: needs a format"),
        (("--format", "junit", "--json"), "--json: cannot share standard output with --format"),
    ],
)
def test_options_that_do_not_go_together(judged, command, options, words):
    shown = command("show", judged(1.0)[1], *options)
    assert shown.code == 2
    assert words in shown.err
    # With --json, the error is the only JSON object that is printed.
    assert json.loads(shown.out)["exit_code"] == 2 if "--json" in options else shown.out == ""
