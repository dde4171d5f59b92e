"""`customSmallerIsBetter` of github-action-benchmark: `[{name, unit, value, range?, extra?}]`.

https://github.com/benchmark-action/github-action-benchmark: smaller values must be better, so accuracy
becomes the error rate and throughput is omitted.
"""

from __future__ import annotations

import numpy as np

from bench.core.schema import Json
from bench.judging.gate import Judgement
from bench.measuring.result import ModelResult, Result
from bench.views.formats.figures import flat_figures, json_text
from bench.views.tables import short_names

_UNITS = {
    "latency_p50_ns": "ns",
    "latency_p90_ns": "ns",
    "latency_p99_ns": "ns",
    "session_ns": "ns",
    "first_run_ns": "ns",
    "peak_rss_bytes": "bytes",
    "size_bytes": "bytes",
}


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a result to the format that the action reads; `extra` includes the verdict."""
    verdict = "" if judgement is None else f", {judgement.verdict}"
    entries: list[Json] = []
    for name, model in short_names(result.models).items():
        extra = f"{len(model.runs)} processes, edgeproof {result.tool_version}{verdict}"
        entries += [
            {**entry, "name": f"{name}: {entry['name']}", "extra": extra} for entry in _entries(model)
        ]
    return json_text(entries)


def _entries(model: ModelResult) -> list[Json]:
    figures = flat_figures(model)
    entries: list[Json] = [
        {"name": name, "unit": unit, "value": figures[name]}
        for name, unit in _UNITS.items()
        if name in figures
    ]
    if "accuracy" in figures:
        entries.append({"name": "error_share", "unit": "share", "value": 1 - figures["accuracy"]})
    medians = [float(np.median(run.samples_ns())) for run in model.runs]
    if len(medians) > 1:
        entries[0]["range"] = f"{min(medians):.0f} … {max(medians):.0f} between processes"
    return entries
