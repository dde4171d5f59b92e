"""Choosing which groups lose how many channels, and which blocks go, so that a budget is met.

Three ways, so that they can be compared:

`uniform`  every group keeps the same share.
`macs`     the greedy walk below, paying in multiply-adds.
`latency`  the same walk, paying in predicted time.

The walk solves a multiple-choice knapsack approximately: from the full network, take again and again the
step that costs the least damage per unit of cost saved, over all groups, all smaller widths of each and
all blocks, until the budget is met (the greedy of the linear relaxation: Sinha & Zoltners, "The
multiple-choice knapsack problem", Operations Research 27, 1979; costs are looked up again after each step,
because the cost of a layer is a product of two widths). A last step that drops a whole block may save far
more than is asked: the walk is also ended without it, and the end that does the least damage is taken. What
the budget still allows is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from exporter.training.shrinking.layer_costs import State

Cost = Callable[[State], float]
# Of a step that saves something and damages nothing: it comes first, the larger saving before others.
_NO_DAMAGE = 1e-9


@dataclass(frozen=True)
class Lever:
    """A group's possible widths.

    Attributes:
        name: of the group.
        widths: units kept, descending; the first is what there is.
        damage: what each width is expected to cost in quality, ascending from 0.
    """

    name: str
    widths: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """A block that may go.

    Attributes:
        name: of its module.
        damage: what that is expected to cost in quality.
        levers: names of the groups that lie wholly inside; once it is gone, their widths do not count.
    """

    name: str
    damage: float
    levers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Allocation:
    """What was chosen; `met` is False where even the least of everything is over budget."""

    state: State
    met: bool
    damage: float


def widths_of(units: int, multiple: int, min_kept: float) -> tuple[int, ...]:
    """The widths that a group may take: itself, then whole multiples down to the share `min_kept`."""
    least = max(1, min(units, -(-int(units * min_kept) // multiple) * multiple or multiple))
    return (units, *(w for w in range((units - 1) // multiple * multiple, 0, -multiple) if w >= least))


def thin_out(widths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """At most so many of them, evenly, with both ends."""
    if len(widths) <= most:
        return widths
    picked = {round(index * (len(widths) - 1) / (most - 1)) for index in range(most)}
    return tuple(width for index, width in enumerate(widths) if index in picked)


def greedy(
    levers: Sequence[Lever], blocks: Sequence[Block], *, depth: int, budget: float, cost: Cost, pay: Cost
) -> Allocation:
    """Walk from the full network until `cost` is at most `budget`.

    Args:
        levers: groups.
        blocks: candidates to drop.
        depth: how many blocks may go at most.
        budget: in units of `cost`.
        cost: what the budget limits.
        pay: what steps are compared by.
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
    """The largest share for which all groups together meet the budget."""

    def at(share: float) -> State:
        return State({lever.name: _nearest(lever.widths, share * lever.widths[0]) for lever in levers})

    shares = sorted({width / lever.widths[0] for lever in levers for width in lever.widths})
    # Costs rise with the share: the last share within budget is found by halving.
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
                # What narrowing inside it has cost is not paid twice: a block that is worth little is
                # narrowed first, and then what is left of it goes.
                whole = {lever.name: lever.widths[0] for lever in levers if lever.name in block.levers}
                trial = State({**state.kept, **whole}, state.dropped | {block.name})
                more = _damage(levers, blocks, trial) - hurt
                rate = (now - pay(trial)) / max(more, _NO_DAMAGE)
                if rate > best_rate:
                    best, best_rate = trial, rate
    return best


def _give_back(levers: Sequence[Lever], state: State, budget: float, cost: Cost) -> State:
    """Widen what helps most while the budget allows it: the last step may have been a large one."""
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
