"""The hardware of the training loop: this CPU, or, through Lightning Fabric, the hardware in the recipe.

Fabric is used instead of Accelerate for two reasons. Its devices, machines and precision are arguments of
an object, so two builds in one process can use different values; Accelerate keeps one state for the whole
process. Fabric also installs no client of a model hub. Fabric is an extra, and is imported only if it is
needed: plain PyTorch is enough for one process on one CPU at 32 bit, and Fabric would add one second to
every such build.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Engine(Protocol):
    """Interface between the loop and the hardware.

    All processes of a training call the same methods in the same order.
    """

    @property
    def device(self) -> torch.device:
        """The device on which this process runs the network."""

    @property
    def world(self) -> int:
        """The number of processes."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    def autocast(self) -> AbstractContextManager[object]:
        """A context that sets the precision of the forward pass and the loss."""

    def backward(self, value: Tensor) -> None:
        """Compute the gradients of a loss."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the tensors of process 0."""


class OneCpu:
    """One process on the CPU at 32 bit."""

    device = torch.device("cpu")
    world = 1
    rank = 0

    def autocast(self) -> AbstractContextManager[object]:
        """A context that changes nothing."""
        return nullcontext()

    def backward(self, value: Tensor) -> None:
        """Compute gradients with PyTorch."""
        value.backward()  # type: ignore[no-untyped-call]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Do nothing: the mean over one process is the tensor itself."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Do nothing: process 0 is the only process."""


class FabricEngine:
    """Any hardware that Lightning Fabric supports.

    Gradients are averaged as one flat tensor after the backward pass, not by DDP during it. DDP does not
    support a set of trained parameters that changes between epochs. The networks of this tool have a few
    megabytes, and a link between GPUs transfers them in about a millisecond.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.device = fabric.device
        self.world = fabric.world_size
        self.rank = fabric.global_rank

    def autocast(self) -> AbstractContextManager[object]:
        """A context with bf16 precision if the recipe sets it."""
        context: AbstractContextManager[object] = self._fabric.autocast()
        return context

    def backward(self, value: Tensor) -> None:
        """Compute gradients with the precision that `autocast` set."""
        self._fabric.backward(value)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, with one exchange for all tensors."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _put(self._fabric.all_reduce(flat, reduce_op="mean"), tensors)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the tensor of process 0. Calls are rare; each tensor is one exchange."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), src=0)


ONE_CPU = OneCpu()


def _put(flat: Tensor, tensors: list[Tensor]) -> None:
    for piece, tensor in zip(torch.split(flat, [t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(piece.view_as(tensor))
