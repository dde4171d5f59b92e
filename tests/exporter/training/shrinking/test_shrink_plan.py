"""Plans: reading untrusted files, applying plans to networks, and composing several plans."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter import load_trained
from exporter.errors import CheckpointError, PlanError
from exporter.networks.narrow import channels, narrow
from exporter.networks.network import Network, call, load_network
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import MAX_PLAN_BYTES, KeptChannels, Plan, compose, read_plan
from exporter.training.shrinking.structure import find_structure, removal


def halves(module, pictures, seed=0):
    """A plan that removes half of the units of each group."""
    generator = np.random.default_rng(seed)
    groups = find_structure(module, pictures, (), "stage").groups
    return removal({g: generator.permutation(len(g.units))[: len(g.units) // 2].tolist() for g in groups})


def test_factory_plan_and_weights_restore_the_network(shapes, name, tmp_path):
    module = shapes.build(name)
    plan = halves(module, shapes.pictures())
    Network(rebuild(module, plan), plan=plan).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "weights.safetensors"]
    for again in (
        load_trained(shapes.build(name), tmp_path),
        load_network(shapes.build(name), tmp_path).module,
        rebuild(shapes.build(name), str(tmp_path / "plan.json")),
    ):
        assert torch.equal(call(again, shapes.pictures()), call(module, shapes.pictures()))
    assert load_network(shapes.build(name), tmp_path).plan == plan


def test_two_plans_are_composed(shapes, name):
    module = shapes.build(name)
    first = halves(module, shapes.pictures())
    rebuild(module, first)
    then = halves(module, shapes.pictures(), seed=1)
    if "attention" not in name:  # its position embedding needs a fixed number of patches
        then = then.model_copy(update={"resolution": (8, 8)})
    rebuild(module, then)
    both = compose(compose(None, first), then)
    assert torch.equal(
        call(rebuild(shapes.build(name), both), shapes.pictures()), call(module, shapes.pictures())
    )
    assert compose(both, Plan()) == both


def test_blocks_are_dropped_over_two_plans(shapes):
    module = shapes.build("residual")
    first = halves(module, shapes.pictures())
    rebuild(module, first)
    then = Plan(dropped=("second",))
    both = compose(first, then)
    again = rebuild(shapes.build("residual"), both)
    assert isinstance(again.second, nn.Identity)
    expected = call(rebuild(module, then), shapes.pictures())
    assert torch.equal(call(again, shapes.pictures()), expected)


@pytest.mark.parametrize(
    ("side", "scaled"),
    [
        (4, lambda x: nn.functional.avg_pool2d(x, 4)),
        (8, lambda x: nn.functional.avg_pool2d(x, 2)),
        (16, lambda x: x),
    ],
)
def test_pictures_are_scaled_inside(shapes, side, scaled):
    module, inputs = shapes.build("residual"), shapes.pictures()
    expected = module(scaled(inputs["image"]))
    smaller = rebuild(copy.deepcopy(module), Plan(resolution=(side, side)))
    assert torch.equal(call(smaller, inputs), expected)
    assert torch.equal(smaller(inputs["image"]), expected)
    assert torch.equal(call(copy.deepcopy(smaller), inputs), expected)


def test_the_last_resolution_counts(shapes):
    module, inputs = shapes.build("residual"), shapes.pictures()
    rebuild(module, Plan(resolution=(12, 10)))
    assert len(module._forward_pre_hooks) == 1
    seen = []
    module.stem.register_forward_pre_hook(lambda _layer, args: seen.append(tuple(args[0].shape[2:])))
    module(**inputs)
    rebuild(module, Plan(resolution=(8, 8)))
    module(**inputs)
    assert seen == [(12, 10), (8, 8)]
    assert len(module._forward_pre_hooks) == 1


def test_inputs_other_than_pictures_are_not_scaled(shapes):
    class Both(nn.Module):
        def forward(self, image, ids, flag):
            return image, ids, flag

    module = rebuild(Both(), Plan(resolution=(2, 2)))
    ids, rows = torch.arange(4), torch.zeros(2, 3)
    image, *rest = module(torch.zeros(1, 1, 4, 4), ids, flag=rows)
    assert image.shape == (1, 1, 2, 2)
    assert rest[0] is ids
    assert rest[1] is rows


@pytest.mark.parametrize(
    ("layer", "kept", "shape"),
    [
        (nn.Conv1d(4, 6, 3), {"outputs": (0, 5)}, (2, 4, 3)),
        (nn.Conv3d(4, 6, 1), {"inputs": (1, 3)}, (6, 2, 1, 1, 1)),
        (nn.Conv2d(4, 4, 1, groups=4), {"outputs": (1, 2), "inputs": (1, 2)}, (2, 1, 1, 1)),
        (nn.Conv2d(4, 8, 1, groups=4), {"outputs": (2, 3, 6, 7), "inputs": (1, 3)}, (4, 1, 1, 1)),
        (nn.Conv2d(8, 4, 1, groups=2), {"outputs": (0, 3), "inputs": (1, 2, 5, 7)}, (2, 2, 1, 1)),
        (nn.Linear(4, 6), {"outputs": (0, 5), "inputs": (3,)}, (2, 1)),
        (nn.BatchNorm1d(4), {"outputs": (1, 3)}, (2,)),
        (nn.InstanceNorm2d(4, affine=True), {"inputs": (1, 3)}, (2,)),
        (nn.LayerNorm(4), {"outputs": (1, 3)}, (2,)),
        (nn.GroupNorm(2, 4), {"outputs": (1, 3), "inputs": (1, 3)}, (2,)),
        (nn.PReLU(4), {"outputs": (1, 3)}, (2,)),
        (nn.Embedding(10, 4), {"outputs": (1, 3)}, (10, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_kind_of_layer_is_narrowed(layer, kept, shape):
    before = layer.weight.clone()
    narrow(layer, "layer", KeptChannels(**kept))
    assert tuple(layer.weight.shape) == shape
    assert layer.weight.requires_grad
    for side, indices in kept.items():
        assert channels(layer, side) == len(indices)
    if isinstance(layer, nn.Linear):
        assert torch.equal(layer.weight, before[[0, 5]][:, [3]])
    if isinstance(layer, nn.BatchNorm1d):
        assert layer.running_var.shape == (2,)
    if isinstance(layer, nn.Conv2d) and layer.groups == 2 and layer.in_channels == 4:
        assert torch.equal(layer.weight[1], before[3][[1, 3]])


def test_layers_in_channels_last_layout_stay_in_it():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    narrow(layer, "layer", KeptChannels(outputs=(0, 2)))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "kept", "cause"),
    [
        (nn.ConvTranspose2d(4, 4, 2), {"outputs": (0,)}, "is a ConvTranspose2d, which cannot be narrowed"),
        (nn.PReLU(), {"outputs": (0,)}, "is a PReLU, which cannot be narrowed"),
        (nn.LayerNorm((2, 4)), {"outputs": (0,)}, "is a LayerNorm, which cannot be narrowed"),
        (nn.LSTM(4, 4), {"outputs": (0,)}, "is a LSTM, which cannot be narrowed"),
        (nn.ReLU(), {"outputs": (0,)}, "is a ReLU, which cannot be narrowed"),
        (
            torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            {"outputs": (0,)},
            "is a ParametrizedLinear, which cannot be narrowed",
        ),
        (nn.Linear(4, 4), {"outputs": (0, 4)}, "has no channel 4, only 4 channels"),
        (nn.Linear(4, 4), {"inputs": (10**30,)}, f"has no channel {10**30}, only 4 channels"),
        (
            nn.BatchNorm2d(4),
            {"outputs": (0,), "inputs": (1,)},
            "has the same channels as inputs and outputs, but the plan lists different indices",
        ),
        (nn.GroupNorm(2, 4), {"outputs": (0, 1, 2)}, "would keep groups of unequal size"),
        (nn.Conv2d(4, 4, 1, groups=2), {"outputs": (0, 1, 2)}, "would keep groups of unequal size"),
        (nn.Conv2d(4, 4, 1, groups=4), {"outputs": (0, 1)}, "would keep groups of unequal size"),
    ],
)
def test_impossible_narrowings_are_refused(layer, kept, cause):
    with pytest.raises(PlanError) as caught:
        narrow(layer, "block.layer", KeptChannels(**kept))
    assert (caught.value.place, caught.value.cause) == ("block.layer", cause)


HOSTILE = [
    ({"modules": {"neck": {"outputs": [0]}}}, "neck: is not a module of the network"),
    ({"modules": {"../../etc/passwd": {"outputs": [0]}}}, "is not a module of the network"),
    ({"modules": {"stem": {"outputs": [0, 99]}}}, "stem: has no channel 99, only 16 channels"),
    ({"modules": {"stem": {"outputs": []}}}, "kept indices must be ascending integers from 0"),
    ({"modules": {"stem": {"outputs": [3, 1]}}}, "kept indices must be ascending"),
    ({"modules": {"stem": {"outputs": [-1]}}}, "kept indices must be ascending"),
    ({"modules": {"stem": {"outputs": [0.5]}}}, "modules.stem.outputs.0"),
    ({"modules": {"stem": {"outputs": [True]}}}, "modules.stem.outputs.0"),
    ({"modules": {"": {"outputs": [0]}}}, "is a Residual, which cannot be narrowed"),
    ({"modules": {"stem": {"weights": [0]}}}, "unknown key"),
    ({"parameters": {"stem.weight": {"axis": 4, "kept": [0]}}}, "is not a parameter with an axis"),
    ({"parameters": {"norm.running_mean": {"axis": 0, "kept": [0]}}}, "is not a parameter with an axis"),
    ({"parameters": {"stem.weight": {"axis": -1, "kept": [0]}}}, "parameters.stem.weight.axis"),
    ({"parameters": {"stem.weight": {"axis": 10**40, "kept": [0]}}}, "parameters.stem.weight.axis"),
    ({"attributes": {"stem.__class__": 1}}, "cannot be set to 1"),
    ({"attributes": {"stem._version": 0}}, "cannot be set to 0"),
    ({"attributes": {"stem.out_channels": 10**9}}, "cannot be set to 1000000000"),
    ({"attributes": {"stem.training": 1}}, "stem.training: cannot be set to 1"),
    ({"attributes": {"stem.forward": 1}}, "stem.forward: cannot be set to 1"),
    ({"attributes": {"neck.heads": 1}}, "neck: is not a module of the network"),
    ({"dropped": [""]}, "would drop the network itself"),
    ({"dropped": ["neck"]}, "neck: is not a module of the network"),
    ({"resolution": [0, 8]}, "resolution.0"),
    ({"resolution": [8, 10**9]}, "resolution.1"),
    ({"resolution": [8]}, "resolution"),
    ({"version": 2}, "version"),
    ({"code": "import os"}, "unknown key"),
    ([], "the file"),
]


@pytest.mark.parametrize(("content", "line"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_hostile_plans_are_refused_in_one_line(shapes, tmp_path, content, line):
    (tmp_path / "plan.json").write_text(json.dumps(content))
    save_file(shapes.build("residual").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(PlanError) as caught:
        load_trained(shapes.build("residual"), tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_plans(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(PlanError, match=r"plan.json: cannot be read \(No such file"):
        read_plan(path)
    for content in (b"", b"\xff\xfe", b"{" * 100_000, b'{"modules": '):
        path.write_bytes(content)
        with pytest.raises(PlanError, match=r"plan\.json"):
            read_plan(path)
    with path.open("wb") as file:
        file.truncate(MAX_PLAN_BYTES + 1)
    with pytest.raises(PlanError, match=r"is larger than \d+ bytes, the limit for a plan"):
        read_plan(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(path)


def test_weights_of_another_network_are_refused(shapes, tmp_path):
    module = shapes.build("residual")
    plan = halves(module, shapes.pictures())
    Network(rebuild(module, plan), plan=plan).save(tmp_path)
    with pytest.raises(PlanError, match=r"stem: has no channel|is not a module of the network"):
        load_trained(shapes.build("depthwise"), tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(CheckpointError, match=r"belongs to another network: .* of another shape"):
        load_trained(shapes.build("residual"), tmp_path)
    other = shapes.build("residual")
    other.head = nn.Linear(16, 9)
    Network(other).save(tmp_path)
    with pytest.raises(CheckpointError, match="'head' has another number of classes"):
        load_trained(shapes.build("residual"), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        load_trained(shapes.build("residual"), tmp_path)
