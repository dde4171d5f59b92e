"""Keys that several kinds of stages share, most of them about training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Fraction, Name


class Training(FrozenModel):
    """Settings of a training: AdamW with linear warmup and a cosine schedule; the best epoch is kept."""

    epochs: int = Field(2, ge=1, le=10_000, description="Number of passes over the training data.")
    batch_size: int = Field(
        64, ge=1, le=65_536, description="Number of samples per training step, over all devices together."
    )
    learning_rate: float = Field(
        1e-3, gt=0.0, le=10.0, description="Highest learning rate of the cosine schedule."
    )
    layer_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Factor by which the learning rate falls from each layer to the one before it, "
        "starting at the last layer; 1 trains all layers at the same rate.",
    )
    weight_decay: float = Field(
        1e-2, ge=0.0, le=1.0, description="Decoupled weight decay of AdamW; biases and norms do not decay."
    )
    warmup: float = Field(
        0.1,
        ge=0.0,
        lt=1.0,
        description="Fraction of all training steps in which the learning rate rises linearly from 0.",
    )
    validation: Fraction = Field(
        0.1,
        description="Fraction of the training data that is held out to choose the best epoch; the "
        "evaluation split is never used to choose anything.",
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="Modules that are not trained, by name or dotted prefix; their BatchNorm statistics do "
        "not change either.",
    )
    unfreeze_epoch: int | None = Field(
        None,
        ge=1,
        description="Epoch (from 0) from which on the modules in `freeze` are trained too; by default "
        "never.",
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="Number of epochs after which the next module of `freeze` is trained too, starting "
        "with the last one in the list; by default all start at `unfreeze_epoch`.",
    )
    probe_epochs: int = Field(
        0,
        ge=0,
        description="Number of epochs at the start, included in `epochs`, in which only the last layer is "
        "trained. The remaining epochs have their own learning rate schedule.",
    )
    norm_statistics: Literal["batch", "frozen"] = Field(
        "batch",
        description="Mean and variance that BatchNorm uses during training. `batch`: the statistics of "
        "each batch. `frozen`: the stored statistics, which do not change. Use `frozen` with small "
        "batches.",
    )
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Decay of an exponential moving average of the weights, which replaces the weights; "
        "0 turns it off.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Training stops after this number of epochs without a better validation accuracy; by "
        "default it never stops early.",
    )
    mixup: float = Field(
        0.0,
        ge=0.0,
        le=10.0,
        description="Parameter alpha of the Beta distribution from which mixup draws its weights; 0 turns "
        "mixup off.",
    )

    @model_validator(mode="after")
    def _epochs_fit_together(self) -> Training:
        if 0 < self.epochs <= self.probe_epochs:
            raise ValueError(
                f"probe_epochs ({self.probe_epochs}) leaves no epoch to train the other layers, because "
                f"epochs is {self.epochs}; raise epochs"
            )
        if self.unfreeze_every is not None and self.unfreeze_epoch is None:
            raise ValueError(
                "unfreeze_every needs unfreeze_epoch; set unfreeze_epoch to the epoch in which the first "
                "module of freeze starts to train"
            )
        if self.unfreeze_epoch is not None and not self.freeze:
            raise ValueError("unfreeze_epoch has no effect without freeze; name modules in freeze")
        if self.unfreeze_epoch is not None and 0 < self.epochs <= self.unfreeze_epoch:
            raise ValueError(
                f"unfreeze_epoch ({self.unfreeze_epoch}) is never reached in {self.epochs} epochs; "
                "lower unfreeze_epoch, or leave it out"
            )
        return self


class SupervisedConfig(Training):
    """Settings of a training on labels only."""

    label_smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Fraction of each label that is spread equally over all classes.",
    )
    class_weights: Literal["equal", "balanced"] = Field(
        "equal",
        description="Weight of the samples in the loss. `equal`: all samples have the same weight. "
        "`balanced`: all classes have the same total weight, however rare they are.",
    )


class StageConfig(FrozenModel):
    """Keys that all stages share."""

    name: Name | None = Field(
        None,
        description="Name of the stage, by which later stages and `--set` refer to it; by default its "
        "`kind`, followed by `-2`, `-3` and so on if the kind occurs again.",
    )
