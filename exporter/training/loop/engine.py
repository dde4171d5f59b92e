"""Where the training loop runs: on this CPU, or through Lightning Fabric on whatever the recipe names.

Fabric and not Accelerate: devices, machines and precision are arguments of an object, so that two builds
in one process may differ, where Accelerate keeps one state for the whole process; and no client of a model
hub comes with it. It is an extra, imported only where it does something: one process on one CPU at 32 bit
is what plain PyTorch is, and Fabric would add a second to every build there.
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
    """What the loop asks of the hardware. All processes of a training call the same methods in step."""

    @property
    def device(self) -> torch.device:
        """Where this process keeps the network."""

    @property
    def world(self) -> int:
        """The number of processes."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward and loss."""

    def backward(self, value: Tensor) -> None:
        """Gradients of a loss."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of process 0."""


class OneCpu:
    """One process on the CPU at 32 bit."""

    device = torch.device("cpu")
    world = 1
    rank = 0

    def autocast(self) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext()

    def backward(self, value: Tensor) -> None:
        """PyTorch's own."""
        value.backward()  # type: ignore[no-untyped-call]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """The mean of one is itself."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """There is none but process 0."""


class FabricEngine:
    """Any hardware that Lightning Fabric knows.

    Gradients are averaged as one flat tensor after the backward pass, not by DDP during it: DDP cannot
    follow when other parameters learn from one epoch to the next, and the networks that this tool is for
    weigh some megabytes, which a link between GPUs carries in about a millisecond.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.device = fabric.device
        self.world = fabric.world_size
        self.rank = fabric.global_rank

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where the recipe says so."""
        context: AbstractContextManager[object] = self._fabric.autocast()
        return context

    def backward(self, value: Tensor) -> None:
        """By way of the precision that autocast chose."""
        self._fabric.backward(value)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """One exchange for all."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _put(self._fabric.all_reduce(flat, reduce_op="mean"), tensors)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """One exchange for each; rarely called."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), src=0)


ONE_CPU = OneCpu()


def _put(flat: Tensor, tensors: list[Tensor]) -> None:
    for piece, tensor in zip(torch.split(flat, [t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(piece.view_as(tensor))
