"""Pruning: exactly the smallest magnitudes, exactly as many as asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exporter.errors import StageError
from exporter.network import Network, accuracy
from exporter.recipe import PruneConfig, PruneTarget
from exporter.stages.prune import magnitude_masks, prunable_weights, prune

PRUNABLE = ("stem.weight", "body.weight", "head.weight")


def settings(sparsity, exclude=()):
    return PruneConfig(kind="prune", target=PruneTarget(sparsity=sparsity), exclude=exclude)


def magnitudes(module, names=PRUNABLE):
    return sorted(
        (abs(value), name, index)
        for name in names
        for index, value in enumerate(module.get_parameter(name).flatten().tolist())
    )


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.99])
def test_exactly_the_smallest_weights_go(tiny, splits, context, sparsity):
    ranked = magnitudes(tiny.net())
    doomed = {(name, index) for _, name, index in ranked[: round(sparsity * len(ranked))]}
    network, metrics = prune(Network(tiny.net()), settings(sparsity), splits, context())
    zeros = {
        (name, index)
        for name in PRUNABLE
        for index, value in enumerate(network.module.get_parameter(name).flatten().tolist())
        if value == 0
    }
    assert zeros == doomed
    assert metrics["sparsity"] == len(doomed) / len(ranked) == network.sparsity()


def test_what_is_left_is_untouched(tiny, splits, context):
    before = tiny.net().state_dict()
    network, metrics = prune(Network(tiny.net()), settings(0.5), splits, context())
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name] * network.masks.get(name, True))
    assert metrics["accuracy_before"] == accuracy(tiny.net(), splits.evaluation)
    assert metrics["evaluation_accuracy"] == accuracy(network.module, splits.evaluation)
    assert metrics["layers"].keys() == set(PRUNABLE)
    assert metrics["layers"]["body.weight"] == pytest.approx(
        float((network.module.body.weight == 0).float().mean())
    )


@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_ties_do_not_change_the_count(rows, data):
    weights = {str(index): torch.tensor(row, dtype=torch.float32) for index, row in enumerate(rows)}
    sparsity = data.draw(st.floats(0.01, 0.99))
    masks = magnitude_masks(weights, sparsity)
    flat = torch.cat(list(weights.values())).abs()
    kept = torch.cat(list(masks.values()))
    assert int((~kept).sum()) == round(sparsity * len(flat))
    if kept.any() and not kept.all():
        assert flat[kept].min() >= flat[~kept].max()
    assert all(masks[name].shape == weights[name].shape for name in weights)


def test_excluded_modules_stay_dense(tiny, splits, context):
    network, _ = prune(Network(tiny.net()), settings(0.9, exclude=("stem", "head")), splits, context())
    assert set(network.masks) == {"body.weight"}
    assert int((network.module.body.weight == 0).sum()) == round(0.9 * 8 * 8 * 9)
    assert torch.equal(network.module.stem.weight, tiny.net().stem.weight)


def test_impossible_exclusions(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.exclude: the network has no module 'neck'"):
        prune(Network(tiny.net()), settings(0.5, exclude=("neck",)), splits, context())
    with pytest.raises(StageError, match="no convolution or linear layer to prune; check exclude"):
        prune(Network(tiny.net()), settings(0.5, exclude=("stem", "body", "head")), splits, context())


def test_pruning_again_only_adds(tiny, splits, context):
    once, _ = prune(Network(tiny.net()), settings(0.3), splits, context())
    first = {name: mask.clone() for name, mask in once.masks.items()}
    twice, metrics = prune(once, settings(0.6), splits, context())
    assert metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert all(not (twice.masks[name] & ~first[name]).any() for name in first)
    less, metrics = prune(twice, settings(0.1), splits, context())
    assert metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert all(torch.equal(less.masks[name], twice.masks[name]) for name in first)


def test_masks_of_layers_that_are_now_excluded_hold(tiny, splits, context):
    once, _ = prune(Network(tiny.net()), settings(0.5, exclude=("head",)), splits, context())
    body = once.masks["body.weight"].clone()
    twice, _ = prune(once, settings(0.5, exclude=("body",)), splits, context())
    assert set(twice.masks) == set(PRUNABLE)
    assert torch.equal(twice.masks["body.weight"], body)


def test_a_lone_layer_is_a_network():
    assert set(prunable_weights(nn.Linear(2, 2), (), "stage")) == {"weight"}
