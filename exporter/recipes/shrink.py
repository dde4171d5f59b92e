"""The stage `shrink`: structured pruning."""

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
    """How small or fast the network shall become; one of these. Ratios are to the network as it came in."""

    latency_ms: float | None = Field(None, gt=0.0, description="Median time of one sample on this CPU.")
    latency_ratio: Fraction | None = Field(None, description="Of that time.")
    float_latency_ratio: Fraction | None = Field(
        None, description="Of the time that the network as it came in takes in float."
    )
    macs_ratio: Fraction | None = Field(None, description="Of the multiply-adds.")
    params_ratio: Fraction | None = Field(None, description="Of the parameters.")
    size_ratio: Fraction | None = Field(None, description="Of the bytes of the exported model.")

    @model_validator(mode="after")
    def _one_of_them(self) -> ShrinkTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}; there are {len(given)}")
        return self

    def chosen(self) -> tuple[str, float]:
        """Which one, and how much."""
        return next((name, value) for name in type(self).model_fields if (value := getattr(self, name)))


class ShrinkConfig(StageConfig, Training):
    """`kind = "shrink"`: structured pruning. Cut channels, blocks and pixels, and recover."""

    kind: Literal["shrink"]
    target: ShrinkTarget | None = Field(
        None, description="How far to narrow; without one, only `drop` and `resolution` act."
    )
    allocation: AllocationMethod = Field(
        "latency",
        description="What decides which channels go: measured time, multiply-adds, or an equal share.",
    )
    importance: Importance = Field("taylor", description="What decides which channels of a layer stay.")
    precision: Precision = Field("int8", description="The numbers whose time and size count.")
    epochs: int = Field(2, ge=0, le=10_000, description="Passes over the training data after each round.")
    rounds: int = Field(1, ge=1, le=100, description="Narrow in so many steps, and recover after each.")
    multiple: int = Field(
        16,
        ge=1,
        le=1024,
        description="Widths are multiples of this. ONNX Runtime's int8 depthwise kernel is 3 to 4 times "
        "slower at other widths than multiples of 16.",
    )
    min_kept: Fraction = Field(0.1, description="Share of a layer's channels that always stays.")
    depth: int = Field(0, ge=0, le=1000, description="Blocks that may be dropped to meet the target.")
    drop: tuple[str, ...] = Field((), description="Blocks to drop, by name.")
    resolution: int | None = Field(
        None, ge=8, le=8192, description="Side that pictures are scaled to inside the network."
    )
    samples: int = Field(256, ge=2, description="Held-out training samples that damage is judged on.")
    exclude: tuple[str, ...] = Field((), description="Modules that keep their channels and stay.")
    teacher: Teacher | None = Field(None, description="Recover by distillation from this one.")
    temperature: float = Field(4.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the teacher has the rest."
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> ShrinkConfig:
        if self.target is None and not self.drop and self.resolution is None:
            raise ValueError("nothing to do: give target, drop or resolution")
        if self.target is None:
            narrowing = ("depth", "rounds", "allocation", "importance", "multiple", "min_kept", "samples")
            refuse_without_effect(self, narrowing, "without a target")
        if self.allocation == "uniform":
            refuse_without_effect(self, ("depth",), "with equal shares of all layers")
        if self.teacher is None:
            refuse_without_effect(self, ("temperature", "hard_weight"), "without a teacher")
        return self

    def distillation(self) -> DistillConfig | None:
        """How it recovers from a teacher, if it has one."""
        if self.teacher is None:
            return None
        return DistillConfig(
            kind="distill",
            teacher=self.teacher,
            temperature=self.temperature,
            hard_weight=self.hard_weight,
        )
