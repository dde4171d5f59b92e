"""Results of the stage `shrink`."""

from __future__ import annotations

from typing import ClassVar

from exporter.results.base import Figures, StepResult
from exporter.results.stages import accuracy_text
from exporter.results.training import Epoch, Trained, Zeros


class Costs(Figures):
    """Latency, size, multiply-adds and parameters of a network.

    Attributes:
        latency_ms: median latency of one sample in the stage's precision.
        size_bytes: size of the exported model in the stage's precision.
        macs: multiply-adds of one sample.
        params: number of parameters.
        float_latency_ms: median latency of one sample in float; None unless the target needs it.
    """

    latency_ms: float
    size_bytes: int
    macs: int
    params: int
    float_latency_ms: float | None

    def of(self, quantity: str) -> float:
        """The value of a quantity: `latency` (ms), `size` (bytes), `macs` or `params`."""
        return {
            "latency": self.latency_ms,
            "size": self.size_bytes,
            "macs": self.macs,
            "params": self.params,
        }[quantity]


class Cut(Figures):
    """The cut of one round, and the figures that led to it.

    A unit of a layer is the smallest part that can be removed, for example a channel.

    Attributes:
        limit: value that the round had to reach, in the unit of the target.
        predicted: value that was predicted for the cut, in the same unit.
        measured: value that was measured after the cut, in the same unit.
        tries: (predicted, measured) of each allocation that was tried.
        damage: predicted divergence of the outputs, in nats.
        units: layer name -> number of units before the cut.
        kept: layer name -> number of units after the cut.
        dropped: names of the blocks that were removed.
        sensitivity: layer name -> number of units kept -> (divergence in nats, accuracy) if only this layer
            is cut.
        fixed: layer name -> why the layer cannot be narrowed.
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
        accuracy_cut: accuracy on the evaluation split after cutting and before training.
        evaluation_accuracy: accuracy on the evaluation split after training.
    """

    accuracy_cut: float
    evaluation_accuracy: float


class NarrowingRound(Round, Cut):
    """A round of a stage that has a target, with its cut."""


class ShrinkResult(StepResult, Zeros):
    """Result of a `shrink` stage.

    Attributes:
        accuracy_before: accuracy of the incoming network on the evaluation split.
        evaluation_accuracy: accuracy after the stage on the evaluation split.
        goal: key of the target -> its value; None without a target.
        before: costs of the incoming network.
        after: costs of the network after the stage.
        dropped: names of the blocks that were removed.
        widths: layer name -> number of output channels that are left.
        rounds: the rounds of cutting and training.
        curves: training curves of the last round.
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
        """The accuracy, the fraction of zeros, and the latency before and after."""
        latency = f"{self.before.latency_ms:.3g} to {self.after.latency_ms:.3g} ms"
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text(), latency)
