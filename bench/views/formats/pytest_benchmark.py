"""pytest-benchmark's JSON: one benchmark per model, in seconds; percentiles are in `extra_info`.

https://pytest-benchmark.readthedocs.io: `pytest-benchmark compare FILE`, `--benchmark-compare=FILE` and
github-action-benchmark's `pytest` tool read it. The statistics are computed as in pytest-benchmark, over
all samples together. If these tools compare two files, they treat iterations as independent, which
they are not.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from bench.core.schema import Json
from bench.judging.gate import Judgement
from bench.measuring.result import ModelResult, Result
from bench.views.formats.figures import flat_figures, json_text
from bench.views.tables import metrics_json, short_names


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a result to the format that pytest-benchmark saves."""
    models = list(short_names(result.models).items())
    verdicts: list[Json] = [{} for _ in models]
    if judgement is not None:
        verdicts[-1] = {
            "verdict": judgement.verdict.value,
            "metrics": metrics_json(judgement.metrics),
            "float_twin": metrics_json(judgement.twin_metrics),
        }
    host = result.host
    cpu = {"brand_raw": host.cpu_model, "count": host.cpu_count, "flags": list(host.cpu_flags)}
    machine = {
        "machine": host.machine,
        "system": host.system,
        "python_version": host.python,
        "cpu": {name: value for name, value in cpu.items() if value is not None},
    }
    return json_text(
        {
            "machine_info": machine,
            "commit_info": {},
            "benchmarks": [
                _benchmark(name, model, result, verdict)
                for (name, model), verdict in zip(models, verdicts, strict=True)
            ],
            "datetime": result.started_utc,
            "version": f"edgeproof {result.tool_version}",
        }
    )


def _benchmark(name: str, model: ModelResult, result: Result, verdict: Json) -> Json:
    seconds = [nanoseconds / 1e9 for run in model.runs for burst in run.rounds_ns for nanoseconds in burst]
    return {
        "group": None,
        "name": name,
        "fullname": name,
        "params": None,
        "param": None,
        "extra_info": {
            "sha256": model.sha256,
            **flat_figures(model),
            **({} if model.made_for is None else {"not_measured_on": model.made_for}),
            **verdict,
        },
        "options": result.settings.model_dump(mode="json"),
        "stats": {**pooled_statistics(seconds), "data": list(seconds), "iterations": 1},
    }


def pooled_statistics(seconds: Sequence[float]) -> Json:
    """Compute the statistics of `pytest_benchmark.stats.Stats` by the same definitions."""
    ordered = sorted(seconds)
    mean, total = statistics.mean(seconds), sum(seconds)
    spread = statistics.stdev(seconds) if len(seconds) > 1 else 0
    lower = _quartile(ordered)
    upper = -_quartile([-value for value in reversed(ordered)])
    iqr = upper - lower
    fences = lower - 1.5 * iqr, upper + 1.5 * iqr
    beyond_spread = sum(not mean - spread <= value <= mean + spread for value in seconds)
    beyond_fences = sum(not fences[0] <= value <= fences[1] for value in seconds)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": len(seconds),
        "median": statistics.median(seconds),
        "iqr": iqr,
        "q1": lower,
        "q3": upper,
        "iqr_outliers": beyond_fences,
        "stddev_outliers": beyond_spread,
        "outliers": f"{beyond_spread};{beyond_fences}",
        "ld15iqr": ordered[bisect_left(ordered, fences[0])],
        "hd15iqr": ordered[bisect_right(ordered, fences[1]) - 1],
        "ops": len(seconds) / total,
        "total": total,
    }


def _quartile(ordered: Sequence[float]) -> float:
    """Return the lower quartile: the median of the lower half for an even count, otherwise by method 3.

    https://en.wikipedia.org/wiki/Quartile#Computing_methods
    """
    count = len(ordered)
    if count == 1:
        return ordered[0]
    if count % 2 == 0:
        return statistics.median(ordered[: count // 2])
    n, rest = divmod(count, 4)
    if rest == 1:
        return 0.25 * ordered[n - 1] + 0.75 * ordered[n]
    return 0.75 * ordered[n] + 0.25 * ordered[n + 1]
