"""Certify a host with scripted workers whose slowdowns are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.core.errors import DataError, StorageError
from bench.core.progress import SILENT
from bench.judging.certificate import read_certificate
from bench.judging.certify import CertifyOptions, certify, flipped_labels
from bench.measuring.measure import Interrupted, MeasureConfig
from tests.bench import onnx_bytes

QUICK = MeasureConfig(rounds=3)
CONFIG = CertifyOptions(blocks=10, slowdowns=(0.05, 0.1))


@pytest.fixture
def workers(scripted):
    """Workers that run each copy at the slowdown in its name.

    The operator with 1,024 rows costs half of the model's latency when narrow, and twice when wide.
    """
    slowdown = {f"slower-{share:g}.onnx": 1 + share for share in CONFIG.slowdowns}
    return scripted(
        noise=0.001,
        slowdown=slowdown | {"probe-1024-64.onnx": 1.5, "probe-1024-256.onnx": 3.0},
        rss={"larger.onnx": 60_000_000},
    )


def run(models, workers, config=CONFIG):
    return certify(models.dynamic, options=config, config=QUICK, workers=workers)


def test_a_certificate_lists_its_conditions(models, workers):
    found = run(models, workers)
    assert [(c.kind, c.asked) for c in found.conditions] == [
        ("same", 0.0),
        ("rebuilt", 0.0),
        ("slower", 0.05),
        ("slower", 0.1),
        ("larger", 0.1),
    ]
    assert all(len(c.latency_p50) == len(c.latency_p90) == 10 for c in found.conditions)
    assert found.false_alarms() == (0, 2)
    assert 0.02 < found.mde80 < 0.03
    assert read_certificate(found.host) == found


@pytest.mark.long
def test_later_pairs_are_added_to_earlier_ones(models, workers):
    run(models, workers)
    assert {len(c.latency_p50) for c in run(models, workers).conditions} == {20}
    fresh = CertifyOptions(blocks=10, slowdowns=CONFIG.slowdowns, fresh=True)
    assert {len(c.latency_p50) for c in run(models, workers, fresh).conditions} == {10}


@pytest.mark.long
def test_an_interrupt_keeps_what_was_measured(models, workers):
    fresh = CertifyOptions(blocks=10, slowdowns=CONFIG.slowdowns, fresh=True)
    run(models, workers, fresh)
    ends = [number for number, (kind, *_) in enumerate(workers.requests) if kind == "memory"]
    workers.requests.clear()
    # After the sizing (three blocks of three models) and four blocks of six models.
    workers.fails = {ends[3 * 3 + 6 * 4]: KeyboardInterrupt()}
    with pytest.raises(Interrupted):
        run(models, workers, fresh)
    from bench.inputs.host import fingerprint

    kept = read_certificate(fingerprint())
    assert {len(c.latency_p50) for c in kept.conditions} == {4}


def test_an_unwritable_certificate_is_refused_before_measuring(models, workers, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(models.dynamic))
    with pytest.raises(StorageError, match=r"json: cannot be written"):
        run(models, workers)
    assert not workers.requests


def test_a_certificate_that_cannot_be_stored_is_shown(models, workers, monkeypatch):
    said = []

    def no_room(_certificate):
        raise StorageError("certificate.json", "the disk is full", "free some space")

    monkeypatch.setattr("bench.judging.certify.write_certificate", no_room)
    progress = SimpleNamespace(task=SILENT.task, say=said.append)
    with pytest.raises(StorageError, match="the disk is full"):
        certify(models.dynamic, options=CONFIG, config=QUICK, workers=workers, progress=progress)
    assert said[-1].startswith("error rates of this host (")


@pytest.mark.long
def test_the_command_prints_one_line_per_condition(command, models, workers, monkeypatch):
    import functools

    from bench.judging import certify as module
    from bench.measuring import measure

    monkeypatch.setattr(module, "certify", functools.partial(certify, workers=workers))
    monkeypatch.setattr(measure, "MeasureConfig", functools.partial(MeasureConfig, rounds=3))
    workers.slowdown |= {f"slower-{share:g}.onnx": 1 + share for share in (0.01, 0.02, 0.03)}
    shown = command("certify", models.dynamic, "--blocks", 10)
    assert shown.code == 0
    assert "slower by 10.0% (measured +10.0%)" in shown.out
    assert "error rates of this host" in shown.out
    content = json.loads(command("certify", models.dynamic, "--blocks", 10, "--json").out)
    assert content["line"].startswith("error rates of this host")


def test_a_model_without_numeric_input_is_refused(tmp_path, workers):
    node = onnx_bytes.node("Identity", ["x"], ["y"])
    ends = [onnx_bytes.value(name, onnx_bytes.tensor(onnx_bytes.STRING, [1])) for name in "xy"]
    path = Path(tmp_path / "text.onnx")
    path.write_bytes(onnx_bytes.model([node], ends[:1], ends[1:]))
    with pytest.raises(DataError, match="has no numeric input"):
        certify(path, options=CONFIG, config=QUICK, workers=workers)


def test_more_flipped_labels_fail_more_often(factory):
    model = factory.model([factory.run()], predictions=(0,) * 2000, labels=(0,) * 1900 + (1,) * 100)
    found = flipped_labels(model, 0.01)
    shares = [entry.fail_share for entry in found]
    assert [entry.share for entry in found] == [0.005, 0.01, 0.02, 0.05]
    assert shares == [0.0, 0.0, 1.0, 1.0]
    assert flipped_labels(factory.model([factory.run()]), 0.01) == ()
