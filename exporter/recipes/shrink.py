"""The stage `shrink`: structured pruning (fewer channels, fewer blocks, smaller images)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.options import AllocationMethod, Importance, Precision
from exporter.recipes.distill import DistillConfig
from exporter.recipes.fields import Fraction, refuse_without_effect
from exporter.recipes.inputs import Teacher
from exporter.recipes.training import StageConfig, Training


class ShrinkTarget(FrozenModel):
    """The size or latency that the network must reach. Set exactly one of these keys.

    The incoming network is the one that the previous stage left. Latency and file size are measured on
    models in the stage's `precision`.
    """

    latency_ms: float | None = Field(
        None, gt=0.0, description="Median latency of one sample on this CPU, in milliseconds."
    )
    latency_ratio: Fraction | None = Field(
        None, description="Median latency, as a fraction of the latency of the incoming network."
    )
    float_latency_ratio: Fraction | None = Field(
        None,
        description="Median latency, as a fraction of the latency of the incoming network in float.",
    )
    macs_ratio: Fraction | None = Field(
        None, description="Multiply-adds, as a fraction of the incoming network's multiply-adds."
    )
    params_ratio: Fraction | None = Field(
        None, description="Parameters, as a fraction of the incoming network's parameters."
    )
    size_ratio: Fraction | None = Field(
        None, description="Size of the model file, as a fraction of the incoming network's file size."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> ShrinkTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{len(given)} of its keys are set; set exactly one of {', '.join(type(self).model_fields)}"
            )
        return self

    def chosen(self) -> tuple[str, float]:
        """The name and the value of the key that is set."""
        return next((name, value) for name in type(self).model_fields if (value := getattr(self, name)))


class ShrinkConfig(StageConfig, Training):
    """`kind = "shrink"`: structured pruning. Remove channels, blocks and pixels, then train to recover."""

    kind: Literal["shrink"]
    target: ShrinkTarget | None = Field(
        None,
        description="Size or latency to reach. Without it, only `drop` and `resolution` have an effect.",
    )
    allocation: AllocationMethod = Field(
        "latency",
        description="Rule that distributes the cut over the layers. `latency`: smallest damage per time "
        "saved, by times measured on this CPU. `macs`: smallest damage per multiply-add saved. `uniform`: "
        "the same fraction of every layer.",
    )
    importance: Importance = Field(
        "taylor",
        description="Score of the channels within a layer; channels with the lowest score are removed. "
        "`taylor`: estimated change of the loss. `magnitude`: size of the weights. `bn_scale`: BatchNorm "
        "scale.",
    )
    precision: Precision = Field(
        "int8", description="Precision of the model whose latency and size are measured."
    )
    epochs: int = Field(
        2,
        ge=0,
        le=10_000,
        description="Passes over the training data after each round; 0 leaves recovery to a later stage.",
    )
    rounds: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of rounds in which the target is reached; the network is trained after each.",
    )
    multiple: int = Field(
        16,
        ge=1,
        le=1024,
        description="New layer widths are multiples of this number of channels. The int8 depthwise kernel "
        "of ONNX Runtime is 3 to 4 times slower if the width is not a multiple of 16.",
    )
    min_kept: Fraction = Field(0.1, description="Smallest fraction of its channels that each layer keeps.")
    depth: int = Field(
        0, ge=0, le=1000, description="Largest number of blocks that may be removed to reach the target."
    )
    drop: tuple[str, ...] = Field((), description="Names of blocks to remove in any case.")
    resolution: int | None = Field(
        None,
        ge=8,
        le=8192,
        description="Side length in pixels to which the network scales its input images; by default it "
        "does not scale.",
    )
    samples: int = Field(
        256,
        ge=2,
        description="Number of held-out training samples on which the damage of each cut is estimated.",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="Modules that keep all their channels and are not removed, by name or dotted prefix.",
    )
    teacher: Teacher | None = Field(
        None, description="Teacher for recovery by distillation; without one, recovery uses labels only."
    )
    temperature: float = Field(
        4.0,
        ge=1.0,
        le=100.0,
        description="With a teacher: divisor of the logits of student and teacher before softmax; a higher "
        "temperature gives more weight to classes with low probability.",
    )
    hard_weight: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="With a teacher: weight of the loss on the labels, as a fraction; the loss on the "
        "teacher has weight 1 - `hard_weight`.",
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> ShrinkConfig:
        if self.target is None and not self.drop and self.resolution is None:
            raise ValueError("the stage has nothing to do; set target, drop or resolution")
        if self.target is None:
            narrowing = ("depth", "rounds", "allocation", "importance", "multiple", "min_kept", "samples")
            refuse_without_effect(self, narrowing, "without a target")
        if self.allocation == "uniform":
            refuse_without_effect(self, ("depth",), "with allocation 'uniform'")
        if self.teacher is None:
            refuse_without_effect(self, ("temperature", "hard_weight"), "without a teacher")
        return self

    def distillation(self) -> DistillConfig | None:
        """The distillation settings for recovery; None without a teacher."""
        if self.teacher is None:
            return None
        return DistillConfig(
            kind="distill",
            teacher=self.teacher,
            temperature=self.temperature,
            hard_weight=self.hard_weight,
        )
