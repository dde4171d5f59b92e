"""`[quantize]`: the quantization of the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from bench.core.schema import FrozenModel
from bench.inputs.runtime import OLDEST, required_version
from exporter.options import PRESERVING_REPAIRS, BlockSize, CalibrationMethod, Goal, RepairName, TargetName


class FallbackConfig(FrozenModel):
    """`[quantize.fallback]`: keep layers in float so that int8 meets these limits on held-out samples."""

    max_drop: float = Field(
        0.01,
        ge=0.0,
        lt=1.0,
        description="Largest accuracy loss of int8 against float, as a fraction of the samples. Without "
        "labels: largest fraction of samples whose predicted class differs.",
    )
    min_sqnr_db: float | None = Field(
        None,
        ge=0.0,
        le=200.0,
        description="Minimum SQNR of the int8 output against the float output, in dB; by default only "
        "`max_drop` limits the loss.",
    )
    max_layers: int = Field(8, ge=1, le=1000, description="Largest number of layers to keep in float.")


# Keys that have no effect if activations stay in float.
_OF_ACTIVATIONS = frozenset({"samples", "method", "repair", "fallback", "goal"})


class QuantizeConfig(FrozenModel):
    """`[quantize]`: static quantization to int8, or quantization of only the weights to 4 bits."""

    target: TargetName = Field(
        "auto",
        description="Kind of CPU that the model will run on. `auto`: the CPU of the build. `portable`: "
        "correct on every CPU, and fast on x86.",
    )
    onnxruntime: str | None = Field(
        None,
        description='Versions of ONNX Runtime that the model must run on, for example ">=1.28". Rewrites '
        "that need a newer version are left out, and a network that needs a newer version is an error. By "
        "default, the rewrites work on every version that edgeproof supports, from "
        f"{OLDEST} on, but the network itself may need a newer version.",
    )
    samples: int | None = Field(
        None, ge=1, description="Number of calibration samples to use; by default all, but at most 256."
    )
    method: CalibrationMethod = Field(
        "minmax",
        description="Method that chooses activation ranges from the calibration samples. `minmax`: the "
        "extreme values. `moving_average`: moving averages of the extreme values of batches. `percentile`: "
        "cuts off at most 0.01 % of the values. `entropy`: smallest KL divergence. `mse`: smallest "
        "squared error.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="ONNX nodes to keep in float: names of nodes or modules, or patterns with `*`."
    )
    bits: Literal[4, 8] = Field(
        8,
        description="8: quantize weights and activations. 4: quantize only the weights of matrix products, "
        "in blocks, without calibration; for networks that consist mostly of such weights.",
    )
    block_size: BlockSize = Field(
        32,
        description="With `bits = 4`: number of weights that share a scale. Smaller blocks are more "
        "accurate but make a larger file.",
    )
    min_int8_ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Minimum fraction of multiply-adds that runs in int8, after fusion on this CPU. The "
        "build fails if the fraction is lower. It also fails if the multiply-adds of an operator cannot be "
        "counted, because the fraction is then only an upper bound.",
    )
    repair: tuple[RepairName, ...] = Field(
        (),
        description="Accuracy repairs to try, in the order of this list. `equalize`: scale channels of "
        "successive layers against each other. `smooth`: scale activations against weights. `adaround`: "
        "learn the rounding of weights. `bias`: correct biases. Each is kept only if it brings the int8 "
        "output closer to the float output on held-out calibration samples.",
    )
    fallback: FallbackConfig | None = None
    goal: Goal = Field(
        "speed",
        description="`speed`: the build fails if int8 is proven to be slower than float on this CPU. "
        "`size`, or a network that takes less than 50 us: it continues with a warning. Models for another "
        "kind of CPU are not timed.",
    )

    @field_validator("onnxruntime")
    @classmethod
    def _is_a_requirement(cls, value: str | None) -> str | None:
        if value is not None:
            required_version(value)
        return value

    @model_validator(mode="after")
    def _repairs_fit_together(self) -> QuantizeConfig:
        if (problem := repair_order_problem(self.repair)) is not None:
            raise ValueError(problem)
        if self.bits == 4 and (unused := self.model_fields_set & _OF_ACTIVATIONS):
            raise ValueError(
                f"bits = 4 does not quantize activations; leave out {', '.join(sorted(unused))}"
            )
        if self.bits == 8 and "block_size" in self.model_fields_set:
            raise ValueError(
                "block_size has no effect with bits = 8, which has one scale per channel; leave it out"
            )
        return self


def repair_order_problem(names: Sequence[str]) -> str | None:
    """Describe the error in the order of a list of repairs; None if the order is valid."""
    for index, name in enumerate(names):
        if name in names[:index]:
            return f"repair {name!r} is named twice"
        bending = [n for n in names[:index] if n not in PRESERVING_REPAIRS]
        if name in PRESERVING_REPAIRS and bending:
            return (
                f"repair {name!r} must come before {bending[0]!r}, because {name!r} would undo the effect "
                f"of {bending[0]!r}"
            )
    return None
