"""Figures of a training: its curves, and the number of parameters that are zero after it."""

from __future__ import annotations

from exporter.results.base import Figures


class Epoch(Figures):
    """One point of the training curves; epochs are numbered from 0."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_accuracy: float


class Trained(Figures):
    """Figures of a training; the fields are None or empty if nothing was trained.

    Attributes:
        curves: one point per epoch.
        best_epoch: the epoch whose weights were kept.
        validation_accuracy: validation accuracy of the best epoch.
    """

    curves: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    validation_accuracy: float | None = None


class Zeros(Figures):
    """Pruned parameters of a network.

    Attributes:
        zero_share: fraction of zeros among all parameters.
        sparsity: fraction of zeros among the eligible parameters; the target of `prune` refers to this
            fraction.
        zeros: number of parameters that pruning keeps at zero.
        eligible_parameters: number of parameters in the tensors that were pruned, zero or not.
        parameters: number of all parameters of the network; shared parameters count once.
    """

    zero_share: float
    sparsity: float
    zeros: int
    eligible_parameters: int
    parameters: int

    def zeros_text(self) -> tuple[str, ...]:
        """The fraction of zeros as a text for a headline; empty if no parameter is zero."""
        if self.zero_share:
            return (f"{self.zero_share:.2%} of parameters zero",)
        return (f"sparsity {self.sparsity:.0%}",) if self.sparsity else ()
