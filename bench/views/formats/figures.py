"""Functions that all formats use: figures of a model, with units in their names, and JSON text."""

from __future__ import annotations

import json

from bench.measuring.result import ModelResult


def flat_figures(model: ModelResult) -> dict[str, float | int]:
    """Return the figures of a model; unknown figures are omitted, never zero.

    `accuracy` is a fraction between 0 and 1. Times and memory of a model that was made for another kind of
    CPU are omitted, because another tool would store them as times of the target CPU.
    """
    latency = model.latency()
    of_this_cpu: dict[str, float | int | None] = {
        "latency_p50_ns": latency.p50,
        "latency_p90_ns": latency.p90,
        "latency_p99_ns": latency.p99,
        "session_ns": model.session_ns(),
        "first_run_ns": model.first_run_ns(),
        "throughput_per_s": model.throughput_per_s(),
        "peak_rss_bytes": model.peak_rss_bytes(),
    }
    figures = (of_this_cpu if model.made_for is None else {}) | {
        "size_bytes": model.size_bytes,
        "accuracy": model.accuracy(),
    }
    return {name: value for name, value in figures.items() if value is not None}


def json_text(value: object) -> str:
    """Return a value as the text of a JSON file. A NaN raises a ValueError, because JSON has no NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
