"""Results of all kinds of steps, as immutable, typed classes.

Cache, manifest, report and commands share these definitions. This package imports neither torch nor onnx,
and none of the code that creates or reads results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import TypeAdapter

from exporter.results.audit import (
    Audit,
    FloatOperator,
    LayerError,
    NeedlessPair,
    SaturatingLayer,
    UncountedOperator,
)
from exporter.results.base import Figures, StepResult
from exporter.results.fidelity import Closeness, Fidelity, Remedy
from exporter.results.quantize import (
    AdaRoundFigures,
    AdaRoundReport,
    AnyRepairReport,
    BiasFigures,
    BiasReport,
    EqualizeFigures,
    EqualizeReport,
    FallbackCandidate,
    FallbackReport,
    Int4Model,
    Int4Result,
    Int8Model,
    Int8Result,
    QuantizedFile,
    RepairFigures,
    RepairReport,
    Score,
    SmoothFigures,
    SmoothReport,
)
from exporter.results.shrink import Costs, Cut, NarrowingRound, Round, ShrinkResult
from exporter.results.speed import Speed
from exporter.results.stages import (
    CompressedBytes,
    DistillResult,
    FewShotPoint,
    FineTuneResult,
    FromScratch,
    PretrainResult,
    PruneResult,
    QatResult,
    ReestimateResult,
)
from exporter.results.steps import ExportResult, GateResult, ParityResult, PretrainedResult
from exporter.results.training import Epoch, Trained, Zeros

AnyResult = (
    PretrainedResult
    | FineTuneResult
    | PretrainResult
    | PruneResult
    | ShrinkResult
    | DistillResult
    | ReestimateResult
    | QatResult
    | ExportResult
    | Int8Result
    | Int4Result
    | ParityResult
    | GateResult
)

_OF_KIND: Final[Mapping[str, TypeAdapter[AnyResult]]] = {
    **{
        result.kind: TypeAdapter(result)
        for result in (
            PretrainedResult,
            FineTuneResult,
            PretrainResult,
            PruneResult,
            ShrinkResult,
            DistillResult,
            ReestimateResult,
            QatResult,
            ExportResult,
            ParityResult,
            GateResult,
        )
    },
    "quantize": TypeAdapter(Int8Result | Int4Result),
}


def read_step_result(kind: str, content: bytes) -> AnyResult:
    """Read the result of a step from JSON.

    Args:
        kind: the kind of the step.
        content: JSON text.

    Raises:
        ValueError: the kind is unknown, or the content is damaged or of another format version (pydantic's
            `ValidationError` is a `ValueError`).
    """
    if kind not in _OF_KIND:
        raise ValueError(f"there is no step of kind {kind!r}")
    return _OF_KIND[kind].validate_json(content)


__all__ = [
    "AdaRoundFigures",
    "AdaRoundReport",
    "AnyRepairReport",
    "AnyResult",
    "Audit",
    "BiasFigures",
    "BiasReport",
    "Closeness",
    "CompressedBytes",
    "Costs",
    "Cut",
    "DistillResult",
    "Epoch",
    "EqualizeFigures",
    "EqualizeReport",
    "ExportResult",
    "FallbackCandidate",
    "FallbackReport",
    "FewShotPoint",
    "Fidelity",
    "Figures",
    "FineTuneResult",
    "FloatOperator",
    "FromScratch",
    "GateResult",
    "Int4Model",
    "Int4Result",
    "Int8Model",
    "Int8Result",
    "LayerError",
    "NarrowingRound",
    "NeedlessPair",
    "ParityResult",
    "PretrainResult",
    "PretrainedResult",
    "PruneResult",
    "QatResult",
    "QuantizedFile",
    "ReestimateResult",
    "Remedy",
    "RepairFigures",
    "RepairReport",
    "Round",
    "SaturatingLayer",
    "Score",
    "ShrinkResult",
    "SmoothFigures",
    "SmoothReport",
    "Speed",
    "StepResult",
    "Trained",
    "UncountedOperator",
    "Zeros",
    "read_step_result",
]
