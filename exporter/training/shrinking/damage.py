"""Measure how much quality a network loses when it is narrowed, before it is trained again."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.networks.network import predict
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import Plan
from exporter.sources.splits import Split
from exporter.training.shrinking.groups import Group
from exporter.training.shrinking.importance import weakest
from exporter.training.shrinking.structure import removal


class Damage:
    """The loss of quality that a plan causes on some samples.

    The measure is the mean Kullback-Leibler divergence of the class probabilities from the whole network's
    class probabilities, in nats. It is never negative, it is smooth while accuracy changes in steps, and
    label noise does not affect it.
    """

    def __init__(self, module: nn.Module, split: Split) -> None:
        self._module, self._split = module, split
        self._logs = self._predict(module)

    def of(self, plan: Plan) -> tuple[float, float]:
        """Divergence in nats, and accuracy, of the network with a plan applied."""
        logs = self._predict(rebuild(copy.deepcopy(self._module), plan))
        divergence = float((self._logs.exp() * (self._logs - logs)).sum(dim=1).mean())
        hits = logs.argmax(dim=1).numpy() == self._split.labels
        return max(0.0, divergence), float(hits.mean())

    def curve(self, group: Group, scores: Array, levels: Sequence[float]) -> dict[int, tuple[float, float]]:
        """The damage of narrowing one group alone: units kept -> (divergence in nats, accuracy).

        Args:
            group: the group to narrow.
            scores: importance of the units of the group, [units].
            levels: fractions of the units to keep.
        """
        units = len(group.units)
        widths = {max(1, round(units * level)) for level in levels} - {units}
        return {kept: self.of(removal({group: weakest(scores, kept)})) for kept in sorted(widths)}

    def _predict(self, module: nn.Module) -> Tensor:
        return torch.from_numpy(predict(module, self._split)).log_softmax(dim=1)


def interpolate(
    widths: Sequence[int], points: Mapping[int, float], mass: Callable[[int], float]
) -> list[float]:
    """Interpolate the damage at each width between measured points, by the importance removed.

    Args:
        widths: widths, descending.
        points: width -> measured damage, at least for the first width. A point with less damage than a
            larger width is raised to that damage.
        mass: (width) -> importance of the units that are removed at this width.
    """
    known = sorted(points)
    rising: dict[int, float] = {}
    worst = 0.0
    for width in reversed(known):
        worst = rising[width] = max(worst, points[width])
    found = []
    for width in widths:
        index = bisect_left(known, width)
        if index < len(known) and known[index] == width:
            found.append(rising[width])
            continue
        # Below the smallest measured width, continue the line from the full width through that point.
        low, high = (known[index - 1], known[index]) if 0 < index < len(known) else (known[0], known[-1])
        span = mass(low) - mass(high)
        share = (mass(width) - mass(high)) / span if span > 0 else (high - width) / max(1, high - low)
        found.append(rising[high] + share * (rising[low] - rising[high]))
    return found
