"""The step `gate`: measure the int8 model and the float baseline, and judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.core.errors import MeasurementError
from bench.inputs.artifact import EVALUATION, FLOAT_MODEL, MODEL, RESULT, Subject
from bench.inputs.host import fingerprint
from bench.judging.gate import Judgement, gate_subjects, with_plain_paths
from bench.measuring.measure import MeasureConfig
from bench.measuring.result import write_result
from bench.views.tables import metrics_json
from exporter.caching.steps import StepFolders
from exporter.graphs.rewrites.processing import as_shipped
from exporter.inspection.operator_times import blamed, operator_times
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.results import GateResult


@dataclass(frozen=True)
class GateStep:
    """Measure the int8 model and the float baseline in turns, and judge them."""

    kind: ClassVar[str] = GateResult.kind
    name: ClassVar[str] = GateResult.kind
    parents: ClassVar[tuple[str, ...]] = ("export", "quantize", "parity")

    resolved: ResolvedRecipe

    def ingredients(self) -> Mapping[str, object]:
        """The budgets, the settings of the measurement, and this host."""
        recipe = self.resolved.recipe
        return {
            **self.resolved.ingredients,
            "policy": recipe.gate.model_dump(mode="json"),
            "bench": recipe.bench.model_dump(mode="json"),
            "host": fingerprint().model_dump(mode="json"),
        }

    def run(self, folders: StepFolders) -> GateResult:
        """Measure, judge, and write `result.json` with the raw samples.

        Raises:
            MeasurementError: nothing could be measured.
        """
        resolved, parents = self.resolved, folders.parents
        model = parents["quantize"] / MODEL
        judgement = with_plain_paths(
            gate_subjects(
                Subject(
                    model,
                    parents["export"] / FLOAT_MODEL,
                    parents["parity"] / EVALUATION,
                    resolved.target().name,
                ),
                None,
                resolved.recipe.gate,
                config=MeasureConfig(threads=resolved.recipe.bench.threads),
                progress=resolved.progress,
            )
        )
        if not judgement.result.models[-1].runs:
            cause = "; ".join(judgement.reasons) or "nothing was measured"
            raise MeasurementError("gate", cause, "fix the cause and run the build again")
        write_result(folders.out / RESULT, judgement.result)
        warnings = resolved.warned([self.blame(model)] if _is_no_faster(judgement) else [])
        return GateResult(
            verdict=judgement.verdict.value,
            reasons=tuple(judgement.reasons),
            metrics=metrics_json(judgement.metrics),
            blocks=judgement.blocks,
            warnings=warnings,
        )

    def blame(self, model: Path) -> str:
        """The warning that int8 is not faster than float here, with the slowest operators."""
        evaluation, recipe = self.resolved.data.evaluation, self.resolved.recipe
        sample = next(as_shipped(evaluation.first(1), recipe.export.preprocess).batches(1))
        times = operator_times(model, sample, threads=recipe.bench.threads)
        worst = ", ".join(f"{t.name} ({t.op_type}, {t.share:.0%})" for t in blamed(times))
        return (
            "int8 is not faster than float on this CPU; operators that take the most time outside int8 "
            f"kernels: {worst}"
        )


def _is_no_faster(judgement: Judgement) -> bool:
    """Whether the target is this CPU and the measurement does not show that int8 is faster."""
    latency = judgement.metrics.get("latency_p50")
    faster = latency is not None and latency.upper is not None and latency.upper < 1
    return latency is not None and latency.not_measured_on is None and not faster
