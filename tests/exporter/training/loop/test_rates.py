"""Learning rates by layer and by training step."""

from __future__ import annotations

import pytest
from torch import nn

from exporter.recipes import FineTuneConfig
from exporter.training.loop.rates import layer_depths, parameter_groups, schedule


def settings(**changes):
    return FineTuneConfig(kind="finetune", **changes)


class Block(nn.Module):
    """Two layers that count as one, because the module is neither a list nor an only child."""

    def __init__(self):
        super().__init__()
        self.expand, self.project = nn.Linear(4, 8), nn.Linear(8, 4)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([Block(), Block()])


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.encoder = Wrapped()
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 2)


def test_depths_count_blocks_as_layers():
    depths = layer_depths(Deep())
    assert depths["head.weight"] == depths["head.bias"] == 0
    assert depths["encoder.layer.1.project.weight"] == depths["encoder.layer.1.expand.bias"] == 1
    assert depths["encoder.layer.0.expand.weight"] == 2
    assert depths["stem.weight"] == depths["norm.weight"] == 3
    assert depths.keys() == dict(Deep().named_parameters()).keys()


def test_each_layer_down_multiplies_the_rate():
    module = Deep()
    groups = parameter_groups(module, settings(learning_rate=0.1, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, depth in layer_depths(module).items():
        assert rates[id(module.get_parameter(name))] == pytest.approx(0.1 * 0.5**depth)
    assert len(rates) == len(list(module.parameters()))


def test_without_decay_there_are_two_groups():
    groups = parameter_groups(
        Deep(), settings(weight_decay=0.3), [nn.Parameter(nn.Linear(1, 1).weight.data)]
    )
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert len(groups[0]["params"]) == 7  # six matrices of the network, and one of the loss


def test_probe_and_rest_have_a_schedule_each():
    config = settings(epochs=4, probe_epochs=2, warmup=0.0)
    factors = [schedule(config, step, steps_per_epoch=2) for step in range(8)]
    assert factors[:4] == pytest.approx(factors[4:])
    assert factors[0] == 1.0
    assert factors[3] < 0.3


class Transformer(nn.Module):
    """The position embedding is a parameter of the network itself, not of a layer."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(nn.Linear(4, 4).weight.data)
        self.embed, self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)


class Around(nn.Module):
    """A network inside another, which adds a parameter of its own."""

    def __init__(self, network):
        super().__init__()
        self.network, self.shift = network, nn.Parameter(nn.Linear(1, 1).weight.data)


def test_parameters_outside_layers_have_the_depth_of_the_first_layer():
    depths = layer_depths(Transformer())
    assert depths["positions"] == depths["embed.weight"] == 2
    assert depths["head.weight"] == 0


def test_a_network_within_a_network_keeps_its_layers():
    inner = layer_depths(Deep())
    assert layer_depths(Around(Deep())) == {f"network.{name}": depth for name, depth in inner.items()}
    groups = parameter_groups(module := Around(Deep()), settings(learning_rate=0.1, layer_decay=0.5))
    (rate,) = (g["lr"] for g in groups for p in g["params"] if p is module.shift)
    assert rate == 0.1
