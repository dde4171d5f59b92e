"""Find the plan that brings a network to its target with the least damage.

1. Find the groups and blocks that can be removed (`exporter.training.shrinking.structure`).
2. Measure the damage of narrowing each group alone at some widths, and of dropping each block alone
   (`shrinking.damage`).
3. Predict the savings as a sum over layers, from measured times or by formula (`shrinking.layer_costs`).
4. Choose the width of each group and the blocks to drop (`exporter.training.shrinking.allocation`).
5. Build and measure this network. Correct the prediction by the result and repeat step 4, until the
   measurement is close to the target or the largest number of corrections is reached.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from bench.core.arrays import Array
from bench.core.progress import Progress
from exporter.errors import StageError
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import Plan
from exporter.recipes import ShrinkConfig
from exporter.results import Costs, Cut
from exporter.sources.splits import Split
from exporter.training.shrinking.allocation import (
    Allocation,
    Block,
    Lever,
    greedy,
    thin_out,
    uniform,
    widths_of,
)
from exporter.training.shrinking.costs import CostComparison, Goal
from exporter.training.shrinking.damage import Damage, interpolate
from exporter.training.shrinking.importance import unit_scores, weakest
from exporter.training.shrinking.kernel_table import KernelTable
from exporter.training.shrinking.layer_costs import CostModel, Kernel, Layer, State, each_once, find_layers
from exporter.training.shrinking.structure import Structure, find_structure, removal

# Fractions of its units at which the damage of narrowing a group alone is measured.
LEVELS = (0.75, 0.5, 0.25)
MOST_WIDTHS = 16
# A prediction is corrected at most CORRECTIONS times, or until the measurement is within CLOSE of the
# target. The final network may exceed the target by TOLERANCE. On a busy machine, repeated measurements
# of a ratio differ by 3 % (0.459, then 0.472 and 0.474); most of the tolerance must be left for this.
CORRECTIONS = 4
CLOSE = 0.015
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Narrower:
    """Finds the plans of a stage; all its rounds use the same instance.

    Attributes:
        config: configuration of the stage.
        comparison: compares networks with the network that the stage received.
        table: times of kernels on this CPU.
        inputs: two samples.
        judges: labelled samples on which damage is measured.
        place: the stage or key that error messages name.
        progress: receives an update for every group and block.
    """

    config: ShrinkConfig
    comparison: CostComparison
    table: KernelTable
    inputs: Mapping[str, Tensor]
    judges: Split
    place: str
    progress: Progress

    def plan(self, module: nn.Module, goal: Goal, rounds_left: int) -> tuple[Plan, Cut]:
        """The plan for this round's part of the way to a goal, and the record of how it was chosen.

        Raises:
            StageError: nothing can be removed, or the goal cannot be met; the message states the best value
                reached.
        """
        structure = find_structure(module, self.inputs, self.config.exclude, self.place)
        if not structure.groups and not self._candidates(structure):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in structure.fixed.items())
            raise StageError(
                self.place,
                f"no channels of the network can be removed ({reasons or 'it has none'})",
                f"{'shorten exclude, ' if self.config.exclude else ''}set depth, "
                "or set resolution without a target",
            )
        before, now = self.comparison.compare(module)
        here = goal.reached(before, now)
        limit = here * (goal.limit / here) ** (1 / rounds_left)
        scores = unit_scores(module, structure.groups, self.config.importance, self.judges)
        levers, blocks, curves = self._levers(module, structure, scores)
        layers = find_layers(module, self.inputs, structure.groups)
        cost = self._cost_model(goal.quantity, layers, structure, levers, now)
        scale = here / cost(State({}))

        def predict(state: State) -> float:
            return scale * cost(state)

        if self.config.allocation == "uniform":

            def choose(budget: float) -> Allocation:
                return uniform(levers, budget, predict)
        else:
            pay = self._cost_model(self.config.allocation, layers, structure, levers, now)

            def choose(budget: float) -> Allocation:
                depth = self.config.depth
                return greedy(levers, blocks, depth=depth, budget=budget, cost=predict, pay=pay)

        def measure(state: State) -> float:
            trial = rebuild(copy.deepcopy(module), _plan(structure, scores, state))
            return self.comparison.reached(goal, trial)

        tries = search(choose, predict, measure, limit)
        best = min(tries, key=lambda found: (found.measured > limit * (1 + TOLERANCE), found.miss(limit)))
        if best.measured > limit * (1 + TOLERANCE):
            raise StageError(
                f"{self.place}.target",
                f"{goal.name} {goal.limit:g} cannot be met; the best reached is {best.measured:.3g}",
                "lower resolution, min_kept or multiple, raise depth, or shorten exclude",
            )
        state = best.allocation.state
        return _plan(structure, scores, state), Cut(
            limit=limit,
            predicted=best.predicted,
            measured=best.measured,
            tries=tuple((found.predicted, found.measured) for found in tries),
            damage=best.allocation.damage,
            units={group.name: len(group.units) for group in structure.groups},
            kept=dict(state.kept),
            dropped=tuple(sorted(state.dropped)),
            sensitivity=curves,
            fixed=dict(structure.fixed),
        )

    def _candidates(self, structure: Structure) -> tuple[str, ...]:
        """The blocks that may be dropped."""
        return structure.blocks if self.config.depth and self.config.allocation != "uniform" else ()

    def _levers(
        self, module: nn.Module, structure: Structure, scores: Mapping[str, Array]
    ) -> tuple[list[Lever], list[Block], dict[str, dict[int, tuple[float, float]]]]:
        """The groups and blocks that can be changed, with the damage of each change alone.

        The third value holds the measured points: group or block -> units kept -> (nats, accuracy).
        """
        config, candidates = self.config, self._candidates(structure)
        damage = Damage(module, self.judges)
        levers, blocks, curves = [], [], {}
        steps = len(structure.groups) + len(candidates)
        with self.progress.task(f"{self.place}: measuring damage", steps) as task:
            for group in structure.groups:
                curves[group.name] = damage.curve(group, scores[group.name], LEVELS)
                units, each = len(group.units), len(group.units[0])
                multiple = config.multiple // math.gcd(config.multiple, each)
                widths = thin_out(widths_of(units, multiple, config.min_kept), MOST_WIDTHS)
                points = {units: 0.0} | {kept: nats for kept, (nats, _) in curves[group.name].items()}
                hurt = interpolate(widths, points, _mass(scores[group.name]))
                levers.append(Lever(group.name, widths, tuple(hurt)))
                task.advance(note=group.name)
            for name in candidates:
                curves[name] = {0: damage.of(Plan(dropped=(name,)))}
                blocks.append(Block(name, curves[name][0][0], structure.inside(name)))
                task.advance(note=name)
        return levers, blocks, curves

    def _cost_model(
        self, quantity: str, layers: list[Layer], structure: Structure, levers: Sequence[Lever], now: Costs
    ) -> CostModel:
        """A sum over layers; a constant for each layer makes the total equal to the measured cost."""
        if quantity == "latency":
            self.progress.say(f"{self.place}: timing layers")
            self.table.prepare(layers, {lever.name: lever.widths for lever in levers})
        weight_bytes = 1 if self.config.precision == "int8" else 4
        prices: dict[str, Callable[[Kernel], float]] = {
            "latency": self.table,
            "macs": lambda kernel: kernel.macs,
            "params": lambda kernel: kernel.weights,
            "size": lambda kernel: weight_bytes * kernel.weights,
        }
        if quantity in {"params", "size"}:
            layers = each_once(layers)
        bare = CostModel(layers, structure.groups, prices[quantity])
        rest = max(0.0, now.of(quantity) - bare(State({})))
        return CostModel(layers, structure.groups, prices[quantity], rest / len(layers))


@dataclass(frozen=True)
class Try:
    """An allocation with its predicted and its measured cost."""

    allocation: Allocation
    predicted: float
    measured: float

    def miss(self, limit: float) -> float:
        """Relative distance of the measured cost from a limit."""
        return abs(self.measured / limit - 1)


def search(
    choose: Callable[[float], Allocation],
    predict: Callable[[State], float],
    measure: Callable[[State], float],
    limit: float,
) -> list[Try]:
    """Try allocations whose measured cost approaches a limit, and return all of them.

    Args:
        choose: (budget) -> allocation whose predicted cost is within the budget.
        predict: (state) -> predicted cost.
        measure: (state) -> measured cost.
        limit: largest allowed cost, in the unit of `predict` and `measure`.
    """
    tries: list[Try] = []
    budget = limit
    for _ in range(1 + CORRECTIONS):
        allocation = choose(budget)
        if any(allocation.state == found.allocation.state for found in tries):
            break
        tries.append(Try(allocation, predict(allocation.state), measure(allocation.state)))
        if tries[-1].miss(limit) <= CLOSE or (tries[-1].measured > limit and not allocation.met):
            break
        budget = _corrected(tries, limit)
    return tries


def _corrected(tries: Sequence[Try], limit: float) -> float:
    """The budget that should lead to the limit.

    It is interpolated between the nearest tries below and above the limit, or scaled in proportion if there
    are tries on one side only.
    """
    under = max((t for t in tries if t.measured <= limit), key=lambda t: t.measured, default=None)
    over = min((t for t in tries if t.measured > limit), key=lambda t: t.measured, default=None)
    if under is None or over is None:
        return tries[-1].predicted * limit / tries[-1].measured
    share = (limit - under.measured) / (over.measured - under.measured)
    return under.predicted + share * (over.predicted - under.predicted)


def _mass(scores: Array) -> Callable[[int], float]:
    """A function (width) -> total importance of the units that are removed at this width."""
    removed = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    return lambda width: float(removed[len(scores) - width])


def _plan(structure: Structure, scores: Mapping[str, Array], state: State) -> Plan:
    """The plan that removes the least important units of each group, and the dropped blocks."""
    removed = {
        group: weakest(scores[group.name], state.kept[group.name])
        for group in structure.groups
        if state.kept[group.name] < len(group.units)
    }
    return removal(removed, tuple(name for name in structure.blocks if name in state.dropped))
