"""Try repairs one after another, each on the result of the previous ones; keep those that help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from bench.core.progress import Progress
from bench.metrics.parity import sqnr_db
from exporter.options import PRESERVING_REPAIRS, RepairName
from exporter.quantization.repair import REPAIRS, REPORTS, RepairContext
from exporter.quantization.repair.qdq_models import QdqModels
from exporter.quantization.repair.score import Judge
from exporter.results import AnyRepairReport, RepairFigures, Score

# The held-out samples are few and similar to the fitted ones. A bias correction that gained 0.2 dB on them
# lost 0.3 dB on other pictures (EfficientNet-Lite0, ImageNet weights, after AdaRound).
MIN_GAIN_DB = 0.5
# The same limit as for the export itself. Rounding alone leaves more than 100 dB. The SQNR is lower if a
# held-out sample reaches a Clip that no calibration sample reached.
PRESERVED_SQNR_DB = 50.0


@dataclass(frozen=True)
class Repaired:
    """A float model after some repairs.

    Attributes:
        model: the float model after all kept repairs.
        models: builds its int8 models. Their reference has only the repairs that keep the float function.
        score: the score of the repaired int8 model.
        reports: the reports of all tried repairs, in order.
    """

    model: onnx.ModelProto
    models: QdqModels
    score: Score
    reports: tuple[AnyRepairReport, ...] = ()

    def context(self, progress: Progress) -> RepairContext:
        """The context for the next repair."""
        return RepairContext(
            inputs=self.models.inputs,
            batch_size=self.models.batch_size(self.model),
            reference=self.models.reference,
            qdq_model=self.models.make,
            per_channel=self.models.settings.target.per_channel,
            progress=progress,
        )


def try_repairs(
    model: onnx.ModelProto, names: Sequence[RepairName], models: QdqModels, judge: Judge, progress: Progress
) -> Repaired:
    """Try repairs one after another.

    Args:
        model: the float model.
        names: the repairs, in the order to try them.
        models: builds int8 models; calibrated on the float model.
        judge: scores models on held-out samples.
        progress: receives the progress and the report of each repair.
    """
    repaired = Repaired(model, models, judge.score(models.make(model)))
    for name in names:
        repaired = _try(name, repaired, judge, progress)
        progress.say(repaired.reports[-1].line())
    return repaired


def _try(name: RepairName, before: Repaired, judge: Judge, progress: Progress) -> Repaired:
    """Try one repair; return the result with the repair's report added."""
    candidate, figures = REPAIRS[name](before.model, before.context(progress))
    preserving = name in PRESERVING_REPAIRS
    if preserving and (reason := _change(candidate, judge)):
        return _with_report(before, _report(name, figures, before.score, before.score, reason))
    models = before.models.calibrated_on(candidate, progress) if preserving else before.models
    score = judge.score(models.make(candidate))
    reason = ""
    if score.sqnr_db < before.score.sqnr_db + MIN_GAIN_DB:
        reason = f"it did not improve the SQNR of int8 by {MIN_GAIN_DB} dB on held-out samples"
    report = _report(name, figures, before.score, score, reason)
    return _with_report(
        before if reason else replace(before, model=candidate, models=models, score=score), report
    )


def _change(candidate: onnx.ModelProto, judge: Judge) -> str:
    """The reason to reject a repair that changed the float function by mistake, or an empty string."""
    found = judge.outputs(candidate)
    near = sqnr_db(judge.wanted, found)
    if np.isfinite(found).all() and near >= PRESERVED_SQNR_DB:
        return ""
    return f"it changed the float model (SQNR {near:.0f} dB)"


def _with_report(repaired: Repaired, report: AnyRepairReport) -> Repaired:
    return replace(repaired, reports=(*repaired.reports, report))


def _report(
    name: RepairName, figures: RepairFigures, before: Score, after: Score, reason: str
) -> AnyRepairReport:
    """The report of a repair. If `reason` is not empty, the repair was not kept."""
    return REPORTS[name](
        repair=name,
        kept=not reason,
        reason=reason,
        sqnr_db_before=before.sqnr_db,
        sqnr_db_after=after.sqnr_db,
        agreement_before=before.agreement,
        agreement_after=after.agreement,
        **figures.model_dump(),
    )
