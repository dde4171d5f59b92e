"""The fallback search: it finds the fewest and cheapest layers. No times are measured here."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.targets import TARGETS
from exporter.quantization.qdq import plan_qdq
from exporter.quantization.repair.fallback import (
    layers_of_tensors,
    rounding_layers,
    search,
    within,
)
from exporter.quantization.repair.timing import ROUNDS, float_costs
from exporter.recipes import FallbackConfig
from exporter.results import FallbackCandidate, Score

NAMES = "abcdefgh"


def decibels(noise):
    return -10 * float(np.log10(max(noise, 1e-12)))


def candidate(layers, sqnr_db, cost_ns):
    return FallbackCandidate(layers=layers, sqnr_db=sqnr_db, cost_ns=cost_ns)


def scored(sqnr_db, agreement, drop):
    return Score(sqnr_db=sqnr_db, agreement=agreement, drop=drop)


def candidates(noises, costs=None):
    """Layers a, b, c, ..., each of which removes the given noise at a cost."""
    return [
        candidate((NAMES[i],), decibels(sum(noises) - noise), cost)
        for i, (noise, cost) in enumerate(zip(noises, costs or itertools.repeat(100.0), strict=False))
    ]


def additive(noises, calls=None):
    """The score function of a model whose drop is the total noise of the layers in int8."""

    def score(exclude):
        if calls is not None:
            calls.append(exclude)
        left = sum(noise for name, noise in zip(NAMES, noises, strict=False) if name not in exclude)
        return scored(decibels(left), 1 - left, left)

    return score


def find(noises, score=None, *, costs=None, int8_ns=100.0, **config):
    layers = candidates(noises, costs)
    return search(layers, score or additive(noises), FallbackConfig(**config), order=NAMES, int8_ns=int8_ns)


def test_no_layer_is_left_in_float_without_need():
    calls = []
    found = find([0.01, 0.02], additive([0.01, 0.02], calls), max_drop=0.05)
    assert (found.exclude, found.met, found.tried, calls) == ((), True, 1, [()])


def test_the_noisiest_layer_is_left_in_float_first():
    found = find([0.01, 0.2, 0.02], max_drop=0.05)
    assert (found.exclude, found.met) == (("b",), True)
    assert found.score.drop == pytest.approx(0.03)


def test_cheap_layers_are_preferred():
    assert find([0.1, 0.1], costs=[1000.0, 10.0], max_drop=0.15).exclude == ("b",)


def test_costs_below_the_measurement_noise_count_as_equal():
    """With a model time of 100 microseconds, the difference between 1 and -500 ns is not measurable."""
    found = find([0.2, 0.1], costs=[1.0, -500.0], int8_ns=100_000.0, max_drop=0.15)
    assert found.exclude == ("a",)


def test_layers_that_prove_unnecessary_are_quantized_again():
    """a and b come first because they are cheap, but c alone is enough."""
    found = find([0.04, 0.04, 0.3], costs=[2.0, 2.0, 100.0], max_drop=0.1, int8_ns=0.0)
    assert found.exclude == ("c",)


def test_two_layers_that_help_only_together_are_found():
    """The search finds them even if no candidate contains both."""

    def score(exclude):
        drop = 0.0 if {"a", "b"} <= set(exclude) else 0.3
        return scored(20.0, 1 - drop, drop)

    assert find([0.2, 0.2, 0.01], score, max_drop=0.01).exclude == ("a", "b")


def test_layers_are_left_in_float_together():
    """A tensor's noise remains with a or b alone in float, and is gone with both; c is quantized again."""

    def score(exclude):
        left = 0.1 + 0.3 * (not {"a", "b"} <= set(exclude)) + 0.05 * ("c" not in exclude)
        return scored(decibels(left), 1 - left, left)

    layers = [
        *(candidate((name,), score((name,)).sqnr_db, 5.0) for name in "abc"),
        candidate(("a", "b"), score(("a", "b")).sqnr_db, 50.0),
    ]

    def found(**config):
        return search(layers, score, FallbackConfig(**config), order=NAMES, int8_ns=100.0)

    assert found(max_drop=0.2).exclude == ("a", "b")
    assert found(max_drop=0.12).exclude == ("a", "b", "c")
    alone = found(max_drop=0.2, max_layers=1)  # the candidate of two layers is too large
    assert (alone.met, alone.exclude, alone.tried) == (False, ("c",), 2)


def test_a_budget_that_cannot_be_met_returns_the_best_configuration():
    found = find([0.3, 0.2, 0.1], max_drop=0.05, max_layers=2)
    assert (found.exclude, found.met, found.tried) == (("a", "b"), False, 3)
    assert found.score.drop == pytest.approx(0.1)
    assert not find([], lambda _: scored(3.0, 0.5, 0.5), max_drop=0.1).met


def test_a_minimum_sqnr_is_part_of_the_budget():
    assert find([0.01, 0.001], max_drop=0.5).exclude == ()
    assert find([0.01, 0.001], max_drop=0.5, min_sqnr_db=25.0).exclude == ("a",)
    assert within(scored(20.0, 1.0, 0.0), FallbackConfig(min_sqnr_db=20.0))
    assert not within(scored(19.9, 1.0, 0.0), FallbackConfig(min_sqnr_db=20.0))


@given(
    st.lists(st.tuples(st.floats(1e-4, 0.3), st.floats(-10, 1000)), min_size=1, max_size=8),
    st.floats(0.0, 0.5),
    st.integers(1, 8),
)
def test_the_layers_found_are_needed_and_meet_the_budget(layers, max_drop, max_layers):
    noises, costs = [noise for noise, _ in layers], [cost for _, cost in layers]
    score = additive(noises)
    config = FallbackConfig(max_drop=max_drop, max_layers=max_layers)
    found = find(noises, costs=costs, max_drop=max_drop, max_layers=max_layers)
    assert found == find(noises, costs=costs, max_drop=max_drop, max_layers=max_layers)
    assert found.score == score(found.exclude)
    assert len(found.exclude) <= max_layers
    assert found.met == within(found.score, config)
    if found.met:
        for layer in found.exclude:
            assert not within(score(tuple(n for n in found.exclude if n != layer)), config)
    elif max_layers >= len(noises):
        assert max_drop < score(tuple(NAMES[: len(noises)])).drop


def test_layers_that_round_are_found(onnx_models):
    model = onnx.load(onnx_models.float)
    layers = rounding_layers(model, plan_qdq(model, TARGETS["x86-vnni"]).options.placement.nodes)
    operators = {node.name: node.op_type for node in model.graph.node}
    found = [operators[name] for name in layers]
    assert found == ["Conv", "Conv", "GlobalAveragePool", "Gemm"]
    assert [tuple(operators[name] for name in together) for together in layers.values()][:2] == [
        ("Conv", "Relu"),
        ("Conv", "Relu"),
    ]
    for name in layers:
        assert named_nodes(model, (name,)) == (name,)


def test_all_layers_that_touch_a_tensor_are_found():
    """Layers are found after an activation, after a movement, and on both branches of a residual block."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="second"),
        helper.make_node("Add", ["b", "c"], ["d"], name="add"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("Gemm", ["e", "m"], ["y"], name="last"),
        helper.make_node("Exp", ["e"], ["z"], name="float"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [], []))
    layers = rounding_layers(model, {node.name for node in nodes if node.name != "float"})
    assert list(layers) == ["first", "second", "add", "last"]
    assert layers_of_tensors(model, layers) == [
        ("first", "second", "add"),
        ("second", "add"),
        ("add", "last"),
    ]


class Clock:
    """A clock for which each run takes the next of the given times."""

    def __init__(self, times):
        self.now, self.times, self.started = 0, iter(times), False

    def __call__(self):
        if self.started:
            self.now += next(self.times)
        self.started = not self.started
        return self.now


def test_costs_are_medians_of_paired_differences(onnx_models):
    """The model takes 100 ns and the variant 130, on a machine that gets slower and pauses once."""
    model = onnx.load(onnx_models.int8)
    times = []
    for index in range(ROUNDS):
        slow = 10 * index
        pair = ([100 + slow] * 3, [130 + slow + (5000 if index == 4 else 0)] * 3)
        times += [*pair[0], *pair[1]] if index % 2 else [*pair[1], *pair[0]]
    feeds = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    usual, costs = float_costs(model, [("stem", model)], feeds, clock=Clock(times))
    assert (usual, costs) == (100, {"stem": 30})
