"""Tables for people and JSON for programs. This module shows verdicts and never decides one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bench.core.schema import Json
from bench.inputs.manifest import Manifest, TensorEntry
from bench.judging.certificate import LARGER, Certificate, fail_share, memory_fail_share
from bench.judging.gate import Judgement
from bench.judging.verdicts import Metric, Verdict, made_for_others
from bench.measuring.result import ModelResult, Result
from bench.measuring.scenario_result import ScenarioModel
from bench.measuring.self_test import Verification

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Measured = TypeVar("Measured", ModelResult, ScenarioModel)

_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.INVALID: "bold magenta",
}
_ABSENT = "–"


def model_json(model: ModelResult) -> Json:
    """Return the entry of one model in `bench --json`; times in ns, memory in bytes."""
    return {
        "path": model.path,
        "sha256": model.sha256,
        "made_for": model.made_for,
        "latency_ns": model.latency().model_dump(mode="json"),
        "memory": {name: phase.model_dump() for name, phase in model.memory_phases().items()},
        "session_ns": model.session_ns(),
        "first_run_ns": model.first_run_ns(),
        "throughput_per_s": model.throughput_per_s(),
        "peak_rss_bytes": model.peak_rss_bytes(),
        "size_bytes": model.size_bytes,
        "accuracy": model.accuracy(),
    }


def result_json(result: Result) -> Json:
    """Return the output of `bench --json`."""
    return {
        "stopped": result.stopped,
        "models": [model_json(model) for model in result.models],
        "host": result.host.model_dump(mode="json"),
        "settings": result.settings.model_dump(mode="json"),
        "data": result.data.model_dump(mode="json"),
        "warnings": list(result.warnings),
    }


def verification_json(verification: Verification) -> Json:
    """Return the output of `verify --json`."""
    return {
        "artifact": str(verification.artifact),
        "name": verification.manifest.name,
        "files": len(verification.manifest.files),
        "golden": asdict(verification.golden),
    }


def metrics_json(metrics: Mapping[str, Metric]) -> Json:
    """Return metrics in the form that `compare --json` and `gate --json` print."""
    return {name: metric.model_dump(mode="json") for name, metric in metrics.items()}


def judgement_json(judgement: Judgement) -> Json:
    """Return the output of `compare --json` and `gate --json`."""
    return {
        "verdict": judgement.verdict.value,
        "reasons": list(judgement.reasons),
        "warnings": list(judgement.warnings),
        "candidate": judgement.candidate,
        "baseline": judgement.baseline,
        "metrics": metrics_json(judgement.metrics),
        "float_twin": metrics_json(judgement.twin_metrics),
        "flips": [flip.model_dump() for flip in judgement.flips],
        "blocks": judgement.blocks,
        "repeated": judgement.result.repeat is not None,
        "certificate": judgement.result.certificate,
        "models": [model_json(model) for model in judgement.result.models if model.runs],
    }


def short_names(models: Sequence[Measured]) -> dict[str, Measured]:
    """Return models by the shortest part of their paths that distinguishes them; names are printable."""
    paths = [Path(_printable(model.path)) for model in models]
    short = [path.name for path in paths]
    if len(set(short)) < len(short):
        short = ["/".join(path.parts[-2:]) for path in paths]
    if len(set(short)) < len(short) or not all(short):
        short = [f"{name} [{index}]" for index, name in enumerate(short)]
    return dict(zip(short, models, strict=True))


def result_view(result: Result) -> list[RenderableType]:
    """Return the parts that `bench` prints for a result."""
    from rich.text import Text

    view: list[RenderableType] = [figures_table(short_names(result.models), {})]
    if result.data.synthetic:
        view.append("feeds: synthetic (made from the input signature); no accuracy")
    view += [Text(_printable(line)) for line in made_for_others(result)]
    return view


def verification_view(verification: Verification) -> list[RenderableType]:
    """Return the lines that `verify` prints: the successful check, then facts of the manifest."""
    from rich.text import Text

    manifest, golden = verification.manifest, verification.golden
    found = (
        f"{_printable(str(verification.artifact))}: {len(manifest.files)} files match their hashes; "
        f"{golden.samples} golden samples agree (SQNR {golden.sqnr_db:.1f} dB)"
    )
    return [Text(line) for line in [found, *manifest_lines(manifest)]]


def manifest_lines(manifest: Manifest) -> list[str]:
    """Return the task, metrics, inputs and outputs of a manifest; unknown facts have no line."""
    lines = []
    if manifest.task is not None:
        classes = "" if manifest.labels is None else f", {len(manifest.labels)} classes"
        lines.append(f"task: {manifest.task}{classes}")
    lines += [
        f"{name}: {metric.value:.4g}"
        + ("" if metric.baseline is None else f" (float {metric.baseline:.4g})")
        + f", {metric.direction} is better; {metric.samples} samples of {metric.split}"
        for name, metric in (manifest.metrics or {}).items()
    ]
    if manifest.signature is not None:
        for kind, tensors in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
            lines += [f"{kind} {tensor.name}: {_tensor_text(tensor)}" for tensor in tensors]
    return [_printable(line) for line in lines]


def _tensor_text(tensor: TensorEntry) -> str:
    axes = ", ".join("?" if axis is None else str(axis) for axis in tensor.shape)
    return f"{tensor.dtype} [{axes}]"


def judgement_view(judgement: Judgement) -> list[RenderableType]:
    """Return the parts that `compare` and `gate` print for a judgement."""
    from rich.text import Text

    view: list[RenderableType] = []
    if judgement.blocks:
        names = short_names(judgement.result.models)
        view += [figures_table(names, judgement.metrics), "", verdict_table(judgement.metrics)]
    if judgement.twin_metrics:
        view += ["\nagainst its own float model", verdict_table(judgement.twin_metrics)]
    view.append(f"\n{styled_verdict(judgement.verdict)}")
    view += [Text(f"  {_printable(reason)}") for reason in judgement.reasons]
    view += [Text(_printable(line)) for line in flip_lines(judgement)]
    view.append(Text(judgement.result.certificate))
    return view


def plain_text(view: Sequence[RenderableType], width: int = 108) -> str:
    """Return a view as text without colours."""
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, soft_wrap=True)
    for part in view:
        console.print(part)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def figure_rows(models: Mapping[str, ModelResult], *, judged: bool = False) -> list[tuple[str, list[str]]]:
    """Return the rows of the main table: a label, and one text for each model.

    Args:
        models: name -> result.
        judged: whether the table belongs to a verdict. Such a table hides times and memory of a model that
            was made for another kind of CPU, because they are not judged.
    """
    columns = list(models.values())
    latencies = [model.latency() for model in columns]

    def of_this_cpu(label: str, texts: Iterable[str]) -> tuple[str, list[str]]:
        hidden = [judged and model.made_for is not None for model in columns]
        return label, [
            not_measured_text(model.made_for) if hide else text
            for model, hide, text in zip(columns, hidden, texts, strict=True)
        ]

    return [
        ("accuracy", [percent(model.accuracy()) for model in columns]),
        of_this_cpu("latency p50", (milliseconds(latency.p50) for latency in latencies)),
        of_this_cpu("latency p90", (milliseconds(latency.p90) for latency in latencies)),
        of_this_cpu("latency p99", (milliseconds(latency.p99) for latency in latencies)),
        of_this_cpu("samples", (str(latency.count) for latency in latencies)),
        of_this_cpu("throughput", (f"{model.throughput_per_s():.0f} /s" for model in columns)),
        of_this_cpu("session creation", (milliseconds(model.session_ns()) for model in columns)),
        of_this_cpu("first inference", (milliseconds(model.first_run_ns()) for model in columns)),
        of_this_cpu("peak memory", (mebibytes(model.peak_rss_bytes()) for model in columns)),
        ("file size", [mebibytes(model.size_bytes) for model in columns]),
    ]


def not_measured_text(target: str | None) -> str:
    """Return the text that replaces a figure of a model for another kind of CPU."""
    return _printable(f"not measured on {target}")


METRIC_OF_ROW = {
    "accuracy": "accuracy",
    "latency p50": "latency_p50",
    "latency p90": "latency_p90",
    "peak memory": "peak_rss",
    "file size": "size",
}


def figures_table(models: Mapping[str, ModelResult], metrics: Mapping[str, Metric]) -> Table:
    """Return the main table: one column per model, then the change from the first to the last model."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in models:
        table.add_column(escape(name), justify="right", no_wrap=True)
    if metrics:
        table.add_column("change", justify="right", no_wrap=True)
    for label, texts in figure_rows(models, judged=bool(metrics)):
        metric = metrics.get(METRIC_OF_ROW.get(label, ""))
        change = [change_text(metric)] if metrics else []
        table.add_row(label, *(escape(text) for text in (*texts, *change)))
    return table


def verdict_table(metrics: Mapping[str, Metric]) -> Table:
    """Return a table with one row per metric: estimate, bounds, budget, verdict."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("metric", "estimate", "bounds", "budget", "verdict"):
        table.add_column(
            heading, justify="left" if heading == "metric" else "right", no_wrap=heading != "bounds"
        )
    for name, metric in metrics.items():
        style = _STYLES[metric.verdict] if metric.verdict else "dim"
        table.add_row(
            name,
            escape(change_text(metric)),
            bounds_text(metric),
            budget_text(metric),
            f"[{style}]{metric.verdict or 'not judged'}[/]",
        )
    return table


def styled_verdict(verdict: Verdict) -> str:
    """Return the verdict in its colour, as rich markup."""
    return f"[{_STYLES[verdict]}]{verdict}[/]"


def change_text(metric: Metric | None) -> str:
    """Return the estimate of a metric: `0.520 ×` for ratios, `-0.20 points` for differences."""
    if metric is None:
        return ""
    if metric.not_measured_on is not None:
        return not_measured_text(metric.not_measured_on)
    if metric.ratio is not None:
        return f"{metric.ratio:.3f} ×"
    if metric.difference is not None:
        return f"{metric.difference * 100:+.2f} points"
    return _value_text(metric, metric.value)


def bounds_text(metric: Metric) -> str:
    """Return the confidence bounds, on the scale of the estimate."""
    if metric.value is not None:
        return f"{_value_text(metric, metric.lower)} … {_value_text(metric, metric.upper)}"
    if metric.ratio is None and metric.difference is None:
        return _ABSENT
    scale, digits = (1.0, 3) if metric.ratio is not None else (100.0, 2)

    def text(value: float | None) -> str:
        return _ABSENT if value is None else f"{value * scale:.{digits}f}"

    return f"{text(metric.lower)} … {text(metric.upper)}"


def budget_text(metric: Metric) -> str:
    """Return the budget, on the scale of the estimate."""
    if metric.budget is None:
        return _ABSENT
    unmeasured_ratio = metric.not_measured_on is not None and metric.unit is None
    if metric.ratio is not None or unmeasured_ratio:
        return f"≤ {1 + metric.budget:.3f} ×"
    if metric.unit is not None:
        return f"{'≥' if metric.unit == 'share' else '≤'} {_value_text(metric, metric.budget)}"
    return f"≥ {0.0 - metric.budget * 100:+.2f} points"


def _value_text(metric: Metric, value: float | None) -> str:
    if value is None:
        return _ABSENT
    return f"{value:.2%}" if metric.unit == "share" else f"{value:.3f} {metric.unit}"


def flip_lines(judgement: Judgement, most: int = 10) -> list[str]:
    """Return lines for the first `most` samples whose prediction changed, and a count of the others."""
    if not judgement.flips:
        return []
    lines = [f"flips: {len(judgement.flips)}"] + [
        f"  {flip.sample}: {flip.baseline} -> {flip.candidate}"
        + ("" if flip.label is None else f" (label {flip.label})")
        for flip in judgement.flips[:most]
    ]
    left = len(judgement.flips) - most
    return [*lines, f"  and {left} more: see --json"] if left > 0 else lines


def certificate_rows(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the rows that `certify` prints: a condition, and the fraction of runs that FAIL."""
    rows = []
    for condition in certificate.conditions:
        label = condition.kind if not condition.asked else f"{condition.kind} by {condition.asked:.1%}"
        if condition.kind == LARGER:
            share = (
                memory_fail_share(condition.peak_rss, certificate.budget) if condition.peak_rss else None
            )
            rows.append((f"{label} (memory)", percent(share)))
        else:
            seen = math.expm1(float(np.median(condition.latency_p50)))
            share = fail_share(condition.latency_p50, certificate.budget)
            rows.append((f"{label} (measured {seen:+.1%})", percent(share)))
    rows += [
        (f"{flip.share:.1%} of predictions flipped", percent(flip.fail_share))
        for flip in certificate.flipped
    ]
    return rows


def milliseconds(nanoseconds: float | None) -> str:
    """Return nanoseconds as milliseconds: three decimals below 10 ms, otherwise one."""
    if nanoseconds is None:
        return _ABSENT
    value = nanoseconds / 1e6
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def mebibytes(count: int | None) -> str:
    """Return bytes as MiB."""
    return _ABSENT if count is None else f"{count / 2**20:.2f} MiB"


def percent(share: float | None) -> str:
    """Return a fraction as a percentage."""
    return _ABSENT if share is None else f"{share:.2%}"


def _printable(text: str) -> str:
    """In a path or a message, replace characters that control a terminal or end a line."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text).strip()
