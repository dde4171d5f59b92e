"""What a stage may do between the steps of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exporter.networks.network import Network


class Hook:
    """Does nothing; a stage overrides what it needs.

    A hook that keeps something from step to step gives it to checkpoints by `tensors` and takes it back by
    `restore`: a stage that was killed then ends with the very weights of one that was not.
    """

    def begin(self, network: Network, steps: int, steps_per_epoch: int) -> None:
        """Before the first step, with the network on its device."""

    def after_backward(self, step: int) -> None:
        """The gradients of step `step`, counted from 0, are there; the weights have not moved yet."""

    def after_step(self, step: int) -> None:
        """The weights have moved, and the network's masks have been applied."""

    def settled(self, step: int) -> bool:  # noqa: ARG002
        """Whether the network after `step` is of the kind wanted in the end; only such epochs are kept."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave. Called after `begin`."""
