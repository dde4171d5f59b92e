"""The order of a measurement with scripted workers, and its results with real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.core.arrays import read_npz
from bench.core.errors import DataError, ModelError, UsageError
from bench.core.files import model_sha256, model_size, sha256_of
from bench.inputs.host import available_cores
from bench.measuring import measure
from bench.measuring.measure import (
    MAX_BURST,
    MIN_BURST,
    TIME_LIMIT,
    TIMED_FEEDS,
    MeasureConfig,
    Measurement,
)


@pytest.fixture
def three(models):
    return [models.dynamic, models.rounded, models.fixed]


def turns(workers, op="burst"):
    return [model for kind, model, _ in workers.requests if kind == op]


def test_models_take_turns_in_every_round(three, scripted):
    workers = scripted()
    with Measurement(three, None, MeasureConfig(rounds=8), workers=workers) as measurement:
        measurement.add_blocks(2)
        result = measurement.result()
    order = turns(workers)
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 16
    assert all(set(names) == {path.name for path in three} for names in rounds)
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len(set(rounds)) > 2
    assert [len(model.runs) for model in result.models] == [2, 2, 2]
    assert all(len(run.rounds_ns) == 8 for model in result.models for run in model.runs)


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_a_seed_fixes_the_order(three, scripted, seed, same):
    orders = []
    for chosen in (0, seed):
        workers = scripted()
        with Measurement(three, None, MeasureConfig(seed=chosen), workers=workers) as measurement:
            measurement.add_blocks(1)
        orders.append(turns(workers))
    assert (orders[0] == orders[1]) is same


def test_processes_start_in_a_new_random_order_in_each_block(three, scripted):
    workers = scripted()
    with Measurement(three, None, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.add_blocks(12)
    started = turns(workers, "open")
    orders = [tuple(started[i : i + 3]) for i in range(0, len(started), 3)]
    assert all(set(order) == {path.name for path in three} for order in orders)
    assert all(second == first[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert len(set(orders)) > 2


def test_all_sessions_of_a_block_are_created_at_the_same_time(three, scripted):
    workers = scripted()
    with Measurement(three, None, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.add_blocks(2)
    assert workers.events == (["begin"] * 3 + ["finish"] * 3) * 2


def test_every_block_has_fresh_processes_that_end(three, scripted):
    workers = scripted()
    with Measurement(three, None, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.add_blocks(3)
    assert workers.counts["open"] == workers.closed == 9


def test_the_time_limit_expects_a_block_to_last_as_long_as_those_before(three, scripted):
    """Before the first block 20 seconds pass, as with predictions; each block takes 3."""
    moments = iter([0.0, 20.0, 23.0, 26.0, 29.0])
    config = MeasureConfig(rounds=1, time_limit_s=30.0)
    with Measurement(three, None, config, workers=scripted(), clock=lambda: next(moments)) as measurement:
        measurement.add_blocks(10)
        result = measurement.result()
    assert result.stopped == TIME_LIMIT
    assert [len(model.runs) for model in result.models] == [3, 3, 3]


@pytest.mark.parametrize(
    ("typical_ns", "target_ns", "count"),
    [(1e6, 10_000_000, 10), (1e3, 10_000_000, MAX_BURST), (1e9, 10_000_000, MIN_BURST), (0, 5, 5)],
)
def test_bursts_last_about_the_target_time(models, scripted, typical_ns, target_ns, count):
    workers = scripted(typical_ns=typical_ns, noise=1e-9)
    config = MeasureConfig(burst_target_ns=target_ns, rounds=2, untimed_per_burst=7)
    with Measurement([models.dynamic], None, config, workers=workers) as measurement:
        measurement.add_blocks(1)
    counts = {request.count for request in workers.asked("burst")}
    assert counts <= {count, count + 1}
    assert {request.untimed for request in workers.asked("burst")} == {7}


def test_bursts_are_equal_in_all_blocks(models, scripted):
    workers = scripted(typical_ns=1e5, noise=0.5)
    with Measurement([models.dynamic], None, MeasureConfig(rounds=2), workers=workers) as measurement:
        measurement.add_blocks(5)
    assert len({request.count for request in workers.asked("burst")}) == 1


@pytest.mark.parametrize(
    ("cores", "config", "pinned"),
    [
        ((0, 1, 2, 3), MeasureConfig(threads=2), (2, 3)),
        ((0, 1), MeasureConfig(threads=3), None),
        ((0, 1), MeasureConfig(pin=False), None),
        (None, MeasureConfig(), None),
    ],
)
def test_workers_share_the_last_cores(models, scripted, monkeypatch, *, cores, config, pinned):
    monkeypatch.setattr(measure, "available_cores", lambda: cores)
    workers = scripted()
    with Measurement([models.dynamic], None, config, workers=workers) as measurement:
        measurement.add_blocks(1)
        assert measurement.result().settings.cores == pinned
    assert workers.asked("open")[0].cores == pinned


def test_timed_processes_get_few_samples_and_no_labels(models, scripted, evaluation, samples):
    workers = scripted()
    with Measurement([models.dynamic], evaluation, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.add_blocks(1)
        feeds = Path(workers.asked("open")[0].feeds)
        arrays = read_npz(feeds)
    assert list(arrays) == ["x"]
    np.testing.assert_array_equal(arrays["x"], samples.x[:TIMED_FEEDS])
    assert not feeds.exists()


def test_accuracy_is_measured_in_a_separate_process_per_model(models, scripted, evaluation):
    answers = {"dynamic.onnx": [0, 1], "rounded.onnx": [1, 1]}
    workers = scripted(predictions=answers, labels=[0, 1])
    paths = [models.dynamic, models.rounded]
    with Measurement(paths, evaluation, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.predict()
        assert workers.closed == 2
        measurement.add_blocks(1)
        result = measurement.result()
    assert [model.accuracy() for model in result.models] == [1.0, 0.5]
    assert result.data.sha256 == sha256_of(evaluation)
    assert not result.data.synthetic


def test_without_data_nothing_is_predicted(models, scripted):
    workers = scripted()
    with Measurement([models.dynamic], None, MeasureConfig(rounds=1), workers=workers) as measurement:
        measurement.predict()
        assert not workers.requests
        measurement.add_blocks(1)
        result = measurement.result()
    assert result.models[0].predictions is None
    assert (result.data.path, result.data.sha256, result.data.synthetic) == (None, None, True)
    assert workers.asked("open")[0].feeds is None


def test_unusable_data_are_refused_before_anything_starts(models, scripted, tmp_path):
    workers = scripted()
    with (
        pytest.raises(DataError, match="no such file"),
        Measurement([models.dynamic], tmp_path / "none.npz", workers=workers),
    ):
        pass
    assert not workers.requests


def test_size_and_hash_of_a_model_include_its_external_weights(external_model, tmp_path):
    model = tmp_path / "model.onnx"
    external_model(model, "w")
    alone, weights = model.stat().st_size, (tmp_path / "w").stat().st_size
    assert model_size(model) == alone + weights
    before = model_sha256(model)
    (tmp_path / "model.onnx.data").write_bytes(b"x" * 100)  # the model does not refer to this file
    assert model_size(model) == alone + weights
    assert model_sha256(model) == before
    (tmp_path / "w").write_bytes(bytes(weights))
    assert model_sha256(model) != before


@pytest.mark.parametrize("name", ["threads", "rounds"])
def test_a_config_of_zero_is_refused(name):
    with pytest.raises(UsageError, match=f"{name}: 0 is too few; use at least 1"):
        MeasureConfig(**{name: 0})


def test_models_and_blocks_are_required(models, tmp_path):
    with pytest.raises(UsageError, match="models: no model is named"):
        measure.measure()
    with pytest.raises(UsageError, match="blocks: 0 is too few"):
        measure.measure(models.dynamic, blocks=0)
    with pytest.raises(UsageError, match="there is no such file or folder"):
        measure.measure(str(tmp_path / "none.onnx"))


def test_an_artifact_is_measured_together_with_its_float_model(artifact, scripted):
    right = [0] * 40
    workers = scripted(predictions={"model.onnx": right, "model.fp32.onnx": right}, labels=right)
    artifact.seal(target="z80")
    result = measure.measure(
        str(artifact.folder), blocks=2, config=MeasureConfig(rounds=1), workers=workers
    )
    assert [Path(model.path).name for model in result.models] == ["model.onnx", "model.fp32.onnx"]
    assert [len(model.runs) for model in result.models] == [2, 2]
    assert result.data.path == str(artifact.folder / "evaluation.npz")
    (warning,) = result.warnings
    assert warning.startswith(f"{artifact.folder} was made for 'z80', this CPU is ")
    assert "warnings" not in json.loads(result.model_dump_json())


def test_real_processes_measure_two_models(models, evaluation, samples):
    config = MeasureConfig(rounds=2, burst_target_ns=100_000)
    with Measurement([models.dynamic, models.rounded], evaluation, config) as measurement:
        measurement.predict()
        measurement.add_blocks(2)
        result = measurement.result()
    first, second = result.models
    assert first.accuracy() == pytest.approx(samples.accuracy)
    assert second.labels == tuple(samples.labels)
    assert first.sha256 == sha256_of(models.dynamic)
    assert result.data.samples == TIMED_FEEDS
    for run in (*first.runs, *second.runs):
        assert len(run.rounds_ns) == 2
        assert min(run.samples_ns()) > 0
        assert run.session_ns > 0
        assert len(run.warmup_ns) >= 1
    cores = available_cores()
    assert result.settings.cores == (cores[-1:] if cores else None)


def test_a_model_that_no_process_can_load_ends_the_measurement(models):
    with (
        Measurement([models.dynamic, models.truncated], None) as measurement,
        pytest.raises(ModelError, match=r"truncated\.onnx: is truncated"),
    ):
        measurement.add_blocks(1)
