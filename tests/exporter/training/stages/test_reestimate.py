"""BatchNorm re-estimation: it changes only the statistics, to those of the unaugmented training data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy
from exporter.recipes import ReestimateConfig
from exporter.training.stages import STAGES
from exporter.training.stages.reestimate import reestimate


def settings(**config):
    return ReestimateConfig(kind="reestimate", **config)


def test_statistics_are_means_over_batches(tiny, splits, context):
    module = tiny.net()
    module.norm.running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network, result = reestimate(Network(module), settings(batch_size=16), splits, context())
    images = torch.from_numpy(splits.train.inputs["image"])[:48]  # the remaining samples fill no batch
    with torch.no_grad():
        outputs = [module.stem(batch) for batch in images.split(16)]
    means = torch.stack([o.mean(dim=(0, 2, 3)) for o in outputs]).mean(dim=0)
    variances = torch.stack([o.var(dim=(0, 2, 3)) for o in outputs]).mean(dim=0)
    torch.testing.assert_close(module.norm.running_mean, means)
    torch.testing.assert_close(module.norm.running_var, variances)
    for name, value in network.module.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name])
    assert module.norm.momentum == 0.1
    assert result.norms == 1
    assert result.largest_shift > 1
    assert result.evaluation_accuracy == accuracy(module, splits.evaluation)


def test_small_data_is_one_batch(tiny, splits, context):
    network, _ = reestimate(Network(tiny.net()), settings(batch_size=1000), splits, context())
    outputs = network.module.stem(torch.from_numpy(splits.train.inputs["image"]))
    torch.testing.assert_close(network.module.norm.running_mean, outputs.mean(dim=(0, 2, 3)).detach())


def test_frozen_norms_keep_their_statistics(splits, context):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
            self.head = nn.Linear(64, 3)

        def forward(self, image):
            return self.head(self.second(self.first(image)).flatten(1))

    module = Two()
    module.first.running_mean.fill_(3.0)
    reestimate(Network(module), settings(freeze=("first",)), splits, context())
    assert module.first.running_mean.item() == 3.0
    assert module.first.num_batches_tracked.item() == 0
    assert module.second.running_mean.item() < -1


def test_the_network_keeps_its_mode(tiny, splits, context):
    module = tiny.net().eval()
    reestimate(Network(module), settings(), splits, context())
    assert not module.training
    assert not module.norm.training


def test_impossible_configurations_are_refused(tiny, splits, context):
    with pytest.raises(StageError, match="the network has no BatchNorm"):
        reestimate(Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), settings(), splits, context())
    with pytest.raises(StageError, match="no BatchNorm to re-estimate"):
        reestimate(Network(tiny.net()), settings(freeze=("norm",)), splits, context())
    with pytest.raises(StageError, match=r"stage.freeze: the network has no module 'neck'"):
        reestimate(Network(tiny.net()), settings(freeze=("neck",)), splits, context())


def test_reestimate_is_a_stage():
    assert STAGES["reestimate"] is reestimate
