"""A running average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a network's state (Polyak & Juditsky, 1992).

        average <- decay_t * average + (1 - decay_t) * state,  decay_t = min(decay, (1 + t) / (10 + t))

    The decay rises over time, so the start has little weight even in short trainings (like TensorFlow's
    `ExponentialMovingAverage` with `num_updates`). Integer tensors, for example counters, are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, step: int) -> None:
        """Add the network's state after step `step`, counted from 0, to the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                if value.is_floating_point():
                    self.tensors[name].lerp_(value, 1 - decay)
                else:
                    self.tensors[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averaged weights while the context is open, then restore its weights."""
        own: dict[str, Tensor] = {n: v.detach().clone() for n, v in self._module.state_dict().items()}
        self._module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._module.load_state_dict(own)
