"""The fallback search: fewest, cheapest, and honest where nothing helps. Nothing here is measured."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.recipe import FallbackConfig
from exporter.repair.fallback import Candidate, rounding_layers, search, within
from exporter.repair.score import Score
from exporter.repair.timing import ROUNDS, float_costs
from exporter.targets import TARGETS
from exporter.twin import check_exclude, plan_twin


def candidates(noises, costs=None):
    """Layers a, b, c, ... of a given noise and cost."""
    return [
        Candidate("abcdefgh"[i], -10 * float(np.log10(noise)), cost)
        for i, (noise, cost) in enumerate(zip(noises, costs or itertools.repeat(100.0), strict=False))
    ]


def additive(layers, calls=None):
    """A model whose drop is the noise of the layers that are not in float."""

    def score(exclude):
        if calls is not None:
            calls.append(exclude)
        left = sum(c.noise for c in layers if c.layer not in exclude)
        return Score(-10 * float(np.log10(max(left, 1e-12))), 1 - left, left)

    return score


def find(layers, score=None, int8_ns=100.0, **config):
    return search(layers, score or additive(layers), FallbackConfig(**config), int8_ns=int8_ns)


def test_nothing_is_left_in_float_without_need():
    calls = []
    layers = candidates([0.01, 0.02])
    found = find(layers, additive(layers, calls), max_drop=0.05)
    assert (found.exclude, found.met, found.tried, calls) == ((), True, 1, [()])


def test_the_noisiest_layer_goes_first():
    found = find(candidates([0.01, 0.2, 0.02]), max_drop=0.05)
    assert (found.exclude, found.met) == (("b",), True)
    assert found.score.drop == pytest.approx(0.03)


def test_cheap_layers_are_preferred():
    layers = candidates([0.1, 0.1], costs=[1000.0, 10.0])
    assert find(layers, max_drop=0.15).exclude == ("b",)


def test_a_cost_that_is_lost_in_noise_is_no_reason():
    """Layer b seems to cost nothing: of a model of 100 microseconds, nobody can tell 1 from -500 ns."""
    layers = candidates([0.2, 0.1], costs=[1.0, -500.0])
    assert find(layers, int8_ns=100_000.0, max_drop=0.15).exclude == ("a",)


def test_what_turns_out_needless_is_quantized_again():
    """a and b gain little by their ratio but come first; c alone would do."""
    layers = candidates([0.04, 0.04, 0.3], costs=[2.0, 2.0, 100.0])
    found = find(layers, max_drop=0.1, int8_ns=0.0)
    assert found.exclude == ("c",)


def test_two_layers_that_help_only_together_are_found():
    layers = candidates([0.2, 0.2, 0.01])

    def score(exclude):
        drop = 0.0 if {"a", "b"} <= set(exclude) else 0.3
        return Score(20.0, 1 - drop, drop)

    assert find(layers, score, max_drop=0.01).exclude == ("a", "b")


def test_a_budget_that_cannot_be_met_gives_the_nearest():
    layers = candidates([0.3, 0.2, 0.1])
    found = find(layers, max_drop=0.05, max_layers=2)
    assert (found.exclude, found.met, found.tried) == (("a", "b"), False, 3)
    assert found.score.drop == pytest.approx(0.1)
    assert not find([], lambda _: Score(3.0, 0.5, 0.5), max_drop=0.1).met


def test_a_wanted_sqnr_is_part_of_the_budget():
    layers = candidates([0.01, 0.001])
    assert find(layers, max_drop=0.5).exclude == ()
    assert find(layers, max_drop=0.5, min_sqnr_db=25.0).exclude == ("a",)
    assert within(Score(20.0, 1.0, 0.0), FallbackConfig(min_sqnr_db=20.0))
    assert not within(Score(19.9, 1.0, 0.0), FallbackConfig(min_sqnr_db=20.0))


@given(
    st.lists(st.tuples(st.floats(1e-4, 0.3), st.floats(-10, 1000)), min_size=1, max_size=8),
    st.floats(0.0, 0.5),
    st.integers(1, 8),
)
def test_what_is_found_is_needed_and_holds(layers, max_drop, max_layers):
    known = candidates([noise for noise, _ in layers], [cost for _, cost in layers])
    score = additive(known)
    config = FallbackConfig(max_drop=max_drop, max_layers=max_layers)
    found = search(known, score, config, int8_ns=100.0)
    assert found == search(known, score, config, int8_ns=100.0)
    assert found.score == score(found.exclude)
    assert len(found.exclude) <= max_layers
    assert found.met == within(found.score, config)
    if found.met:
        for layer in found.exclude:
            assert not within(score(tuple(n for n in found.exclude if n != layer)), config)
    elif max_layers >= len(known):
        assert max_drop < score(tuple(c.layer for c in known)).drop


def test_layers_that_round_are_found(onnx_models):
    model = onnx.load(onnx_models.float)
    layers = rounding_layers(model, plan_twin(model, TARGETS["x86-vnni"]).options.placement.nodes)
    operators = {node.name: node.op_type for node in model.graph.node}
    found = [operators[name] for name in layers]
    assert found == ["Conv", "Conv", "GlobalAveragePool", "Gemm"]
    assert [tuple(operators[name] for name in together) for together in layers.values()][:2] == [
        ("Conv", "Relu"),
        ("Conv", "Relu"),
    ]
    for name in layers:
        check_exclude(model, (name,))


class Clock:
    """Each model's runs take what was said, told apart by the order of bursts."""

    def __init__(self, times):
        self.now, self.times, self.started = 0, iter(times), False

    def __call__(self):
        if self.started:
            self.now += next(self.times)
        self.started = not self.started
        return self.now


def test_costs_are_medians_of_paired_differences(onnx_models):
    """The model takes 100 ns and the variant 130, on a machine that grows slower and once stumbles."""
    model = onnx.load(onnx_models.int8)
    times = []
    for index in range(ROUNDS):
        slow = 10 * index
        pair = ([100 + slow] * 3, [130 + slow + (5000 if index == 4 else 0)] * 3)
        times += [*pair[0], *pair[1]] if index % 2 else [*pair[1], *pair[0]]
    feeds = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    usual, costs = float_costs(model, [("stem", model)], feeds, clock=Clock(times))
    assert (usual, costs) == (100, {"stem": 30})
