"""`[quantize]`: the way to int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from bench.core.schema import FrozenModel
from bench.inputs.runtime import OLDEST, required_version
from exporter.options import PRESERVING_REPAIRS, BlockSize, CalibrationMethod, RepairName, TargetName


class FallbackConfig(FrozenModel):
    """`[quantize.fallback]`: leave layers in float until a budget holds on held-out calibration samples."""

    max_drop: float = Field(
        0.01,
        ge=0.0,
        lt=1.0,
        description="Accuracy that int8 may lose, as a share of the samples; without labels, the share "
        "of samples on which it may disagree with float.",
    )
    min_sqnr_db: float | None = Field(
        None, ge=0.0, le=200.0, description="SQNR of the output that must be reached too, in dB."
    )
    max_layers: int = Field(8, ge=1, le=1000, description="Layers that may stay in float.")


# What has no meaning where activations stay in float.
_OF_ACTIVATIONS = frozenset({"samples", "method", "repair", "fallback"})


class QuantizeConfig(FrozenModel):
    """`[quantize]`: static int8, or weights alone in 4 bits, by ONNX Runtime."""

    target: TargetName = Field("auto", description="The CPU kind to ship to; `auto` is this one.")
    onnxruntime: str | None = Field(
        None,
        description='The ONNX Runtime to ship to, such as ">=1.28". Rewrites that need a newer one are '
        "left out, and a network that needs a newer one is refused. By default rewrites run on every "
        f"version that edgeproof supports, from {OLDEST} on, and the network may need a newer one.",
    )
    samples: int | None = Field(
        None, ge=1, description="Calibration samples to use; by default up to 256, as there are."
    )
    method: CalibrationMethod = Field(
        "minmax", description="How activation ranges are chosen from the calibration samples."
    )
    exclude: tuple[str, ...] = Field((), description="Nodes to leave in float, by name.")
    bits: Literal[4, 8] = Field(
        8,
        description="8: weights and activations. 4: weights of products alone, block by block, for "
        "networks whose size is that of these; nothing is calibrated.",
    )
    block_size: BlockSize = Field(
        32, description="Weights of 4 bits that share a scale: fewer are nearer to float, and larger."
    )
    min_int8_ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="The build fails if a smaller share of multiply-adds runs in int8, after fusion on "
        "this CPU, or if the share is only an upper bound because an operator cannot be counted.",
    )
    repair: tuple[RepairName, ...] = Field(
        (),
        description="Accuracy repairs, in this order; each is kept only if it brings the int8 output "
        "nearer to float on held-out calibration samples.",
    )
    fallback: FallbackConfig | None = None

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
            raise ValueError(f"bits = 4 rounds no activations: leave out {', '.join(sorted(unused))}")
        if self.bits == 8 and "block_size" in self.model_fields_set:
            raise ValueError("block_size goes with bits = 4: 8 bits have a scale for each channel")
        return self


def repair_order_problem(names: Sequence[str]) -> str | None:
    """What is wrong with a list of repairs, or None."""
    for index, name in enumerate(names):
        if name in names[:index]:
            return f"repair {name!r} is named twice"
        bending = [n for n in names[:index] if n not in PRESERVING_REPAIRS]
        if name in PRESERVING_REPAIRS and bending:
            return f"repair {name!r} must stand before {bending[0]!r}, whose work it would undo"
    return None
