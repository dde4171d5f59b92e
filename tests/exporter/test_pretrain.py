"""Pretraining looks at its own data and at nothing else."""

from __future__ import annotations

import pytest

from exporter.errors import StageError
from exporter.network import Network, accuracy
from exporter.recipe import DataConfig, PretrainConfig
from exporter.stages.pretrain import pretrain

CONFIG = PretrainConfig(
    kind="pretrain", data=DataConfig(factory="a:b"), epochs=3, batch_size=10, learning_rate=0.05
)


def test_source_data_are_learnt(tiny, context):
    source = tiny.splits(seed=8)
    network, metrics = pretrain(Network(tiny.net()), CONFIG, None, context(source=source))
    assert metrics["source_accuracy"] == accuracy(network.module, source.evaluation) > 0.9
    assert "evaluation_accuracy" not in metrics


def test_source_data_are_asked_for_by_the_stages_own_table(tiny, splits):
    asked = []

    def load_data(config, place):
        asked.append((config, place))
        return splits

    from bench.progress import SILENT
    from exporter.stages import Context

    pretrain(Network(tiny.net()), CONFIG, None, Context("warm", 0, SILENT, tiny.net, None, load_data, None))
    assert asked == [(CONFIG.data, "warm.data")]


def test_source_labels_must_fit_the_network(tiny, splits, context):
    with pytest.raises(StageError, match="out of range for the network's 2 classes"):
        pretrain(Network(tiny.net(classes=2)), CONFIG, None, context(source=splits))
