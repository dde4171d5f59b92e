"""The stages `finetune` and `pretrain`: training on labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.inputs import DataConfig
from exporter.recipes.training import StageConfig, SupervisedConfig


class FewShotConfig(FrozenModel):
    """The few-shot curve: transfer against random weights, at several sizes of data."""

    images: tuple[int, ...] = Field(
        (10, 30, 100), min_length=1, description="Training samples of each class, one point each."
    )
    seeds: int = Field(3, ge=2, le=100, description="Trainings of each kind and size; intervals need two.")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs of each; by default the stage's. Small data need more."
    )

    @field_validator("images")
    @classmethod
    def _two_of_each(cls, images: tuple[int, ...]) -> tuple[int, ...]:
        if min(images) < 2:
            raise ValueError(
                "one sample of a class cannot be both learnt and held out; ask for two or more"
            )
        if list(images) != sorted(set(images)):
            raise ValueError("the sizes do not grow; write each once, the smallest first")
        return images


class FineTuneConfig(StageConfig, SupervisedConfig):
    """`kind = "finetune"`: fit the pretrained network to the data."""

    kind: Literal["finetune"]
    head: str | None = Field(
        None, description="Module to initialise anew, such as `fc`; its old classes are forgotten."
    )
    from_scratch: bool = Field(
        False,
        description="Also train the same network from random weights on the same budget, and report "
        "both: what the pretrained weights bought.",
    )
    few_shot: FewShotConfig | None = Field(
        None, description="Do so on a few samples of each class too, and report the curve."
    )

    @model_validator(mode="after")
    def _probe_fits_few_shots(self) -> FineTuneConfig:
        if self.few_shot is not None and self.probe_epochs >= (self.few_shot.epochs or self.epochs):
            raise ValueError("few_shot.epochs leaves no epoch after probe_epochs; raise it")
        return self


class PretrainConfig(StageConfig, SupervisedConfig):
    """`kind = "pretrain"`: fit the network to other, source data first."""

    kind: Literal["pretrain"]
    data: DataConfig = Field(description="The source data.")
