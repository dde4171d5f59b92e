"""Pretraining uses only its own source data."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy
from exporter.recipes import DataConfig, PretrainConfig
from exporter.training.stages.pretrain import pretrain

CONFIG = PretrainConfig(
    kind="pretrain", data=DataConfig(factory="a:b"), epochs=3, batch_size=10, learning_rate=0.05
)


def test_source_data_are_learnt(tiny, context):
    source = tiny.splits(seed=8)
    network, result = pretrain(Network(tiny.net()), CONFIG, None, context(source=source))
    assert result.source_accuracy == accuracy(network.module, source.evaluation) > 0.9
    assert "evaluation_accuracy" not in result.as_json()


def test_source_data_come_from_the_stages_own_table(tiny, splits, context):
    asked = []

    def load_data(config, place):
        asked.append((config, place))
        return splits

    made = context("warm")
    made = replace(made, load=replace(made.load, data=load_data))
    pretrain(Network(tiny.net()), CONFIG, None, made)
    assert asked == [(CONFIG.data, "warm.data")]


def test_too_many_source_classes_are_refused_without_a_linear_head(tiny, splits, context):
    """The last layer is not linear, so the stage cannot replace it by a larger one."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = tiny.net(classes=2), nn.Conv1d(1, 1, 1)

        def forward(self, image):
            return self.scale(self.net(image)[:, None])[:, 0]

    with pytest.raises(StageError, match="out of range for the network's 2 classes"):
        pretrain(Network(Scaled()), CONFIG, None, context(source=splits))


def test_source_data_may_have_more_classes_than_the_network(tiny, context):
    source = tiny.splits(seed=8)
    module = tiny.net(classes=2)
    before = copy.deepcopy(module.state_dict())
    network, result = pretrain(Network(module), CONFIG, None, context(source=source))
    assert result.source_accuracy > 0.9
    assert (result.source_classes, result.new_head) == (3, "head")
    after = network.module.state_dict()
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in before.items()
    }
    assert not torch.equal(after["stem.weight"], before["stem.weight"])
    same, _ = pretrain(Network(tiny.net(classes=2)), CONFIG, None, context(source=source))
    assert torch.equal(same.module.head.weight, after["head.weight"])


def test_rare_source_classes_can_be_weighted(tiny, context):
    source = tiny.splits(seed=8)
    rare = np.concatenate([np.flatnonzero(source.train.labels < 2), [2, 5]])
    thin = replace(source, train=source.train.take(rare))
    found = {}
    for kind in ("equal", "balanced"):
        config = CONFIG.model_copy(update={"class_weights": kind})
        _, result = pretrain(Network(tiny.net()), config, None, context(source=thin))
        found[kind] = result.curves[0].train_loss
        assert result.warnings[0].endswith('balanced"') == (kind == "equal")
    assert found["equal"] != found["balanced"]
