"""Trying repairs one after another, each on what those before it left; what buys nothing is not kept."""

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
from exporter.quantization.repair.score import Judge, outputs_of
from exporter.results import AnyRepairReport, RepairFigures, Score

# Held-out samples are few and like those that were fitted to: bias correction that gained 0.2 dB on them
# lost 0.3 dB on other pictures (EfficientNet-Lite0, ImageNet weights, after AdaRound).
MIN_GAIN_DB = 0.5
# As the export itself is held to. Rounding leaves more than 100 dB; a channel that passes a clip which no
# calibration sample reached, but a held-out one did, leaves less.
PRESERVED_SQNR_DB = 50.0


@dataclass(frozen=True)
class Repaired:
    """A float model after some repairs.

    Attributes:
        model: the float model, with weights and biases bent for int8.
        models: makes int8 of it. Their reference has what keeps the float function, and nothing else.
        score: of its int8 model.
        reports: what each repair bought, in the order they were tried.
    """

    model: onnx.ModelProto
    models: QdqModels
    score: Score
    reports: tuple[AnyRepairReport, ...] = ()

    def context(self, progress: Progress) -> RepairContext:
        """What the next repair is given beside the model."""
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
    """Try repairs in this order.

    Args:
        model: the float model.
        names: of the repairs.
        models: calibrated on the float model.
        judge: has samples that nothing was fitted to.
        progress: told how far it is, and what each repair bought.
    """
    repaired = Repaired(model, models, judge.score(models.make(model)))
    for name in names:
        repaired = _try(name, repaired, judge, progress)
        progress.say(repaired.reports[-1].line())
    return repaired


def _try(name: RepairName, before: Repaired, judge: Judge, progress: Progress) -> Repaired:
    """What is left after one repair, and a report more."""
    candidate, figures = REPAIRS[name](before.model, before.context(progress))
    preserving = name in PRESERVING_REPAIRS
    if preserving and (reason := _change(candidate, judge)):
        return _with_report(before, _report(name, figures, before.score, before.score, reason))
    models = before.models.calibrated_on(candidate, progress) if preserving else before.models
    score = judge.score(models.make(candidate))
    reason = ""
    if score.sqnr_db < before.score.sqnr_db + MIN_GAIN_DB:
        reason = f"it did not bring int8 {MIN_GAIN_DB} dB nearer to float on held-out samples"
    report = _report(name, figures, before.score, score, reason)
    return _with_report(
        before if reason else replace(before, model=candidate, models=models, score=score), report
    )


def _change(candidate: onnx.ModelProto, judge: Judge) -> str:
    """How a repair that should have kept the float function changed it; empty if it did not."""
    found = outputs_of(candidate, judge.inputs, judge.batch_size)
    near = sqnr_db(judge.wanted, found)
    if np.isfinite(found).all() and near >= PRESERVED_SQNR_DB:
        return ""
    return f"it changed the float model (SQNR {near:.0f} dB)"


def _with_report(repaired: Repaired, report: AnyRepairReport) -> Repaired:
    return replace(repaired, reports=(*repaired.reports, report))


def _report(
    name: RepairName, figures: RepairFigures, before: Score, after: Score, reason: str
) -> AnyRepairReport:
    """What a repair bought; with a reason, it was not kept."""
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
