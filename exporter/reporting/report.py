"""`report.html`: the report of a build as a single page that needs no network and no scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

from bench.inputs.artifact import FLOAT_MODEL, MODEL
from bench.inputs.manifest import Manifest
from bench.judging.gate import Judgement
from bench.views.tables import METRIC_OF_ROW, bounds_text, budget_text, change_text, figure_rows
from exporter.reporting.charts import (
    block_chart,
    few_shot_chart,
    latency_chart,
    layer_chart,
    training_chart,
)
from exporter.reporting.stage_sections import (
    FinishedStep,
    few_shot_rows,
    prune_sections,
    shrink_sections,
    stage_summary,
    training_runs,
    transfer_rows,
)
from exporter.results import FineTuneResult, Int8Result, ParityResult, StepResult

WORST_LAYERS = 10
Result = TypeVar("Result", bound=StepResult)


def render_report(manifest: Manifest, steps: Sequence[FinishedStep], judgement: Judgement) -> str:
    """Render the report as HTML; all texts from recipes and models are escaped.

    Args:
        manifest: manifest of the artifact.
        steps: steps of the build, in order.
        judgement: judgement of the gate.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("exporter.reporting").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    by_name = {model.path: model for model in judgement.result.models}
    models = {"float": by_name[FLOAT_MODEL], "int8": by_name[MODEL]}
    metrics = judgement.metrics
    parity = _only(steps, ParityResult)
    quantized = _first(steps, Int8Result)
    curves = dict(training_runs(steps))
    charts = {
        "latency": latency_chart(models),
        "blocks": block_chart(models),
        "training": training_chart(curves) if curves else "",
        "layers": layer_chart(parity.layers) if parity.layers else "",
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
        stages=[(step, stage_summary(step.result)) for step in steps],
        transfer=list(transfer_rows(steps)),
        few_shot=[
            (step.name, few_shot_rows(points), Markup(few_shot_chart(points)))  # noqa: S704 (drawn here)
            for step in steps
            if isinstance(step.result, FineTuneResult) and (points := step.result.few_shot)
        ],
        shrunk=list(shrink_sections(steps)),
        pruned=list(prune_sections(steps)),
        parity=parity,
        warnings=[line for step in steps for line in step.result.warnings],
        repairs=() if quantized is None else quantized.repairs or (),
        fallback=None if quantized is None else quantized.fallback,
        worst_layers=sorted(parity.layers, key=lambda layer: layer.sqnr_db)[:WORST_LAYERS],
        charts={name: Markup(svg) for name, svg in charts.items()},  # noqa: S704 (drawn here)
        recipe=json.dumps(manifest.recipe, indent=2),
    )


def _first(steps: Sequence[FinishedStep], kind: type[Result]) -> Result | None:
    """The first result of a class; None if there is none."""
    return next((step.result for step in steps if isinstance(step.result, kind)), None)


def _only(steps: Sequence[FinishedStep], kind: type[Result]) -> Result:
    """The result of a class that every build has."""
    found = _first(steps, kind)
    assert found is not None
    return found
