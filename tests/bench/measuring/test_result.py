"""Result files: writing and reading raw samples, and the figures computed from them."""

from __future__ import annotations

import json

import pytest

from bench.core.errors import ResultError
from bench.measuring import result as result_module
from bench.measuring.measure import MeasureConfig, Measurement
from bench.measuring.result import read_result, write_result


@pytest.fixture
def result(models, scripted, evaluation):
    answers = {"dynamic.onnx": [0, 1, 1], "rounded.onnx": [0, 0, 1]}
    workers = scripted(predictions=answers, labels=[0, 1, 0], rss={"rounded.onnx": None})
    paths = [models.dynamic, models.rounded]
    with Measurement(paths, evaluation, MeasureConfig(rounds=2), workers=workers) as measurement:
        measurement.predict()
        measurement.add_blocks(2)
        return measurement.result()


@pytest.fixture
def path(tmp_path, result):
    target = tmp_path / "result.json"
    write_result(target, result)
    return target


def test_a_written_result_is_read_unchanged(path, result):
    assert read_result(path) == result


def test_raw_samples_are_kept(path, result):
    written = json.loads(path.read_text())
    assert written["schema_version"] == 3
    first = written["models"][0]["runs"][0]
    assert first["rounds_ns"] == [list(times) for times in result.models[0].runs[0].rounds_ns]
    assert len(first["warmup_ns"]) == 20


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.update(schema_version=4),
            "schema_version: 4 is refused; this version reads schemas 1 to 3; install a newer edgeproof",
        ),
        (
            lambda c: c.update(surprise=1),
            "surprise: unknown key; use one of: blocks, certificate, criteria",
        ),
        (
            lambda c: c["models"][1]["runs"][0].update(extra=1),
            "models.1.runs.0.extra: unknown key; use one of: first_run_ns, import_rss_bytes",
        ),
        (lambda c: c.pop("host"), "host: is missing; add it"),
        (lambda c: c["models"][0].update(size_bytes="1"), "models.0.size_bytes: '1' is refused"),
        (lambda c: c["settings"].update(threads=1.5), "settings.threads: 1.5 is refused"),
        (lambda c: c["models"][0]["runs"][0]["rounds_ns"].append([]), "models.0.runs.0.rounds_ns.2: [] is"),
        (lambda c: c["models"][0]["runs"][0]["rounds_ns"][0].append(-1), "models.0.runs.0.rounds_ns.0."),
        (lambda c: c["models"][0].update(size_bytes=2**63), "models.0.size_bytes: 9223372036854775808 is"),
    ],
)
def test_invalid_files_are_refused(path, change, words):
    edit(path, change)
    with pytest.raises(ResultError) as caught:
        read_result(path)
    assert f"{path}: {words}" in str(caught.value)


def test_a_file_of_the_second_schema_is_read(path, result):
    def as_before(content):
        content.update(schema_version=2)
        for model in content["models"]:
            assert model.pop("made_for") is None

    edit(path, as_before)
    assert read_result(path) == result.model_copy(update={"schema_version": 2})


def test_a_file_of_the_first_schema_is_read(path, result):
    edit(path, lambda c: (c.update(schema_version=1), c.pop("criteria")))
    assert read_result(path) == result.model_copy(update={"schema_version": 1})


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ResultError, match=r"the file: .* is refused; invalid JSON"):
        read_result(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"cannot be read \(No such file or directory\); check the path"):
        read_result(tmp_path / "none.json")


def test_a_file_that_is_too_large_is_refused(path, monkeypatch):
    monkeypatch.setattr(result_module, "MAX_RESULT_BYTES", 10)
    with pytest.raises(ResultError, match="is larger than 10 bytes"):
        read_result(path)


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(43, False, False), (44, True, False), (459, True, True)]
)
def test_percentiles_need_enough_samples(factory, count, p90, p99):
    latency = factory.model([factory.run(range(1, count + 1), rounds=1)]).latency()
    assert latency.count == count
    assert latency.p50 == (count + 1) / 2
    assert (latency.p90 is not None, latency.p99 is not None) == (p90, p99)
    if p99:
        assert latency.p50 < latency.p90 < latency.p99 <= count


def test_figures_come_from_all_processes(factory):
    runs = [
        factory.run((1000, 3000), rounds=1, rss=100, session_ns=10, first_run_ns=5),
        factory.run((2000, 2000), rounds=1, rss=None, session_ns=20, first_run_ns=6),
        factory.run((2000, 2000), rounds=1, rss=300, session_ns=90, first_run_ns=7),
    ]
    model = factory.model(runs)
    assert model.latency().p50 == 2000
    assert model.peak_rss_bytes() == 200
    assert (model.session_ns(), model.first_run_ns()) == (20, 6)
    assert model.throughput_per_s() == pytest.approx(500_000)


def test_peak_memory_is_none_if_the_host_does_not_report_it(factory):
    assert factory.model([factory.run(rss=None)]).peak_rss_bytes() is None


@pytest.mark.parametrize(
    ("predictions", "labels", "accuracy"),
    [((0, 1, 2, 2), (0, 1, 2, 0), 0.75), ((0,), None, None), (None, None, None)],
)
def test_accuracy_is_the_share_of_hits(factory, predictions, labels, accuracy):
    model = factory.model([factory.run()], predictions=predictions, labels=labels)
    assert model.accuracy() == accuracy


def test_a_result_cannot_be_changed(result):
    with pytest.raises(ValueError, match="frozen"):
        result.tool_version = "2"
