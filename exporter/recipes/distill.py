"""The stage `distill`: train with other networks as teachers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import refuse_without_effect
from exporter.recipes.inputs import DataConfig, OnnxTeacherConfig, Teacher, TeacherConfig
from exporter.recipes.training import StageConfig, Training


class TransferConfig(FrozenModel):
    """One additional loss between features (outputs of modules) of the student and of the first teacher."""

    student: str = Field(description="Name of the student's module whose output is compared.")
    teacher: str | None = Field(
        None,
        description="Name of the teacher's module whose output is compared; by default the same name as in "
        "the student.",
    )
    kind: Literal["hint", "attention"] = Field(
        "hint",
        description="Quantity to compare. `hint`: the features, after a learned linear projection of the "
        "student's features. `attention`: the map of feature magnitudes over positions.",
    )
    weight: float = Field(1.0, gt=0.0, le=1e6, description="Weight of this loss in the total loss.")


class DistillConfig(StageConfig, Training):
    """`kind = "distill"`: train the network on the outputs of one or more teachers and on the labels."""

    kind: Literal["distill"]
    teacher: Teacher | tuple[Teacher, ...] = Field(
        description="The teacher, or a list of teachers, whose class probabilities are averaged."
    )
    method: Literal["logits", "decoupled"] = Field(
        "logits",
        description="Distillation loss. `logits`: KL divergence of the class probabilities. `decoupled`: "
        "separate terms for the labelled class (`target_weight`) and for the other classes "
        "(`other_weight`).",
    )
    temperature: float = Field(
        4.0,
        ge=1.0,
        le=100.0,
        description="Divisor of the logits of student and teacher before softmax; a higher temperature "
        "gives more weight to classes with low probability.",
    )
    hard_weight: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Weight of the loss on the labels, as a fraction; the loss on the teachers has weight "
        "1 - `hard_weight`.",
    )
    target_weight: float = Field(
        1.0,
        ge=0.0,
        le=1e3,
        description='With `method = "decoupled"`: factor on the term of the labelled class (alpha).',
    )
    other_weight: float = Field(
        8.0,
        ge=0.0,
        le=1e3,
        description='With `method = "decoupled"`: factor on the term of the other classes (beta).',
    )
    features: tuple[TransferConfig, ...] = Field(
        (), description="Additional losses between features of the student and of the first teacher."
    )
    unlabelled: DataConfig | None = Field(
        None,
        description="Additional training samples without labels; the factory returns a mapping from input "
        "name to array [N, ...].",
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillConfig:
        if not self.teachers():
            raise ValueError("teacher is an empty list; name at least one teacher")
        if self.unlabelled is not None and self.mixup:
            raise ValueError("mixup cannot mix samples without labels; set mixup = 0")
        if self.unlabelled is not None and self.hard_weight == 1.0 and not self.features:
            raise ValueError("unlabelled samples have no effect with hard_weight = 1; lower hard_weight")
        if self.method != "decoupled":
            refuse_without_effect(self, ("target_weight", "other_weight"), f"with method {self.method!r}")
        return self

    def teachers(self) -> tuple[str | TeacherConfig | OnnxTeacherConfig, ...]:
        """All teachers, as a tuple even if the recipe names a single one."""
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
