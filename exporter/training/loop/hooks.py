"""Hooks: code that a stage runs between the steps of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exporter.networks.network import Network


class Hook:
    """Base class of hooks; its methods do nothing, and a stage overrides those that it needs.

    A hook with state returns the state from `tensors` for checkpoints, and `restore` sets it again. A
    killed stage that continues then ends with exactly the same weights as a stage without interruption.
    """

    def begin(self, network: Network, steps: int, steps_per_epoch: int) -> None:
        """Called before the first step, with the network on its device."""

    def after_backward(self, step: int) -> None:
        """Called when step `step`, counted from 0, has its gradients, before the weights change."""

    def after_step(self, step: int) -> None:
        """Called after the weights changed and the network's masks were applied."""

    def settled(self, step: int) -> bool:  # noqa: ARG002
        """Whether the network is final after `step`; only an epoch that ends with True can be the best."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The state of the hook, for a checkpoint."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state that `tensors` returned. Called after `begin`."""
