"""`report.html`: one page that a person reads, whole in itself, without network or script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from bench.inputs.artifact import FLOAT_MODEL, MODEL
from bench.inputs.manifest import Manifest
from bench.judging.gate import Judgement
from bench.views.tables import (
    METRIC_OF_ROW,
    bounds_text,
    budget_text,
    change_text,
    figure_rows,
    milliseconds,
    percent,
)
from exporter.reporting.charts import (
    block_chart,
    few_shot_chart,
    latency_chart,
    layer_chart,
    training_chart,
)

WORST_LAYERS = 10
# What a `shrink` stage compares: as its figures call it, and as people do.
_COSTS = (
    ("latency_ms", "latency"),
    ("macs", "multiply-adds"),
    ("params", "parameters"),
    ("size_bytes", "bytes of the file"),
)
# Figures of stages whose own name would say too little.
_SUMMARY_LABELS = {"zero_share": "zeros among all parameters", "sparsity": "zeros among eligible weights"}


def render_report(manifest: Manifest, judgement: Judgement) -> str:
    """The page as HTML. All texts from recipes and models are escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("exporter.reporting").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    by_name = {model.path: model for model in judgement.result.models}
    models = {"float": by_name[FLOAT_MODEL], "int8": by_name[MODEL]}
    metrics = judgement.metrics
    parity = next(stage.metrics for stage in manifest.stages if stage.kind == "parity")
    layers = parity["layers"]
    quantized = next((stage.metrics for stage in manifest.stages if stage.kind == "quantize"), {})
    curves = dict(training_runs(manifest))
    charts = {
        "latency": latency_chart(models),
        "blocks": block_chart(models),
        "training": training_chart(curves) if curves else "",
        "layers": layer_chart(layers) if layers else "",
    }
    return environment.from_string(
        source
    ).render(
        manifest=manifest,
        verdict=judgement.verdict.value,
        reasons=judgement.reasons,
        host=judgement.result.host,
        settings=judgement.result.settings,
        blocks=judgement.blocks,
        figures=[
            (label, texts, change_text(metrics.get(METRIC_OF_ROW.get(label, ""))))
            for label, texts in figure_rows(models, judged=True)
        ],
        judged=[
            {
                "name": name,
                "estimate": change_text(metric),
                "bounds": bounds_text(metric),
                "budget": budget_text(metric),
                "verdict": metric.verdict or "not judged",
                "reason": metric.reason,
            }
            for name, metric in metrics.items()
        ],
        stages=[(stage, stage_summary(stage.metrics)) for stage in manifest.stages],
        transfer=list(transfer_rows(manifest)),
        few_shot=[
            (stage.name, few_shot_rows(lines), Markup(few_shot_chart(lines)))  # noqa: S704 (drawn here)
            for stage in manifest.stages
            if (lines := stage.metrics.get("few_shot"))
        ],
        shrunk=list(shrink_sections(manifest)),
        pruned=list(prune_sections(manifest)),
        parity=parity,
        warnings=[text for stage in manifest.stages for text in stage.metrics.get("warnings", ())],
        audit=parity.get("audit"),
        repairs=quantized.get("repairs", []),
        fallback=quantized.get("fallback"),
        worst_layers=sorted(layers, key=lambda layer: float(layer["sqnr_db"]))[:WORST_LAYERS],
        charts={name: Markup(svg) for name, svg in charts.items()},  # noqa: S704 (drawn here)
        recipe=json.dumps(manifest.recipe, indent=2),
    )


def training_runs(manifest: Manifest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and curves of everything that was trained."""
    for stage in manifest.stages:
        if "curves" in stage.metrics:
            yield stage.name, stage.metrics["curves"]
        if "from_scratch" in stage.metrics:
            yield f"{stage.name}, from scratch", stage.metrics["from_scratch"]["curves"]


def transfer_rows(manifest: Manifest) -> Iterator[tuple[str, str, str, str]]:
    """What pretrained weights bought: stage, accuracy with them, without, and the difference."""
    for stage in manifest.stages:
        scratch = stage.metrics.get("from_scratch")
        if scratch is not None:
            with_transfer = stage.metrics["evaluation_accuracy"]
            without = scratch["evaluation_accuracy"]
            gain = f"{(with_transfer - without) * 100:+.2f} points"
            yield stage.name, percent(with_transfer), percent(without), gain


def few_shot_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each number of images what transfer bought, with its bounds over seeds."""
    return [_few_shot_row(line) for line in lines]


def _few_shot_row(line: Mapping[str, Any]) -> dict[str, str]:
    points = {name: value * 100 for name, value in line["gain"].items()}
    return {
        "images": str(line["images"]),
        "seeds": str(len(line["transfer"])),
        "transfer": percent(sum(line["transfer"]) / len(line["transfer"])),
        "from_scratch": percent(sum(line["from_scratch"]) / len(line["from_scratch"])),
        "gain": f"{points['estimate']:+.2f} points",
        "bounds": f"{points['lower']:+.2f} … {points['upper']:+.2f}",
    }


def shrink_sections(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What each `shrink` stage was asked for, what it cut, and what it knew of each layer."""
    for stage in manifest.stages:
        section = {
            "targets": _targets(stage.metrics),
            "costs": _cost_rows(stage.metrics),
            "dropped": stage.metrics.get("dropped", []),
            "layers": _cut_rows(stage.metrics),
        }
        if stage.kind == "shrink" and any(section.values()):
            yield {"name": stage.name, **section}


def _targets(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key of the recipe, what was asked for, and what was reached."""
    rows = []
    for name, limit in (metrics.get("goal") or {}).items():
        reached = _reached(name, limit, metrics)
        rows.append((name, f"{limit:.4g}", "–" if reached is None else f"{reached:.4g}"))
    return rows


def _reached(goal: str, limit: float, metrics: Mapping[str, Any]) -> float | None:
    """How far a network came, in the unit of its target; None where the figures for it are missing."""
    from exporter.results import Costs
    from exporter.training.shrinking.costs import Goal

    try:
        # Earlier versions did not write `float_latency_ms`.
        before, after = (Costs(**{"float_latency_ms": None, **metrics[key]}) for key in ("before", "after"))
        return Goal(goal, limit).reached(before, after)
    except (KeyError, ValueError):
        return None


def _cost_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Label, before, after, change."""
    before, after = metrics.get("before", {}), metrics.get("after", {})
    rows = []
    for column, label in _COSTS:
        if column in before and column in after:
            first, then = before[column], after[column]
            change = f"{then / first:.3f} ×" if first else ""
            rows.append((label, _cost_text(column, first), _cost_text(column, then), change))
    if (in_float := before.get("float_latency_ms")) is not None:
        rows.append(("latency in float", _cost_text("latency_ms", in_float), "", ""))
    return rows


def _cost_text(column: str, value: float) -> str:
    return milliseconds(value * 1e6) if column == "latency_ms" else f"{value:,}"


def _cut_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each layer and block that could go: what is left, and what cutting it alone would have done.

    That is told of the whole network, thus by the first round; what is left, by the last.
    """
    rounds = [line for line in metrics.get("rounds", ()) if line.get("sensitivity")]
    kept = {name: units for line in rounds for name, units in line.get("kept", {}).items()}
    rows = []
    for name, curve in rounds[0]["sensitivity"].items() if rounds else ():
        row = {"layer": name, "left": "–", "level": "–", "nats": "–", "accuracy": "–"}
        if curve:  # a layer of one channel has nothing to lose
            level = min(curve, key=int)  # in JSON they are texts
            nats, accuracy = curve[level]
            row |= {"level": str(level), "nats": f"{nats:.4f}", "accuracy": percent(accuracy)}
        if any(name == block or name.startswith(f"{block}.") for block in metrics.get("dropped", ())):
            row["left"] = "gone"
        elif name in kept:
            units = rounds[0].get("units", {}).get(name)
            row["left"] = str(kept[name]) if units is None else f"{kept[name]} of {units}"
        elif row["level"] == "0":
            row["left"] = "stays"
        rows.append(row)
    return rows


def prune_sections(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What the zeros of each `prune` stage buy: compressed bytes, before and after."""
    for stage in manifest.stages:
        before = stage.metrics.get("compressed_bytes_before", {})
        after = stage.metrics.get("compressed_bytes", {})
        if stage.kind == "prune" and "sparsity" in stage.metrics:
            yield {
                "name": stage.name,
                "sparsity": percent(stage.metrics["sparsity"]),
                **_zero_texts(stage.metrics),
                "bytes": [
                    (form, f"{before[form]:,}", f"{after[form]:,}", f"{after[form] / before[form]:.3f} ×")
                    for form in ("float", "int8")
                    if before.get(form) and form in after
                ],
            }


def _zero_texts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The share of all parameters, and the counts behind it, if the stage told them."""
    if "zero_share" not in metrics:
        return {}
    counts = ("zeros", "parameters", "eligible_parameters")
    return {"zero_share": percent(metrics["zero_share"])} | {key: f"{metrics[key]:,}" for key in counts}


def stage_summary(metrics: Mapping[str, Any]) -> str:
    """The plain figures of a stage in one line; lists and tables have their own place in the page."""
    parts = []
    for name, value in metrics.items():
        label = _SUMMARY_LABELS.get(name, name.replace("_", " "))
        if isinstance(value, bool | int | str):
            parts.append(f"{label} {value}")
        elif isinstance(value, float):
            parts.append(f"{label} {value:.4g}")
    return ", ".join(parts)
