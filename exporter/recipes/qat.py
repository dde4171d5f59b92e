"""The stages `reestimate` and `qat`: BatchNorm statistics, and quantization-aware training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporter.recipes.training import StageConfig, Training


class ReestimateConfig(StageConfig):
    """`kind = "reestimate"`: compute the BatchNorm statistics again, as averages over the training data."""

    kind: Literal["reestimate"]
    batch_size: int = Field(64, ge=2, le=65_536, description="Number of samples per batch.")
    freeze: tuple[str, ...] = Field(
        (), description="Modules whose statistics do not change, by name or dotted prefix."
    )


class QatConfig(StageConfig, Training):
    """`kind = "qat"`: quantization-aware training for the recipe's target; must be the last stage."""

    kind: Literal["qat"]
    batch_size: int = Field(
        64,
        ge=1,
        le=65_536,
        description="Number of samples per training step. BatchNorm statistics are frozen, so even a batch "
        "of 1 works.",
    )
    learning_rate: float = Field(
        1e-4,
        gt=0.0,
        le=10.0,
        description="Highest learning rate of the cosine schedule; use a much lower rate than in "
        "fine-tuning.",
    )
    weight_decay: float = Field(
        0.0, ge=0.0, le=1.0, description="Decoupled weight decay of AdamW; biases and norms do not decay."
    )
    norm_statistics: Literal["frozen"] = Field(
        "frozen",
        description="Always `frozen`: BatchNorm layers are folded into the weights, as in the int8 model.",
    )
    temperature: float = Field(
        2.0,
        ge=1.0,
        le=100.0,
        description="Divisor of the logits of student and teacher before softmax; a higher temperature "
        "gives more weight to classes with low probability.",
    )
    hard_weight: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Weight of the loss on the labels, as a fraction; the loss on the outputs of the float "
        "network, which is the teacher, has weight 1 - `hard_weight`.",
    )
    range_share: float = Field(
        0.75,
        ge=0.0,
        le=1.0,
        description="Fraction of all training steps, from the start, in which activation ranges are "
        "trained too; afterwards they are fixed.",
    )
