"""The stage `prune`: weights that become zero."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Fraction, refuse_without_effect
from exporter.recipes.training import StageConfig, Training


class PruneTarget(FrozenModel):
    """How far to prune: one of these."""

    sparsity: Fraction | None = Field(
        None,
        description="Share of the prunable weights, not of all parameters, that become zero: those of "
        "smallest magnitude.",
    )
    threshold: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="Magnitude below which weights become zero; with scope `layer`, in standard deviations "
        "of the layer's weights.",
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}:[0-9]{1,2}$",
        description="`N:M` keeps the N largest of every M weights along the input channels, such as `2:4`.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> PruneTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of sparsity, threshold, pattern; there are {len(given)}")
        if self.pattern is not None:
            kept, group = self.kept_and_group()
            if not 0 < kept < group:
                raise ValueError(f"pattern {self.pattern!r} keeps {kept} of {group}; write such as 2:4")
        return self

    def kept_and_group(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, group = (self.pattern or "").partition(":")
        return int(kept), int(group)


class GradualConfig(Training):
    """Pruning while training; the learning rate's schedule spans all of it."""

    begin: float = Field(0.0, ge=0.0, lt=1.0, description="Share of all steps at which pruning begins.")
    end: float = Field(
        0.75, gt=0.0, lt=1.0, description="Share of all steps at which it ends; the rest recovers."
    )
    updates: int = Field(20, ge=1, le=10_000, description="Instants at which weights go, in between.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> GradualConfig:
        if self.end <= self.begin:
            raise ValueError(f"end ({self.end}) is not after begin ({self.begin}); raise end")
        return self


class PruneConfig(StageConfig):
    """`kind = "prune"`: set weights to zero, and keep them there."""

    kind: Literal["prune"]
    method: Literal["magnitude", "movement"] = Field(
        "magnitude",
        description="What ranks weights: their magnitude, or (while training) whether it moves them away "
        "from zero.",
    )
    target: PruneTarget
    scope: Literal["global", "layer"] = Field(
        "global", description="Whether weights of all layers are ranked together, or each layer's alone."
    )
    exclude: tuple[str, ...] = Field((), description="Modules that stay dense, by name or dotted prefix.")
    gradual: GradualConfig | None = Field(
        None, description="Prune step by step while training, along a cubic schedule; else at once."
    )

    @model_validator(mode="after")
    def _methods_fit_targets(self) -> PruneConfig:
        if self.method == "movement" and self.gradual is None:
            raise ValueError("movement is seen while training alone; add gradual = { epochs = 3 }")
        if self.gradual is not None and self.target.sparsity is None:
            raise ValueError("gradual pruning runs up to a sparsity; set target.sparsity")
        if self.target.pattern is not None:
            refuse_without_effect(self, ("scope",), "with a pattern, which ranks within groups")
        return self
