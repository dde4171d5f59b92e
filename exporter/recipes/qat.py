"""The stages `reestimate` and `qat`: statistics of norms, and training under rounding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporter.recipes.training import StageConfig, Training


class ReestimateConfig(StageConfig):
    """`kind = "reestimate"`: average the BatchNorm statistics anew over the training data."""

    kind: Literal["reestimate"]
    batch_size: int = Field(64, ge=2, le=65_536, description="Samples per batch.")
    freeze: tuple[str, ...] = Field(
        (), description="Modules whose statistics stay, by name or dotted prefix."
    )


class QatConfig(StageConfig, Training):
    """`kind = "qat"`: train under the rounding to 8 bits of the recipe's target; the last stage."""

    kind: Literal["qat"]
    batch_size: int = Field(
        64, ge=1, le=65_536, description="Samples per step; norms keep their statistics, so one will do."
    )
    learning_rate: float = Field(
        1e-4, gt=0.0, le=10.0, description="Peak of the cosine schedule; far below that of fine-tuning."
    )
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")
    norm_statistics: Literal["frozen"] = Field(
        "frozen", description="Norms are folded into the weights, as in the int8 graph."
    )
    temperature: float = Field(2.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the float network as teacher has the rest."
    )
    range_share: float = Field(
        0.75, ge=0.0, le=1.0, description="Share of all steps in which activation ranges learn too."
    )
