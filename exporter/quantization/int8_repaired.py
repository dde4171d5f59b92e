"""Static int8 quantization with accuracy repairs and, if needed, some layers in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import onnx

from bench.core.errors import UsageError
from bench.core.progress import Progress
from exporter.graphs.edits import copy_of
from exporter.graphs.names import name_nodes
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.options import RepairName
from exporter.quantization.calibration import RangeStore
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.output import Accept, accept_all
from exporter.quantization.repair import REPAIRS
from exporter.quantization.repair.budget import meet_budget
from exporter.quantization.repair.held_out import RepairSamples
from exporter.quantization.repair.qdq_models import calibrated
from exporter.quantization.repair.score import Judge
from exporter.quantization.repair.trial import try_repairs
from exporter.recipes import FallbackConfig, repair_order_problem
from exporter.results import FallbackReport, Int8Model
from exporter.sources.splits import ArraySamples, Samples

_JUDGE_BATCH = 8
_FOR_ACCURACY = "it was left in float to meet the accuracy budget"


@dataclass(frozen=True)
class RepairSettings:
    """Repairs and fallback to apply in addition to plain quantization.

    Attributes:
        names: the repairs, in the order to try them.
        fallback: the accuracy budget; layers are left in float to meet it. None for no fallback.
    """

    names: tuple[RepairName, ...] = ()
    fallback: FallbackConfig | None = None

    @property
    def asked(self) -> bool:
        """Whether any repair or the fallback is requested."""
        return bool(self.names) or self.fallback is not None


NO_REPAIR = RepairSettings()


class Finish(Protocol):
    """Quantizes a model and writes it, with the arguments of `quantize_model`."""

    def __call__(
        self,
        model: onnx.ModelProto,
        destination: Path,
        samples: Samples,
        settings: Int8Settings,
        *,
        progress: Progress,
        store: RangeStore | None = None,
        reference: onnx.ModelProto | None = None,
        trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
        accept: Accept = accept_all,
    ) -> Int8Model:
        """Quantize a model and write it."""


def quantize_repaired(
    model: onnx.ModelProto,
    destination: Path,
    samples: RepairSamples,
    settings: Int8Settings,
    repairs: RepairSettings,
    *,
    progress: Progress,
    finish: Finish = quantize_model,
    accept: Accept = accept_all,
) -> Int8Model:
    """Quantize a float model to int8 with repairs and write it.

    Args:
        model: the float model with folded BatchNorm; it is not changed.
        destination: the file to write.
        samples: samples to fit repairs on, and held-out samples to judge them.
        settings: how to quantize. The fallback's float layers are added to its excluded nodes.
        repairs: the repairs and the fallback to apply.
        progress: receives the progress.
        finish: quantizes the repaired model, as `quantize_model` does.
        accept: called with the finished file before it is moved to `destination`; may raise to reject it.

    Raises:
        UsageError: a repair is unknown, or the repairs cannot be combined.
        DataError: the samples cannot be used.
        ExportError: an excluded node does not exist, ONNX Runtime rejects the model, or no configuration
            meets the fallback's budget.
    """
    check_repairs(repairs.names)
    settings = replace(settings, exclude=named_nodes(model, settings.exclude))
    named = _with_named_nodes(model)
    models = calibrated(named, samples.fitted, settings, progress)
    batch = settings.fixed_batch or min(_JUDGE_BATCH, models.batch_size(named))
    judge = Judge(named, samples.held_out, samples.labels, batch)
    repaired = try_repairs(named, repairs.names, models, judge, progress)
    chosen, fallback = repaired.model, None
    if repairs.fallback is not None:
        chosen, fallback = meet_budget(repaired, judge, repairs.fallback, progress)
    made = finish(
        chosen,
        destination,
        ArraySamples(samples.fitted),
        _leaving(settings, fallback),
        progress=progress,
        reference=repaired.models.reference,
        trained_qparams=TrainedQparams(levels=repaired.models.reduction.levels),
        accept=accept,
    )
    return made.model_copy(
        update={
            "held_out_samples": samples.held_out_count,
            "repairs": repaired.reports,
            "fallback": fallback,
        }
    )


def check_repairs(names: Sequence[str]) -> tuple[RepairName, ...]:
    """Return the names, typed as repairs, after checking that all exist and can be combined.

    Raises:
        UsageError: a name is unknown (the error lists the repairs), or the repairs cannot be combined.
    """
    for name in names:
        if name not in REPAIRS:
            raise UsageError("repair", f"there is no repair {name!r}", f"choose from: {', '.join(REPAIRS)}")
    if (problem := repair_order_problem(names)) is not None:
        raise UsageError("repair", problem, "correct the list")
    return cast("tuple[RepairName, ...]", tuple(names))


def _with_named_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copy_of(model)
    name_nodes(copy)
    return copy


def _leaving(settings: Int8Settings, fallback: FallbackReport | None) -> Int8Settings:
    """The settings with the layers of a fallback added to the excluded nodes."""
    if fallback is None:
        return settings
    return replace(
        settings,
        exclude=(*settings.exclude, *fallback.exclude),
        reasons=dict.fromkeys(fallback.exclude, _FOR_ACCURACY),
    )
