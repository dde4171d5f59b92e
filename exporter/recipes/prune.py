"""The stage `prune`: set individual weights to zero."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Fraction, refuse_without_effect
from exporter.recipes.training import StageConfig, Training


class PruneTarget(FrozenModel):
    """The weights to prune. Set exactly one of these keys."""

    sparsity: Fraction | None = Field(
        None,
        description="Fraction of the prunable weights (not of all parameters) that becomes zero: the "
        "lowest in the ranking of `method`.",
    )
    threshold: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description='Weights of smaller magnitude become zero. With `scope = "layer"` the unit is the '
        "standard deviation of the layer's weights.",
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}:[0-9]{1,2}$",
        description="`N:M`, for example `2:4`: of every M consecutive weights along the input channels, "
        "the N of largest magnitude stay and the others become zero.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> PruneTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{len(given)} of its keys are set; set exactly one of sparsity, threshold, pattern"
            )
        if self.pattern is not None:
            kept, group = self.kept_and_group()
            if not 0 < kept < group:
                raise ValueError(
                    f"pattern {self.pattern!r} keeps {kept} of {group} weights; write N:M with 0 < N < M, "
                    "for example 2:4"
                )
        return self

    def kept_and_group(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, group = (self.pattern or "").partition(":")
        return int(kept), int(group)


class GradualConfig(Training):
    """Pruning during training; one schedule of the learning rate covers the whole training."""

    begin: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Point of the training at which pruning begins, as a fraction of all its steps.",
    )
    end: float = Field(
        0.75,
        gt=0.0,
        lt=1.0,
        description="Point of the training at which pruning ends, as a fraction of all its steps; the "
        "remaining steps recover accuracy.",
    )
    updates: int = Field(
        20, ge=1, le=10_000, description="How often weights are pruned between `begin` and `end`."
    )

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> GradualConfig:
        if self.end <= self.begin:
            raise ValueError(f"end ({self.end}) is not after begin ({self.begin}); raise end")
        return self


class PruneConfig(StageConfig):
    """`kind = "prune"`: set weights to zero, and keep them zero in later stages."""

    kind: Literal["prune"]
    method: Literal["magnitude", "movement"] = Field(
        "magnitude",
        description="Ranking of the weights. `magnitude`: small weights are pruned first. `movement` "
        "(needs `gradual`): weights that training moves towards zero are pruned first.",
    )
    target: PruneTarget
    scope: Literal["global", "layer"] = Field(
        "global",
        description="`global` ranks the weights of all layers together; `layer` ranks those of each layer "
        "separately.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Modules that are not pruned, by name or dotted prefix."
    )
    gradual: GradualConfig | None = Field(
        None,
        description="If set, prune step by step during training, with a cubic schedule of the sparsity. "
        "Otherwise prune once, without training.",
    )

    @model_validator(mode="after")
    def _methods_fit_targets(self) -> PruneConfig:
        if self.method == "movement" and self.gradual is None:
            raise ValueError('method = "movement" needs training; add gradual = { epochs = 3 }')
        if self.gradual is not None and self.target.sparsity is None:
            raise ValueError("gradual pruning needs a final sparsity; set target.sparsity")
        if self.target.pattern is not None:
            refuse_without_effect(self, ("scope",), "with a pattern, which ranks weights within groups")
        return self
