"""Chosen widths: the budget is met, and parts with little damage and a high cost are removed first."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.training.shrinking.allocation import Block, Lever, greedy, thin_out, uniform, widths_of
from exporter.training.shrinking.layer_costs import State


def lever(name, *damage):
    """Widths 4, 3, 2 ... units, with the damage of each."""
    return Lever(name, tuple(range(4, 4 - len(damage), -1)), damage)


def linear(**prices):
    """A cost function: a price for each unit of a group, and 10 for each remaining block of two."""

    def cost(state):
        return sum(prices[name] * kept for name, kept in state.kept.items()) + 10 * (2 - len(state.dropped))

    return cost


@pytest.mark.parametrize(
    ("units", "multiple", "min_kept", "widths"),
    [
        (64, 16, 0.1, (64, 48, 32, 16)),
        (64, 16, 0.5, (64, 48, 32)),
        (72, 16, 0.3, (72, 64, 48, 32)),
        (12, 16, 0.1, (12,)),
        (6, 1, 0.1, (6, 5, 4, 3, 2, 1)),
        (1, 1, 0.5, (1,)),
    ],
)
def test_widths_are_whole_multiples(units, multiple, min_kept, widths):
    assert widths_of(units, multiple, min_kept) == widths


def test_many_widths_are_thinned_out_evenly():
    assert thin_out(tuple(range(100, 0, -1)), 4) == (100, 67, 34, 1)
    assert thin_out((3, 2, 1), 4) == (3, 2, 1)


def test_the_largest_saving_per_damage_comes_first():
    levers = [lever("dear", 0.0, 1.0, 2.0, 3.0), lever("cheap", 0.0, 1.0, 2.0, 3.0)]
    cost = linear(dear=5, cheap=1)
    found = greedy(levers, (), depth=0, budget=30, cost=cost, pay=cost)
    assert found.state.kept == {"dear": 1, "cheap": 4}
    assert found.met
    assert found.damage == 3.0


def test_blocks_are_dropped_up_to_the_depth():
    levers, blocks = [lever("a", 0.0, 1.0, 9.0)], [Block("one", 2.0), Block("two", 3.0)]
    cost = linear(a=1)
    pick = {depth: greedy(levers, blocks, depth=depth, budget=5, cost=cost, pay=cost) for depth in range(3)}
    assert [pick[depth].state.dropped for depth in range(3)] == [set(), {"one"}, {"one", "two"}]
    assert [pick[depth].met for depth in range(3)] == [False, False, True]
    assert pick[2].state.kept == {"a": 4}


def test_dropping_a_narrowed_block_counts_only_the_additional_damage():
    """After narrowing (0.75), dropping saves 12 for 2.35 more damage; `outside` saves 4 for each 0.9."""
    levers = [lever("inside", 0.0, 0.75), lever("outside", 0.0, 0.9, 1.8, 2.7)]
    block = Block("one", 3.1, frozenset({"inside"}))

    def cost(state):
        inside = 0 if "one" in state.dropped else 4 * state.kept["inside"]
        return inside + 4 * state.kept["outside"]

    found = greedy(levers, [block], depth=1, budget=16, cost=cost, pay=cost)
    assert found.state == State({"inside": 4, "outside": 4}, frozenset({"one"}))
    assert found.damage == 3.1


@pytest.mark.parametrize(("budget", "dropped", "damage"), [(36, set(), 1.0), (30, {"one"}, 1.5)])
def test_no_block_is_dropped_if_a_little_narrowing_is_enough(budget, dropped, damage):
    """The block saves 10 for a damage of 1.5, the best rate; narrowing saves 5 for each 1.0."""
    cost = linear(a=5)
    levers, blocks = [lever("a", 0.0, 1.0, 2.0)], [Block("one", 1.5)]
    found = greedy(levers, blocks, depth=1, budget=budget, cost=cost, pay=cost)
    assert (found.met, found.state.dropped, found.damage) == (True, dropped, damage)


def test_groups_are_widened_again_within_the_budget():
    """The step that meets the budget is large, so the first lever can be widened again."""
    levers = [lever("small", 0.0, 0.1), lever("large", 0.0, 50.0, 50.5)]
    cost = linear(small=1, large=10)
    found = greedy(levers, (), depth=0, budget=54, cost=cost, pay=cost)
    assert found.state.kept == {"small": 4, "large": 3}


def test_the_choice_depends_on_the_cost_that_steps_are_compared_by():
    levers = [lever("a", 0.0, 1.0, 2.0, 3.0), lever("b", 0.0, 1.0, 2.0, 3.0)]
    limit, wanted = linear(a=1, b=1), {}
    for name, pay in (("a", linear(a=9, b=1)), ("b", linear(a=1, b=9))):
        wanted[name] = greedy(levers, (), depth=0, budget=26, cost=limit, pay=pay).state.kept
    assert wanted == {"a": {"a": 2, "b": 4}, "b": {"a": 4, "b": 2}}


def test_steps_that_save_nothing_are_not_taken():
    found = greedy([lever("a", 0.0, 1.0)], (), depth=0, budget=0, cost=lambda _: 1.0, pay=lambda _: 1.0)
    assert (found.met, found.state) == (False, State({"a": 4}))


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.floats(0, 1.2),
)
def test_the_budget_is_met_whenever_possible(steps, prices, share):
    levers = [
        Lever(
            str(index),
            tuple(range(4, 3 - len(rise), -1)),
            (0.0, *(sum(rise[: i + 1]) for i in range(len(rise)))),
        )
        for index, rise in enumerate(steps)
    ]

    def cost(state):
        return float(sum(price * kept for price, kept in zip(prices, state.kept.values(), strict=False)))

    budget = share * cost(State({lever.name: 4 for lever in levers}))
    least = cost(State({lever.name: lever.widths[-1] for lever in levers}))
    for found in (
        greedy(levers, (), depth=0, budget=budget, cost=cost, pay=cost),
        uniform(levers, budget, cost),
    ):
        assert found.met == (least <= budget)
        assert cost(found.state) <= budget or not found.met
    best = min(
        (
            sum(lever.damage[lever.widths.index(w)] for lever, w in zip(levers, widths, strict=True))
            for widths in product(*(lever.widths for lever in levers))
            if cost(State(dict(zip((lever.name for lever in levers), widths, strict=True)))) <= budget
        ),
        default=None,
    )
    found = greedy(levers, (), depth=0, budget=budget, cost=cost, pay=cost)
    assert best is None or found.damage >= best - 1e-9


def test_uniform_keeps_the_largest_share_that_fits():
    levers = [lever("a", 0.0, 1.0, 2.0, 3.0), Lever("b", (8, 6, 4, 2), (0.0, 1.0, 2.0, 3.0))]
    cost = linear(a=1, b=1)
    assert uniform(levers, 100, cost).state.kept == {"a": 4, "b": 8}
    assert uniform(levers, 30, cost).state.kept == {"a": 3, "b": 6}
    assert uniform(levers, 26, cost).state.kept == {"a": 2, "b": 4}
    least = uniform(levers, 1, cost)
    assert (least.met, least.state.kept) == (False, {"a": 1, "b": 2})
