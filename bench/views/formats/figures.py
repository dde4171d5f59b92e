"""What all formats share: a model's figures under names that carry their units."""

from __future__ import annotations

import json

from bench.measuring.result import ModelResult


def flat_figures(model: ModelResult) -> dict[str, float | int]:
    """The figures of a model; what the host or the data do not tell is left out, never zero.

    `accuracy` is a share of 1. Times and memory of a model that was made for another kind of CPU are left
    out: a tool that keeps them would take them for those of its own.
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
    """A value as the text of a JSON file. NaN is refused: it is not JSON."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
