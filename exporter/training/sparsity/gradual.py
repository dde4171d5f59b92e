"""Gradual pruning during training, so the network can adapt to the pruned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.networks.network import Network
from exporter.recipes import GradualConfig
from exporter.training.loop import Hook
from exporter.training.sparsity.masks import Scope, joined, lowest_masks

# Lower than every score of a weight: weights that an earlier stage pruned are pruned first.
GONE = -float("inf")


def cubic(done: float, start: float, end: float) -> float:
    """Sparsity after the fraction `done` of the pruning updates; it rises fastest at the beginning.

    end + (start - end) (1 - done)^3 (Zhu & Gupta, "To prune, or not to prune", 2017, equation 1).
    """
    return end + (start - end) * (1 - done) ** 3


class Gradual(Hook):
    """Prunes in `updates` updates between the fractions `begin` and `end` of all training steps.

    After the last update the masks are final. With method "magnitude", a pruned weight stays pruned. With
    method "movement" (Sanh, Wolf & Rush, "Movement Pruning", 2020), the score of a weight is the sum of
    -gradient * weight over all training steps so far, so weights that training moves towards zero are
    pruned even if they are large. The values of pruned weights are stored, and these weights may return
    until the last update. (These are the paper's straight-through scores with top-v masks. Only the order
    of the scores matters here, so they need no learning rate.)

    The masks of the network that `begin` receives must be a dict; the hook changes it in place.
    """

    def __init__(
        self,
        names: list[str],
        sparsity: float,
        *,
        scope: Scope,
        method: Literal["magnitude", "movement"],
        config: GradualConfig,
    ) -> None:
        self._names, self._sparsity, self._scope, self._method = names, sparsity, scope, method
        self._config = config

    def begin(self, network: Network, steps: int, steps_per_epoch: int) -> None:
        """Find the weights, and compute the training steps after which to prune."""
        del steps_per_epoch
        assert isinstance(network.masks, dict)
        self._masks: dict[str, Tensor] = network.masks
        self._network = network
        self._weights: dict[str, nn.Parameter] = {
            name: network.module.get_parameter(name) for name in self._names
        }
        first, last = round(self._config.begin * (steps - 1)), round(self._config.end * (steps - 1))
        count = self._config.updates
        # training step -> fraction of the updates done after it; 1 at the last update.
        self._instants = {
            first + round((last - first) * index / max(1, count - 1)): (index + 1) / count
            for index in range(count)
        }
        self._last = last
        self._earlier = {
            name: self._masks[name].to(weight.device, copy=True)
            for name, weight in self._weights.items()
            if name in self._masks
        }
        self._masks.update(self._earlier)
        total = sum(weight.numel() for weight in self._weights.values())
        self._start = sum(int((~mask).sum()) for mask in self._earlier.values()) / total
        moving = self._weights if self._method == "movement" else {}
        self._scores = {name: torch.zeros_like(weight) for name, weight in moving.items()}
        self._dense = {name: weight.detach().clone() for name, weight in moving.items()}

    def after_backward(self, step: int) -> None:
        """Update the movement scores."""
        if self._method == "magnitude" or step > self._last:
            return
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self._scores[name] -= weight.grad * self._dense[name]

    def after_step(self, step: int) -> None:
        """Store the new values of unpruned weights, and prune if an update is due."""
        if step > self._last:
            return
        with torch.no_grad():
            if self._method == "movement":
                for name, weight in self._weights.items():
                    mask = self._masks.get(name)
                    moved = weight if mask is None else torch.where(mask, weight, self._dense[name])
                    self._dense[name].copy_(moved)
            if step in self._instants:
                self._prune(cubic(self._instants[step], self._start, self._sparsity))

    def settled(self, step: int) -> bool:
        """Whether the masks stay the same in all steps after `step`."""
        return step >= self._last

    def tensors(self) -> dict[str, Tensor]:
        """Masks, scores and the stored dense weights, by name."""
        masks = {f"mask.{name}": self._masks[name] for name in self._names if name in self._masks}
        if self._method == "magnitude":
            return masks
        scores = {f"score.{name}": score for name, score in self._scores.items()}
        return {**masks, **scores, **{f"dense.{name}": dense for name, dense in self._dense.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore masks, scores and dense weights from a checkpoint."""
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            placed = tensor.to(self._weights[name].device)
            {"mask": self._masks, "score": self._scores, "dense": self._dense}[kind][name] = placed

    def _prune(self, sparsity: float) -> None:
        final = self._masks if self._method == "magnitude" else self._earlier
        scores = {}
        for name, weight in self._weights.items():
            score = weight.detach().abs() if self._method == "magnitude" else self._scores[name]
            scores[name] = score.masked_fill(~final[name], GONE) if name in final else score
        masks = joined(lowest_masks(scores, sparsity, self._scope), final)
        self._masks.update({name: masks[name] for name in self._names})
        if self._method == "movement":
            for name, weight in self._weights.items():
                weight.copy_(self._dense[name])  # returning weights get the value that they had before
        self._network.apply_masks()
