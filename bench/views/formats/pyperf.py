"""pyperf's JSON, version 1.0: one run per process with separate warmups, in seconds and bytes.

https://pyperf.readthedocs.io/en/latest/api.html: `pyperf show`, `stats`, `hist` and `compare_to` read it.
Each model has three benchmarks: its latency, its size, and its peak memory with one value per process.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from bench.core.schema import Json
from bench.judging.gate import Judgement
from bench.measuring.result import ModelResult, Result, Run
from bench.views.formats.figures import json_text
from bench.views.tables import short_names

FORMAT_VERSION = "1.0"


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a result to the format that `pyperf.BenchmarkSuite.load` reads."""
    benchmarks: list[Json] = []
    for name, model in short_names(result.models).items():
        benchmarks += _benchmarks(name, model)
    host = result.host
    metadata = {
        "cpu_model_name": host.cpu_model,
        "cpu_count": host.cpu_count,
        "platform": f"{host.system} {host.machine}",
        "python_version": host.python,
        "onnxruntime_version": host.onnxruntime,
        "edgeproof_version": result.tool_version,
        "edgeproof_verdict": None if judgement is None else judgement.verdict.value,
        "threads": result.settings.threads,
    }
    return json_text(
        {
            "version": FORMAT_VERSION,
            "metadata": {name: value for name, value in map(_known, metadata.items()) if value},
            "benchmarks": benchmarks,
        }
    )


def _benchmarks(name: str, model: ModelResult) -> list[Json]:
    size = _benchmark(f"{name} size", "byte", [{"values": [model.size_bytes]}])
    if model.made_for is not None:  # times and memory on this CPU do not apply to the model's target
        return [size]
    memory = [run.peak_rss_bytes for run in model.runs if run.peak_rss_bytes is not None]
    benchmarks = [_benchmark(f"{name} latency", "second", [_run(run) for run in model.runs]), size]
    if memory:
        runs: list[Json] = [{"values": [peak]} for peak in memory]
        benchmarks.append(_benchmark(f"{name} peak_rss", "byte", runs))
    return benchmarks


def _benchmark(name: str, unit: str, runs: Sequence[Json]) -> Json:
    return {"metadata": {"name": name, "unit": unit}, "runs": list(runs)}


def _run(run: Run) -> Json:
    # Each value is the time of one inference, so pyperf's loop count is always 1.
    return {
        "warmups": [[1, nanoseconds / 1e9] for nanoseconds in run.warmup_ns],
        "values": [int(nanoseconds) / 1e9 for nanoseconds in run.samples_ns()],
    }


def _known(item: tuple[str, JsonValue]) -> tuple[str, JsonValue]:
    """Join the words of a text with single spaces, because pyperf refuses line breaks."""
    name, value = item
    return name, " ".join(value.split()) if isinstance(value, str) else value
