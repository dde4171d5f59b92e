"""What the stage `shrink` finds."""

from __future__ import annotations

from typing import ClassVar

from exporter.results.base import Figures, StepResult
from exporter.results.stages import accuracy_text
from exporter.results.training import Epoch, Trained, Zeros


class Costs(Figures):
    """What a network costs.

    Attributes:
        macs: multiply-adds of one sample.
        float_latency_ms: latency in float, where that was asked for; else null.
    """

    latency_ms: float
    size_bytes: int
    macs: int
    params: int
    float_latency_ms: float | None

    def of(self, quantity: str) -> float:
        """`latency`, `size`, `macs` or `params`, in its own unit."""
        return {
            "latency": self.latency_ms,
            "size": self.size_bytes,
            "macs": self.macs,
            "params": self.params,
        }[quantity]


class Cut(Figures):
    """What one round cut, and what led to it.

    Attributes:
        limit: what the round had to reach, in the unit of the target.
        predicted: what was predicted of the cut.
        measured: what was measured of it.
        tries: (predicted, measured) of each allocation that was tried.
        damage: predicted divergence, in nats.
        units: layer -> how many units it had; a unit goes as a whole, such as a channel.
        kept: layer -> how many units stay.
        dropped: blocks that went.
        sensitivity: layer -> units kept -> (divergence in nats, accuracy) of cutting it alone.
        fixed: layer -> why it cannot be narrowed.
    """

    limit: float
    predicted: float
    measured: float
    tries: tuple[tuple[float, float], ...]
    damage: float
    units: dict[str, int]
    kept: dict[str, int]
    dropped: tuple[str, ...]
    sensitivity: dict[str, dict[int, tuple[float, float]]]
    fixed: dict[str, str]


class Round(Trained):
    """One round of cutting and training.

    Attributes:
        accuracy_cut: on the evaluation split, between cutting and training.
    """

    accuracy_cut: float
    evaluation_accuracy: float


class NarrowingRound(Round, Cut):
    """A round on the way to a target."""


class ShrinkResult(StepResult, Zeros):
    """What `shrink` found.

    Attributes:
        goal: key of the target -> its limit; None without a target.
        before: the network as it came in.
        after: the network as it goes on.
        dropped: blocks that are gone.
        widths: layer -> output channels that are left.
        curves: of the last round's training.
    """

    kind: ClassVar[str] = "shrink"

    accuracy_before: float
    evaluation_accuracy: float
    goal: dict[str, float] | None
    before: Costs
    after: Costs
    dropped: tuple[str, ...]
    widths: dict[str, int]
    rounds: tuple[NarrowingRound | Round, ...]
    curves: tuple[Epoch, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The accuracy, the share of zeros, and the latency before and after."""
        latency = f"{self.before.latency_ms:.3g} to {self.after.latency_ms:.3g} ms"
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text(), latency)
