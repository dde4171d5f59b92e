"""Bencher Metric Format: `{benchmark: {measure: {value, lower_value?, upper_value?}}}`.

https://bencher.dev/docs/reference/bencher-metric-format: a benchmark is a model, whose name has at most
1024 characters; a measure is a slug of at most 64. The candidate also has its judged ratios and
differences, with the bounds of the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.judging.gate import Judgement
from bench.judging.verdicts import Metric
from bench.measuring.result import Result
from bench.views.formats.figures import flat_figures, json_text
from bench.views.tables import short_names

MAX_NAME = 1024

Measures = dict[str, dict[str, float]]


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a result to the format that Bencher's `json` adapter reads."""
    benchmarks: dict[str, Measures] = {}
    for name, model in short_names(result.models).items():
        figures = flat_figures(model)
        measures = {_slug(figure): {"value": float(value)} for figure, value in figures.items()}
        benchmarks[name[-MAX_NAME:]] = measures
    if judgement is not None:
        candidate = list(benchmarks.values())[-1]
        candidate.update(_judged(judgement.metrics, "baseline"))
        candidate.update(_judged(judgement.twin_metrics, "float"))
    return json_text(benchmarks)


def _judged(metrics: Mapping[str, Metric], other: str) -> Measures:
    measures = {}
    for name, metric in metrics.items():
        kinds = {"ratio": metric.ratio, "difference": metric.difference}
        kind, value = next((item for item in kinds.items() if item[1] is not None), ("", None))
        if value is None:  # absolute figures are already in the figures of the model
            continue
        bounds = {"value": value, "lower_value": metric.lower, "upper_value": metric.upper}
        # min_accuracy does not compare models: its difference is the distance to the required accuracy.
        against = "floor" if name == "min_accuracy" else other
        known = {key: bound for key, bound in bounds.items() if bound is not None}
        measures[_slug(f"{name}-{kind}-to-{against}")] = known
    return measures


def _slug(name: str) -> str:
    return name.replace("_", "-")
