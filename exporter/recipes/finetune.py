"""The stages `finetune` and `pretrain`: train on labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.inputs import DataConfig
from exporter.recipes.training import StageConfig, SupervisedConfig


class FewShotConfig(FrozenModel):
    """The few-shot curve: accuracy from pretrained and from random weights for small training sets."""

    images: tuple[int, ...] = Field(
        (10, 30, 100),
        min_length=1,
        description="Numbers of training samples per class, in ascending order; each is one point of the "
        "curve.",
    )
    seeds: int = Field(
        3,
        ge=2,
        le=100,
        description="Number of seeds. Each point takes two trainings per seed: from pretrained and from "
        "random weights.",
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Number of epochs of each training; by default `epochs` of the stage. Small training "
        "sets need more.",
    )

    @field_validator("images")
    @classmethod
    def _two_of_each(cls, images: tuple[int, ...]) -> tuple[int, ...]:
        if min(images) < 2:
            raise ValueError(
                "one sample per class cannot be both trained on and held out; ask for two or more"
            )
        if list(images) != sorted(set(images)):
            raise ValueError("the sizes are not in ascending order; write each once, the smallest first")
        return images


class FineTuneConfig(StageConfig, SupervisedConfig):
    """`kind = "finetune"`: train the pretrained network on the recipe's data."""

    kind: Literal["finetune"]
    head: str | None = Field(
        None,
        description="Name of the module, for example `fc`, whose weights are replaced by random ones "
        "before training; use it if the classes are new.",
    )
    from_scratch: bool = Field(
        False,
        description="If true, also train the same network from random weights for the same number of "
        "epochs, and report both accuracies; their difference is the gain from pretrained weights.",
    )
    few_shot: FewShotConfig | None = Field(
        None,
        description="If set, compare training from pretrained and from random weights for several small "
        "numbers of samples per class, and report the curve of the accuracies.",
    )

    @model_validator(mode="after")
    def _probe_fits_few_shots(self) -> FineTuneConfig:
        if self.few_shot is not None and self.probe_epochs >= (self.few_shot.epochs or self.epochs):
            raise ValueError("few_shot.epochs leaves no epoch after probe_epochs; raise few_shot.epochs")
        return self


class PretrainConfig(StageConfig, SupervisedConfig):
    """`kind = "pretrain"`: train the network on other data (the source data) first."""

    kind: Literal["pretrain"]
    data: DataConfig = Field(description="The data to pretrain on.")
