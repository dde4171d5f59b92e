"""Scenarios: the loads that are applied, their results, and the figures computed from them."""

from __future__ import annotations

import functools
import json
from itertools import count

import pytest

from bench.core.errors import DataError, MeasurementError, ResultError, UsageError
from bench.measuring import scenario_run
from bench.measuring.host_state import HostState
from bench.measuring.measure import Interrupted
from bench.measuring.result import write_result
from bench.measuring.scenario import Scenario, check_options, parse_batches
from bench.measuring.scenario_result import WINDOW_NS, LoadPeriod, drift, holds_scenario, read_scenario
from bench.measuring.scenario_run import ScenarioConfig, measure_scenario
from bench.views.scenario_tables import scenario_json, scenario_view
from bench.views.tables import plain_text

MULTI = ScenarioConfig(Scenario.MULTI_STREAM, streams=4, processes=5)
OFFLINE = ScenarioConfig(Scenario.OFFLINE, batches=(1, 8), processes=3)
SUSTAINED = ScenarioConfig(Scenario.SUSTAINED, duration_s=2.0)
MINUTE = 60 * 10**9


def measured(models, scripted, config, **options):
    return measure_scenario(models.dynamic, models.rounded, config=config, workers=scripted(), **options)


@pytest.fixture
def models_of(models, scripted):
    """Measure a scenario with scripted workers."""
    return lambda config, **options: measured(models, scripted, config, **options)


def test_several_streams_and_one_are_measured_in_fresh_processes(models, scripted):
    workers = scripted(noise=1e-9)
    result = measure_scenario(models.dynamic, models.rounded, config=MULTI, workers=workers)
    assert workers.counts["open"] == workers.closed == 10
    assert all(request.cores is None for request in workers.asked("open"))  # streams need all cores
    asked = [request.count for request in workers.asked("streams")]
    assert sorted(asked) == [1] * 10 + [4] * 10
    assert asked[::2] != [1] * 10  # the order of loads is random
    model = result.models[0]
    assert (model.loads(), len(model.processes)) == ([1, 4], 5)
    assert model.latency(4).count == 5 * 4 * 50
    assert model.latency(4).bounds.keys() == {"p50", "p90", "p99"}
    assert model.throughput_per_s(4, result.scenario) == pytest.approx(800, rel=0.01)
    assert model.throughput_per_s(1, result.scenario) == pytest.approx(200, rel=0.01)


def test_batches_count_their_samples(models_of):
    result = models_of(OFFLINE)
    model = result.models[0]
    assert (model.loads(), len(model.processes)) == ([1, 8], 3)
    assert model.throughput_per_s(8, result.scenario) == pytest.approx(200, rel=0.05)
    assert model.latency(8).p50 == pytest.approx(8 * 5e6, rel=0.05)
    assert model.latency(8).p99 is None  # thirty batches are too few
    assert scenario_json(result)["models"][0]["best_batch"] in {1, 8}


def test_a_sustained_run_is_one_process_with_readings_of_the_host(models, scripted):
    clock = count(1_000_000, 1000)
    workers = scripted()
    states = iter(HostState(frequency_khz=next(clock), temperature_mc=None) for _ in range(100))
    config = ScenarioConfig(Scenario.SUSTAINED, duration_s=1.0)
    result = measure_scenario(
        models.dynamic, config=config, workers=workers, state=lambda _cores: next(states)
    )
    ((period,),) = [process.periods for process in result.models[0].processes]
    assert workers.counts["open"] == 1
    assert sum(period.elapsed_ns) >= 1e9
    assert len(period.samples_ns) == len(period.elapsed_ns) == len(period.states) - 1
    (trace,) = scenario_json(result)["models"][0]["states"]
    assert trace["frequency_khz"] == [s.frequency_khz for s in period.states]
    assert "temperature_mc" not in trace  # readings that the host does not report are absent


def period_of(minutes):
    """A sustained run with one minute at each latency.

    Args:
        minutes: latency in ms of each minute. Pieces last one second.
    """
    pieces = [(round(ms * 1e6),) * 50 for ms in minutes for _ in range(60)]
    return LoadPeriod(load=1, samples_ns=tuple(pieces), elapsed_ns=(10**9,) * len(pieces))


def test_the_last_minute_is_compared_with_the_first():
    found = drift(period_of([10, 12, 15]))
    assert (found.window_ns, WINDOW_NS) == (MINUTE, MINUTE)
    assert (found.first.p50, found.last.p50, found.p50_ratio) == (10e6, 15e6, 1.5)
    assert found.first.count == found.last.count == 60 * 50


def test_the_halves_of_a_short_run_are_compared():
    period = LoadPeriod(
        load=1, samples_ns=((10,) * 9, (10,) * 9, (30,) * 9, (30,) * 9), elapsed_ns=(100,) * 4
    )
    found = drift(period)
    assert (found.window_ns, found.first.p50, found.last.p50) == (200, 10, 30)


def test_too_few_samples_give_no_percentile():
    result = LoadPeriod(load=1, samples_ns=((5, 6, 7),), elapsed_ns=(20,))
    found = drift(result)
    assert (found.first.p90, found.first.p99, found.first.bounds) == (None, None, {})


@pytest.mark.parametrize("config", [MULTI, OFFLINE, SUSTAINED], ids=lambda config: config.scenario)
def test_every_figure_can_be_computed_from_the_file(models_of, tmp_path, config):
    result, path = models_of(config), tmp_path / "result.json"
    write_result(path, result)
    assert holds_scenario(path)
    again = read_scenario(path)
    assert scenario_json(again) == scenario_json(result)
    assert plain_text(scenario_view(again)) == plain_text(scenario_view(result))
    assert "synthetic" in plain_text(scenario_view(again))


def with_changes(result, **changes):
    """The JSON of a result, with values of the result or of its first period replaced."""
    content = json.loads(result.model_dump_json(by_alias=True))
    spell = content["models"][0]["processes"][0]["spells"][0]
    spell.update({key: value for key, value in changes.items() if key in spell})
    content.update({key: value for key, value in changes.items() if key in content})
    return content


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"schema_version": 2}, "this version reads schema 1"),
        ({"samples_ns": [[0]]}, "a latency of 0 ns"),
        ({"samples_ns": [[-1]]}, "greater than or equal to 0"),
        ({"samples_ns": []}, "samples_ns"),
        ({"elapsed_ns": [0]}, "elapsed_ns"),
        ({"elapsed_ns": [1, 2]}, "2 elapsed times for 1 pieces"),
        ({"load": 0}, "load"),
        ({"models": []}, "models"),
        ({"scenario": "single-stream"}, "scenario"),
    ],
)
def test_invalid_files_are_refused(models_of, tmp_path, changes, cause):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(with_changes(models_of(MULTI), **changes)))
    with pytest.raises(ResultError) as caught:
        read_scenario(path)
    assert cause in str(caught.value)


def test_other_files_hold_no_scenario(tmp_path, factory):
    path = tmp_path / "other.json"
    for text in ("{", "[]", '{"models": []}', "[" * 100_000):
        path.write_text(text)
        assert not holds_scenario(path)
    assert not holds_scenario(tmp_path / "missing.json")


def test_ctrl_c_keeps_the_processes_that_were_finished(models, scripted, tmp_path):
    workers = scripted(fails={5: KeyboardInterrupt()})
    with pytest.raises(Interrupted) as caught:
        measure_scenario(models.dynamic, config=OFFLINE, workers=workers)
    result = caught.value.result
    assert (result.stopped, len(result.models[0].processes)) == ("interrupted", 0)
    write_result(tmp_path / "part.json", result)
    assert "incomplete: interrupted" in plain_text(scenario_view(read_scenario(tmp_path / "part.json")))


def test_a_result_without_measurements_must_say_why(models_of, tmp_path):
    content = json.loads(models_of(MULTI).model_dump_json(by_alias=True))
    content["models"][0]["processes"] = []
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match="was not measured"):
        read_scenario(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("scenario", "options", "named"),
    [
        (Scenario.SINGLE_STREAM, {"streams": 2}, "--streams"),
        (Scenario.SINGLE_STREAM, {"duration": 2.0}, "--duration"),
        (Scenario.MULTI_STREAM, {"batches": "1,2"}, "--batches"),
        (Scenario.OFFLINE, {"streams": 2}, "--streams"),
        (Scenario.SUSTAINED, {"blocks": 3}, "--blocks"),
    ],
)
def test_options_of_other_scenarios_are_refused(scenario, options, named):
    check_options(scenario, streams=None, blocks=None)
    with pytest.raises(UsageError, match=f"{named}: has no effect in the scenario {scenario}"):
        check_options(scenario, **options)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-4", "5000", "1.5"])
def test_an_invalid_list_of_batches_is_refused(text):
    with pytest.raises(UsageError, match="is not a list of batch sizes from 1 to 4096"):
        parse_batches(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenario": Scenario.SINGLE_STREAM}, "single-stream cannot be measured here; call bench.measure"),
        ({"streams": 0}, "streams: 0 is too few"),
        ({"batches": ()}, "batches: 0 is too few"),
        ({"batches": (4, 0)}, "batches: 0 is too few"),
        ({"processes": 0}, "processes: 0 is too few"),
        ({"threads": 0}, "threads: 0 is too few"),
        ({"duration_s": 0.0}, "duration_s: 0.0 is too short"),
    ],
)
def test_impossible_loads_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        ScenarioConfig(**({"scenario": Scenario.MULTI_STREAM} | changes))


def test_batches_are_sorted_without_duplicates():
    assert parse_batches("8,1, 4,8") == (1, 4, 8)


def test_the_command_writes_and_shows(command, scripted, models, monkeypatch, tmp_path):
    workers, path = scripted(), tmp_path / "out.json"
    monkeypatch.setattr(
        scenario_run, "measure_scenario", functools.partial(measure_scenario, workers=workers)
    )
    ran = command(
        "bench",
        models.dynamic,
        "--scenario",
        "offline",
        "--batches",
        "1,2",
        "--no-arena",
        "--json",
        "--out",
        path,
    )
    content = json.loads(ran.out)
    assert (ran.code, content["scenario"], content["settings"]["arena"]) == (0, "offline", False)
    assert [entry["load"] for entry in content["models"][0]["loads"]] == [1, 2]
    assert {request.arena for request in workers.asked("open")} == {False}
    shown = command("show", path)
    assert (shown.code, "arena off" in shown.out, "samples /s" in shown.out) == (0, True, True)
    assert command("show", path, "--format", "junit").code == 2
    assert command("bench", models.dynamic, "--streams", 3).code == 2


def test_real_processes_under_every_scenario(models, evaluation):
    for config in (
        ScenarioConfig(Scenario.MULTI_STREAM, streams=2, duration_s=0.1, processes=1),
        ScenarioConfig(Scenario.OFFLINE, batches=(1, 4), duration_s=0.1, processes=1),
        ScenarioConfig(Scenario.SUSTAINED, duration_s=0.2),
    ):
        result = measure_scenario(models.dynamic, data=evaluation, config=config)
        (model,) = result.models
        assert not result.data.synthetic
        assert all(model.throughput_per_s(load, result.scenario) > 0 for load in model.loads())
        assert model.processes[0].periods[0].states


def test_a_model_with_another_fixed_batch_is_refused(models, evaluation):
    config = ScenarioConfig(Scenario.OFFLINE, batches=(3,), duration_s=0.1, processes=1)
    with pytest.raises(DataError, match="has a fixed batch of"):
        measure_scenario(models.fixed, data=evaluation, config=config)


def test_a_stream_that_measured_nothing_is_an_error():
    with pytest.raises(MeasurementError, match="completed no inference"):
        scenario_run.load_period(2, [[1], []], [10], [])
