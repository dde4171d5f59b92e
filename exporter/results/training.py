"""What a training leaves: its curves, and how many parameters are zero after it."""

from __future__ import annotations

from exporter.results.base import Figures


class Epoch(Figures):
    """One line of the training curves."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_accuracy: float


class Trained(Figures):
    """Fields of everything that was trained; None and empty where nothing was.

    Attributes:
        curves: one line per epoch.
        best_epoch: the epoch whose weights were kept.
        validation_accuracy: of that epoch.
    """

    curves: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    validation_accuracy: float | None = None


class Zeros(Figures):
    """Pruned parameters of a network.

    Attributes:
        zero_share: zeros among all parameters: what a person means by a sparse network.
        sparsity: zeros among the eligible parameters: what the target of `prune` counts.
        zeros: parameters that pruning holds at zero.
        eligible_parameters: parameters of the tensors that were pruned, zero or not.
        parameters: all parameters of the network; shared ones count once.
    """

    zero_share: float
    sparsity: float
    zeros: int
    eligible_parameters: int
    parameters: int

    def zeros_text(self) -> tuple[str, ...]:
        """The share of zeros in words, if there are any."""
        if self.zero_share:
            return (f"{self.zero_share:.2%} of parameters zero",)
        return (f"sparsity {self.sparsity:.0%}",) if self.sparsity else ()
