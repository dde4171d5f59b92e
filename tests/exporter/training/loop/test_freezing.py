"""Trained parameters by epoch: gradual unfreezing, a probe of the head, frozen norm statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.progress import SILENT
from exporter.errors import StageError
from exporter.networks.network import Network
from exporter.recipes import FineTuneConfig
from exporter.training.loop import fit, frozen_modules
from exporter.training.loop.freezing import last_layer, set_learning
from exporter.training.stages.labelled_loss import cross_entropy


def settings(**changes):
    return FineTuneConfig(
        **{"kind": "finetune", "epochs": 2, "batch_size": 10, "learning_rate": 0.05} | changes
    )


def train(module, splits, **changes):
    network = Network(module)
    fit(network, splits, settings(**changes), cross_entropy(), seed=0, name="stage", progress=SILENT)
    return network.module


def test_the_last_named_module_is_unfrozen_first():
    config = settings(epochs=9, freeze=("a", "b", "c"), unfreeze_epoch=2, unfreeze_every=3)
    frozen = [frozen_modules(config, epoch) for epoch in range(9)]
    assert frozen == [("a", "b", "c")] * 2 + [("a", "b")] * 3 + [("a",)] * 3 + [()]


def test_a_probe_trains_only_the_head(tiny, splits):
    before = tiny.net().state_dict()
    module = tiny.net()
    set_learning(module, settings(epochs=2, probe_epochs=1), 0, "stage")
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    assert not module.norm.training
    set_learning(module, settings(epochs=2, probe_epochs=1), 1, "stage")
    assert all(p.requires_grad for p in module.parameters())
    assert module.norm.training
    # In the whole stage, the last epoch trains everything.
    after = train(tiny.net(), splits, epochs=2, probe_epochs=1).state_dict()
    assert not torch.equal(after["stem.weight"], before["stem.weight"])


def test_a_named_head_is_probed(tiny):
    module = tiny.net()
    set_learning(module, settings(epochs=2, probe_epochs=1, head="body"), 0, "stage")
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [
        "body.weight",
        "body.bias",
    ]


def test_the_last_layer_may_be_nested_or_the_only_one():
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    assert last_layer(nested) == "1.1"
    set_learning(nested, settings(epochs=2, probe_epochs=1), 0, "stage")
    assert nested[1].training
    assert nested[1][1].training
    assert not nested[0].training
    lone = nn.Linear(2, 2)
    assert last_layer(lone) == ""
    set_learning(lone, settings(epochs=2, probe_epochs=1), 0, "stage")
    assert lone.weight.requires_grad


def test_frozen_statistics_stay_while_the_norm_is_trained(tiny, splits):
    before = tiny.net().state_dict()
    after = train(tiny.net(), splits, norm_statistics="frozen").state_dict()
    assert torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    assert torch.equal(after["norm.running_var"], before["norm.running_var"])
    assert not torch.equal(after["norm.weight"], before["norm.weight"])


def test_a_batch_of_one_needs_frozen_statistics(splits):
    few = replace(splits, train=splits.train.take(np.arange(4)))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    data = replace(few, train=replace(few.train, inputs={"input": few.train.inputs["image"]}))
    with pytest.raises(StageError) as caught:
        train(module, data, batch_size=1)
    assert caught.value.place == "stage.batch_size"
    assert caught.value.cause == "the BatchNorm '2' cannot compute statistics from a batch of one sample"
    train(module, data, batch_size=1, norm_statistics="frozen")
    train(module, data, batch_size=1, freeze=("2",))


def test_predicting_does_not_change_the_modes(tiny, splits):
    """Validation runs between epochs: a frozen norm must stay in evaluation mode afterwards."""
    from exporter.networks.network import predict

    module = tiny.net().train()
    module.norm.eval()
    predict(module, splits.calibration)
    assert module.training
    assert not module.norm.training
