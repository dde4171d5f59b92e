"""Tables for people and JSON for programs, for the results of load scenarios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.core.schema import Json
from bench.measuring.host_state import HostState, throttled
from bench.measuring.scenario import Scenario
from bench.measuring.scenario_result import LoadPeriod, ScenarioModel, ScenarioResult, drift
from bench.views.tables import mebibytes, milliseconds, short_names

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_HEADINGS = {
    Scenario.MULTI_STREAM: ("streams", "p50 (95 %)", "p90", "p99", "inferences /s"),
    Scenario.OFFLINE: ("batch", "p50 of a batch (95 %)", "p90", "p99", "samples /s"),
    Scenario.SUSTAINED: ("part", "p50", "p90", "p99", "p50 / first"),
}


def scenario_json(result: ScenarioResult) -> Json:
    """Return the output of `bench --scenario ... --json`; times in ns, memory in bytes."""
    return {
        "scenario": result.scenario.value,
        "stopped": result.stopped,
        "models": [_model_json(model, result.scenario) for model in result.models],
        "host": result.host.model_dump(mode="json"),
        "settings": result.model_dump(mode="json", include={"threads", "arena", "cores", "duration_s"}),
        "data": result.data.model_dump(mode="json"),
        "warnings": list(result.warnings),
    }


def _model_json(model: ScenarioModel, scenario: Scenario) -> Json:
    rates = {load: model.throughput_per_s(load, scenario) for load in model.loads()}
    found: Json = {
        "path": model.path,
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "peak_rss_bytes": model.peak_rss_bytes(),
        "loads": [
            {
                "load": load,
                "latency_ns": model.latency(load).model_dump(mode="json"),
                "throughput_per_s": rate,
            }
            for load, rate in rates.items()
        ],
    }
    if scenario is Scenario.OFFLINE and rates:
        found["best_batch"] = max(rates, key=lambda load: rates[load])
    if scenario is Scenario.SUSTAINED:
        periods = [period for load in model.loads() for period in model.periods(load)]
        found["drift"] = [drift(period).model_dump(mode="json") for period in periods]
        found["states"] = [
            {name: list(readings) for name, readings in _trace(period.states).items()} for period in periods
        ]
    return found


def scenario_view(result: ScenarioResult) -> list[RenderableType]:
    """Return the parts that `bench --scenario ...` and `show` print."""
    from rich.markup import escape

    view: list[RenderableType] = []
    for name, model in short_names(result.models).items():
        peak = mebibytes(model.peak_rss_bytes())
        arena = "" if result.arena else ", arena off"
        view.append(f"[bold]{escape(name)}[/]  {result.scenario}, peak memory {peak}{arena}")
        if not model.processes:
            continue
        if result.scenario is Scenario.SUSTAINED:
            view += [part for period in model.periods(1) for part in _sustained(period)]
        else:
            view.append(_loads_table(model, result.scenario))
    if result.data.synthetic:
        view.append("feeds: synthetic (made from the input signature)")
    if result.stopped is not None:
        view.append(f"incomplete: {escape(result.stopped)}")
    return view


def _loads_table(model: ScenarioModel, scenario: Scenario) -> Table:
    rates = {load: model.throughput_per_s(load, scenario) for load in model.loads()}
    best = max(rates, key=lambda load: rates[load])
    table = _table(scenario)
    for load, rate in rates.items():
        latency = model.latency(load)
        bounds = latency.bounds.get("p50")
        text = milliseconds(latency.p50)
        if bounds is not None:
            text += f" ({bounds[0] / 1e6:.3f} … {bounds[1] / 1e6:.3f})"
        mark = "  highest" if load == best and len(rates) > 1 else ""
        table.add_row(
            str(load), text, milliseconds(latency.p90), milliseconds(latency.p99), f"{rate:.0f}{mark}"
        )
    return table


def _sustained(period: LoadPeriod) -> Iterable[RenderableType]:
    found = drift(period)
    table, seconds = _table(Scenario.SUSTAINED), found.window_ns / 1e9
    for label, part, ratio in (("first", found.first, 1.0), ("last", found.last, found.p50_ratio)):
        table.add_row(
            f"{label} {seconds:.0f} s",
            milliseconds(part.p50),
            milliseconds(part.p90),
            milliseconds(part.p99),
            f"{ratio:.3f} ×",
        )
    yield table
    trace = _trace(period.states)
    if frequencies := trace.get("frequency_khz"):
        yield f"clock: {min(frequencies) / 1e6:.2f} to {max(frequencies) / 1e6:.2f} GHz"
    if heat := trace.get("temperature_mc"):
        yield f"temperature: {heat[0] / 1000:.0f} °C at the start, {max(heat) / 1000:.0f} °C at most"
    if throttled(period.states):
        yield "[bold red]the host throttled[/]"


def _trace(states: Iterable[HostState]) -> dict[str, list[float]]:
    """Return the readings of the host in order; a quantity that the host does not report is absent."""
    readings = [state.model_dump() for state in states]
    return {
        name: [reading[name] for reading in readings]
        for name in HostState.model_fields
        if readings and all(reading[name] is not None for reading in readings)
    }


def _table(scenario: Scenario) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS[scenario]:
        table.add_column(heading, justify="right")
    return table
