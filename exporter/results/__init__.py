"""What each kind of step finds: frozen, typed figures, one definition for cache, manifest, report, command.

They lie below all that makes them and all that reads them, and need neither torch nor onnx.
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
    """The result of a step of a kind, from JSON.

    Raises:
        ValueError: it is damaged, or another version wrote it in another form; pydantic's
            `ValidationError` is one.
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
    "RepairFigures",
    "RepairReport",
    "Round",
    "SaturatingLayer",
    "Score",
    "ShrinkResult",
    "SmoothFigures",
    "SmoothReport",
    "StepResult",
    "Trained",
    "UncountedOperator",
    "Zeros",
    "read_step_result",
]
