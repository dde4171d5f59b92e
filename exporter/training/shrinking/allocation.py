"""Choose how many channels each group loses, and which blocks are dropped, to meet a budget.

There are three methods, which can be compared:

`uniform`  every group keeps the same fraction of its units.
`macs`     the greedy search below, which rates steps by multiply-adds saved.
`latency`  the same search, which rates steps by predicted time saved.

The search solves a multiple-choice knapsack problem approximately. It starts at the full network and
repeats the step with the least damage per unit of cost saved, over all groups, all smaller widths of each
group and all blocks, until the budget is met (the greedy algorithm of the linear relaxation: Sinha &
Zoltners, "The multiple-choice knapsack problem", Operations Research 27, 1979). Costs are computed again
after each step, because the cost of a layer is a product of two widths. A last step that drops a whole
block may save far more than necessary: the search then also continues without this block, and the result
with the least damage is chosen. At the end, groups are widened again as far as the budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from exporter.training.shrinking.layer_costs import State

Cost = Callable[[State], float]
# The damage of a step counts as at least this value. Steps without damage come first, ordered by what they
# save.
_NO_DAMAGE = 1e-9


@dataclass(frozen=True)
class Lever:
    """The possible widths of a group.

    Attributes:
        name: name of the group.
        widths: numbers of units kept, descending from all units.
        damage: expected loss of quality at each width, ascending from 0.
    """

    name: str
    widths: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """A block that may be dropped.

    Attributes:
        name: name of the module that is the block.
        damage: expected loss of quality if the block is dropped.
        levers: names of the groups whose layers are all inside; their widths no longer matter once the
            block is dropped.
    """

    name: str
    damage: float
    levers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Allocation:
    """The chosen widths and blocks.

    Attributes:
        state: widths kept and blocks dropped.
        met: whether the budget is met; False if even the smallest network exceeds it.
        damage: expected loss of quality.
    """

    state: State
    met: bool
    damage: float


def widths_of(units: int, multiple: int, min_kept: float) -> tuple[int, ...]:
    """The possible widths of a group: all units, then multiples of `multiple` down to their `min_kept`."""
    least = max(1, min(units, -(-int(units * min_kept) // multiple) * multiple or multiple))
    return (units, *(w for w in range((units - 1) // multiple * multiple, 0, -multiple) if w >= least))


def thin_out(widths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """At most `most` of the widths, evenly spaced, including the first and the last."""
    if len(widths) <= most:
        return widths
    picked = {round(index * (len(widths) - 1) / (most - 1)) for index in range(most)}
    return tuple(width for index, width in enumerate(widths) if index in picked)


def greedy(
    levers: Sequence[Lever], blocks: Sequence[Block], *, depth: int, budget: float, cost: Cost, pay: Cost
) -> Allocation:
    """Reduce the full network step by step until `cost` is at most `budget`.

    Args:
        levers: groups that may be narrowed.
        blocks: blocks that may be dropped.
        depth: largest number of blocks to drop.
        budget: largest allowed cost, in units of `cost`.
        cost: the cost that the budget limits.
        pay: the cost by which steps are compared.
    """
    ends: list[Allocation] = []
    state, left = State({lever.name: lever.widths[0] for lever in levers}), tuple(blocks)
    while True:
        step = _best_step(levers, left, depth, state, pay) if cost(state) > budget else state
        if step is None:
            break
        if cost(step) > budget:
            state = step
            continue
        end = _give_back(levers, step, budget, cost)
        ends.append(Allocation(end, True, _damage(levers, blocks, end)))
        last = step.dropped - state.dropped
        if not last:
            break
        left = tuple(block for block in left if block.name not in last)
    if not ends:
        return Allocation(state, False, _damage(levers, blocks, state))
    return min(ends, key=lambda end: end.damage)


def uniform(levers: Sequence[Lever], budget: float, cost: Cost) -> Allocation:
    """Give all groups the same fraction of their units, the largest one that meets the budget."""

    def at(share: float) -> State:
        return State({lever.name: _nearest(lever.widths, share * lever.widths[0]) for lever in levers})

    shares = sorted({width / lever.widths[0] for lever in levers for width in lever.widths})
    # The cost rises with the fraction, so a binary search finds the largest fraction within the budget.
    low, high = -1, len(shares) - 1
    while low < high:
        middle = -(-(low + high) // 2)
        if cost(at(shares[middle])) <= budget:
            low = middle
        else:
            high = middle - 1
    state = at(shares[max(low, 0)])
    return Allocation(state, low >= 0, _damage(levers, (), state))


def _best_step(
    levers: Sequence[Lever], blocks: Sequence[Block], depth: int, state: State, pay: Cost
) -> State | None:
    now, hurt = pay(state), _damage(levers, blocks, state)
    best, best_rate = None, 0.0
    for lever in levers:
        at = lever.widths.index(state.kept[lever.name])
        for index in range(at + 1, len(lever.widths)):
            trial = replace(state, kept={**state.kept, lever.name: lever.widths[index]})
            rate = (now - pay(trial)) / max(lever.damage[index] - lever.damage[at], _NO_DAMAGE)
            if rate > best_rate:
                best, best_rate = trial, rate
    if len(state.dropped) < depth:
        for block in blocks:
            if block.name not in state.dropped:
                # Dropping a block resets the groups inside it to full width, so damage from narrowing them
                # is not counted twice: an unimportant block is often narrowed first and then dropped.
                whole = {lever.name: lever.widths[0] for lever in levers if lever.name in block.levers}
                trial = State({**state.kept, **whole}, state.dropped | {block.name})
                more = _damage(levers, blocks, trial) - hurt
                rate = (now - pay(trial)) / max(more, _NO_DAMAGE)
                if rate > best_rate:
                    best, best_rate = trial, rate
    return best


def _give_back(levers: Sequence[Lever], state: State, budget: float, cost: Cost) -> State:
    """Widen the most damaged groups while the budget allows it: the last step may have saved too much."""
    while True:
        best, best_gain = None, 0.0
        for lever in levers:
            at = lever.widths.index(state.kept[lever.name])
            if at == 0:
                continue
            trial = replace(state, kept={**state.kept, lever.name: lever.widths[at - 1]})
            gain = lever.damage[at] - lever.damage[at - 1]
            if gain > best_gain and cost(trial) <= budget:
                best, best_gain = trial, gain
        if best is None:
            return state
        state = best


def _damage(levers: Sequence[Lever], blocks: Sequence[Block], state: State) -> float:
    lost = sum(lever.damage[lever.widths.index(state.kept[lever.name])] for lever in levers)
    return lost + sum(block.damage for block in blocks if block.name in state.dropped)


def _nearest(widths: Sequence[int], wanted: float) -> int:
    return min(widths, key=lambda width: (abs(width - wanted), width))
