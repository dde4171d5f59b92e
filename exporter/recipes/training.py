"""How weights are fitted; the keys that all stages that train have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Fraction, Name


class Training(FrozenModel):
    """How weights are fitted: AdamW with a linear warmup and a cosine schedule, best epoch kept."""

    epochs: int = Field(2, ge=1, le=10_000, description="Passes over the training data.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Samples per step, over all devices.")
    learning_rate: float = Field(1e-3, gt=0.0, le=10.0, description="Peak of the cosine schedule.")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="Factor on the learning rate from each layer to the one below it."
    )
    weight_decay: float = Field(1e-2, ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")
    warmup: float = Field(0.1, ge=0.0, lt=1.0, description="Share of all steps spent warming up.")
    validation: Fraction = Field(
        0.1,
        description="Share of the training data held out to choose the best epoch; the evaluation "
        "split is never used to choose anything.",
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="Modules that learn nothing, norm statistics included; by name or dotted prefix.",
    )
    unfreeze_epoch: int | None = Field(
        None, ge=1, description="Epoch (from 0) at which frozen modules begin to learn too."
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="Epochs between one frozen module and the next to learn, the last named first; by "
        "default all begin at unfreeze_epoch.",
    )
    probe_epochs: int = Field(
        0,
        ge=0,
        description="Epochs, of all, at the start in which the last layer alone learns; the rest has a "
        "schedule of its own.",
    )
    norm_statistics: Literal["batch", "frozen"] = Field(
        "batch",
        description="What BatchNorm divides by while training: `frozen` keeps the statistics it came with, "
        "which small batches need.",
    )
    ema: float = Field(
        0.0, ge=0.0, lt=1.0, description="Decay of a running average of the weights, kept instead of them."
    )
    patience: int | None = Field(
        None, ge=1, description="Epochs without a better validation accuracy after which training stops."
    )
    mixup: float = Field(
        0.0, ge=0.0, le=10.0, description="Alpha of mixup's Beta distribution; 0 mixes nothing."
    )

    @model_validator(mode="after")
    def _epochs_fit_together(self) -> Training:
        if 0 < self.epochs <= self.probe_epochs:
            raise ValueError(
                f"probe_epochs ({self.probe_epochs}) leaves no epoch of {self.epochs} to train the rest; "
                "raise epochs"
            )
        if self.unfreeze_every is not None and self.unfreeze_epoch is None:
            raise ValueError("unfreeze_every needs unfreeze_epoch; set the epoch at which the first learns")
        if self.unfreeze_epoch is not None and not self.freeze:
            raise ValueError("unfreeze_epoch has nothing to unfreeze; name modules in freeze")
        if self.unfreeze_epoch is not None and 0 < self.epochs <= self.unfreeze_epoch:
            raise ValueError(
                f"unfreeze_epoch ({self.unfreeze_epoch}) is never reached in {self.epochs} epochs; "
                "lower it, or leave it out"
            )
        return self


class SupervisedConfig(Training):
    """Training on labels alone."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Share spread over all classes.")
    class_weights: Literal["equal", "balanced"] = Field(
        "equal",
        description="Weight of each class in the loss: `balanced` makes rare classes count as much as "
        "frequent ones.",
    )


class StageConfig(FrozenModel):
    """What all stages have in common."""

    name: Name | None = Field(None, description="How later stages call this one; else its kind.")
