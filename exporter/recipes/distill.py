"""The stage `distill`: learning from other networks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import refuse_without_effect
from exporter.recipes.inputs import DataConfig, OnnxTeacherConfig, Teacher, TeacherConfig
from exporter.recipes.training import StageConfig, Training


class TransferConfig(FrozenModel):
    """Features of the first teacher to follow."""

    student: str = Field(description="Module of the student, by name.")
    teacher: str | None = Field(None, description="Module of the teacher; by default of the same name.")
    kind: Literal["hint", "attention"] = Field(
        "hint",
        description="`hint`: features, through a learned projection; `attention`: where they are large.",
    )
    weight: float = Field(1.0, gt=0.0, le=1e6, description="Factor on this part of the loss.")


class DistillConfig(StageConfig, Training):
    """`kind = "distill"`: fit to teachers' outputs and features, and to the labels."""

    kind: Literal["distill"]
    teacher: Teacher | tuple[Teacher, ...] = Field(
        description="Whom to learn from; of several the mean of what they say."
    )
    method: Literal["logits", "decoupled"] = Field(
        "logits", description="`decoupled` weighs the labelled class and the others apart."
    )
    temperature: float = Field(4.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the teacher has the rest."
    )
    target_weight: float = Field(
        1.0, ge=0.0, le=1e3, description="Of the labelled class, where decoupled (alpha)."
    )
    other_weight: float = Field(
        8.0, ge=0.0, le=1e3, description="Of the other classes among themselves, where decoupled (beta)."
    )
    features: tuple[TransferConfig, ...] = Field((), description="Inner features to follow too.")
    unlabelled: DataConfig | None = Field(
        None,
        description="More training data without labels; the factory returns input name -> array [N, ...].",
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillConfig:
        if not self.teachers():
            raise ValueError("teacher is empty; name one")
        if self.unlabelled is not None and self.mixup:
            raise ValueError("samples without labels cannot be mixed; set mixup = 0")
        if self.unlabelled is not None and self.hard_weight == 1.0 and not self.features:
            raise ValueError("with hard_weight 1 nothing is learnt from unlabelled samples; lower it")
        if self.method != "decoupled":
            refuse_without_effect(self, ("target_weight", "other_weight"), f"with method {self.method!r}")
        return self

    def teachers(self) -> tuple[str | TeacherConfig | OnnxTeacherConfig, ...]:
        """All of them."""
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
