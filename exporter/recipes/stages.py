"""The union type of all stages, and functions about a stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from exporter.recipes.distill import DistillConfig
from exporter.recipes.finetune import FineTuneConfig, PretrainConfig
from exporter.recipes.inputs import OnnxTeacherConfig, TeacherConfig
from exporter.recipes.prune import PruneConfig
from exporter.recipes.qat import QatConfig, ReestimateConfig
from exporter.recipes.shrink import ShrinkConfig
from exporter.recipes.training import Training


def trains(stage: object) -> bool:
    """Whether a stage trains weights."""
    if isinstance(stage, Training):
        return stage.epochs > 0
    return getattr(stage, "gradual", None) is not None


def teachers_of(stage: object) -> tuple[str | TeacherConfig | OnnxTeacherConfig, ...]:
    """The teachers of a stage; empty for most stages."""
    if isinstance(stage, ShrinkConfig):
        stage = stage.distillation()
    return stage.teachers() if isinstance(stage, DistillConfig) else ()


Stage = Annotated[
    FineTuneConfig
    | PretrainConfig
    | PruneConfig
    | ShrinkConfig
    | DistillConfig
    | ReestimateConfig
    | QatConfig,
    Field(discriminator="kind"),
]
