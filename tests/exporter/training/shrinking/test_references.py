"""Networks that hold a block in several places: a dropped block must not run from any of them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from exporter.errors import PlanError, StageError
from exporter.networks.network import Network, call, load_network
from exporter.networks.rebuild import PassedOn, rebuild
from exporter.networks.shrink_plan import Plan
from exporter.recipes import ShrinkConfig
from exporter.sources.splits import Split, Splits
from exporter.training.shrinking.kernel_table import KernelTable
from exporter.training.shrinking.layer_costs import (
    count_macs,
    count_parameters,
    each_once,
    executed_flops,
    find_layers,
)
from exporter.training.shrinking.meter import Measured
from exporter.training.shrinking.structure import failure, find_structure
from exporter.training.stages.shrink import shrink_with
from models.minilm import minilm_l6

STAYS = "the network's output does not change at all: this part still runs elsewhere, or never ran"


class Block(nn.Module):
    """[N, 8] -> [N, 8]: two layers with a residual connection."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Base(nn.Module):
    """Three blocks and a head; each derived class reaches the blocks in another way."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"layer": nn.ModuleList([Block() for _ in range(3)])})
        self.head = nn.Linear(8, 5)
        self.unused = Block()

    def blocks(self):
        return self.body["layer"]

    def forward(self, x):
        for block in self.blocks():
            x = block(x)
        return self.head(x)


class PlainList(Base):
    def __init__(self):
        super().__init__()
        self.order = list(self.body["layer"])

    def blocks(self):
        return self.order


class SecondModuleList(Base):
    def __init__(self):
        super().__init__()
        self.again = nn.ModuleList(self.body["layer"])

    def blocks(self):
        return self.again


class SameModuleList(Base):
    def __init__(self):
        super().__init__()
        self.again = self.body["layer"]

    def blocks(self):
        return self.again


class Attributes(Base):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = self.body["layer"]

    def blocks(self):
        return self.one, self.two, self.three


class Lookup(Base):
    def __init__(self):
        super().__init__()
        self.table = {"blocks": tuple(self.body["layer"])}

    def blocks(self):
        return self.table["blocks"]


NETWORKS = [Base, PlainList, SecondModuleList, SameModuleList, Attributes, Lookup]


def inputs(count=2):
    return {"x": torch.randn(count, 8, generator=torch.Generator().manual_seed(0))}


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


class Meter:
    def table(self):
        return KernelTable(lambda kernels: [float(kernel.macs) for kernel in kernels])

    def export(self, module):
        return Measured(count_macs(module, inputs()) / 1e6, 1000 + count_parameters(module))

    def export_float(self, module):
        return self.export(module)

    def measure(self, exported):
        return list(exported)


@pytest.fixture
def run(context):
    x = inputs(60)["x"].numpy()
    split = Split({"x": x}, np.arange(60) % 5)
    data = Splits(split.take(np.arange(40)), split.take(np.arange(40, 50)), split.take(np.arange(50, 60)))

    def stage(module, **config):
        content = {"kind": "shrink", "epochs": 0, "validation": 0.2, **config}
        settings = ShrinkConfig.model_validate_json(json.dumps(content))
        return shrink_with(Meter(), Network(module), settings, data, context())

    return stage


BLOCK, HEAD = 2 * 8 * 16, 8 * 5


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_dropped_block_no_longer_runs_from_any_reference(run, kind):
    whole = made(kind)
    before = call(copy.deepcopy(whole), inputs())
    network, result = run(whole, drop=["body.layer.1"])
    assert not torch.equal(call(network.module, inputs()), before)
    assert (result.before.macs, result.after.macs) == (3 * BLOCK + HEAD, 2 * BLOCK + HEAD)
    # torch counts two operations for each multiply-add, on two samples.
    assert executed_flops(network.module, inputs()) == 2 * 2 * result.after.macs


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_target_is_met_by_blocks_that_no_longer_run(run, kind):
    network, result = run(
        made(kind), target={"macs_ratio": 0.7}, depth=1, multiple=64, exclude=["head"], samples=6
    )
    assert len(result.dropped) == 1
    assert executed_flops(network.module, inputs()) == 2 * 2 * result.after.macs


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_shrunk_network_is_loaded_from_its_folder(run, kind, tmp_path):
    network, _ = run(made(kind), drop=["body.layer.1"])
    network.save(tmp_path)
    again = load_network(made(kind), tmp_path)
    assert torch.equal(call(again.module.eval(), inputs()), call(network.module.eval(), inputs()))


class Closure(Base):
    """A deep copy does not copy what a closure holds, so dropping these blocks cannot be tried."""

    def __init__(self):
        super().__init__()
        blocks = list(self.body["layer"])
        self.reach = lambda: blocks

    def blocks(self):
        return self.reach()


@pytest.mark.parametrize(("kind", "name"), [(Closure, "body.layer.1"), (Base, "unused")])
def test_dropping_a_block_without_effect_is_refused(run, kind, name):
    with pytest.raises(StageError) as caught:
        run(made(kind), drop=[name])
    assert str(caught.value) == f"stage.drop: {name!r} cannot be dropped: {STAYS}; remove it from drop"


def test_a_block_without_effect_is_not_a_candidate():
    assert find_structure(made(Closure), inputs(), (), "stage").blocks == ()


def test_a_block_that_cannot_be_dropped_has_a_reason():
    class Reads(Base):
        def forward(self, x):
            return super().forward(x) * self.body["layer"][1].up.in_features

    found = find_structure(made(Reads), inputs(), (), "stage")
    assert found.blocks == ("body.layer.0", "body.layer.2")
    assert found.fixed["body.layer.1"].startswith("the network no longer runs (")


def test_a_block_that_adds_zero_may_be_dropped(run):
    """The output does not change, but two matrix products fewer run."""
    module = made(PlainList)
    nn.init.zeros_(module.order[1].down.weight)
    nn.init.zeros_(module.order[1].down.bias)
    before = call(copy.deepcopy(module), inputs())
    network, result = run(module, drop=["body.layer.1"])
    assert torch.equal(call(network.module, inputs()), before)
    assert result.after.macs == 2 * BLOCK + HEAD


def test_a_layer_of_an_encoder_is_dropped():
    """The blocks of an encoder also receive a mask, and `forward` finds them in a plain list."""
    torch.manual_seed(0)
    module = minilm_l6(vocabulary=50, hidden=16, layers=3, heads=2, inner=32, positions=8).eval()
    ids = torch.arange(16).reshape(2, 8)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plan = Plan(dropped=("encoder.layer.1",))
    assert failure(module, tokens, plan) is None
    layer = 8 * (4 * 16 * 16 + 2 * 16 * 32)
    before, flops = call(module, tokens), executed_flops(module, tokens)
    assert count_macs(module, tokens) == 3 * layer
    rebuild(module, plan)
    assert not torch.equal(call(module, tokens), before)
    assert count_macs(module, tokens) == 2 * layer
    assert flops - executed_flops(module, tokens) == 2 * 2 * layer


def test_a_dropped_block_returns_its_first_argument():
    x = torch.ones(2)
    left = rebuild(nn.Sequential(Block()).train(), Plan(dropped=("0",)))[0]
    assert isinstance(left, PassedOn)
    assert left(x, torch.zeros(2), mask=None) is x
    assert left.training
    assert list(left.parameters()) == []


def test_a_module_that_cannot_be_changed_is_named():
    class Slotted(nn.Module):
        __slots__ = ("extra",)

    with pytest.raises(PlanError, match=r"^0: is a Slotted, which cannot be dropped"):
        rebuild(nn.Sequential(Slotted()), Plan(dropped=("0",)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.block(self.block(x)))


def test_each_call_counts_multiply_adds_and_weights_count_once():
    module = made(Twice)
    layers = find_layers(module, inputs(), ())
    assert [layer.name for layer in layers] == ["block.up", "block.down"] * 2 + ["head"]
    assert count_macs(module, inputs()) == 2 * BLOCK + HEAD == executed_flops(module, inputs()) // 4
    assert [layer.name for layer in each_once(layers)] == ["block.up", "block.down", "head"]


def test_layers_that_torch_does_not_list_are_counted():
    module = made(Base)
    del module.unused
    module.order, module.body = list(module.body["layer"]), nn.ModuleDict()
    module.blocks = lambda: module.order
    assert count_macs(module, inputs()) == 3 * BLOCK + HEAD
