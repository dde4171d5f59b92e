"""Removable groups and blocks: removing channels is the same as setting them to zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from exporter.errors import StageError
from exporter.networks.network import call
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import Plan
from exporter.training.shrinking.structure import failure, find_structure, removal

# (name of the group, units, channels of a unit)
EXPECTED = {
    "residual": [("stem", 16, 1), ("first.widen", 24, 1), ("second.widen", 32, 1)],
    "depthwise": [("stem", 16, 1), ("point", 32, 1)],
    "concat": [("left", 8, 1), ("right", 12, 1), ("both", 16, 1)],
    "grouped": [("stem", 4, 4), ("grouped", 8, 4), ("point", 8, 1)],
    "attention": [("patch", 16, 1), ("attention.query", 4, 4), ("up", 32, 1)],
    "fused attention": [("patch", 16, 1), ("attention.qkv", 4, 12), ("up", 32, 1)],
}
_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)


@pytest.fixture
def pictures(shapes):
    return shapes.pictures()


@pytest.fixture
def structure(pictures):
    return lambda module, exclude=(): find_structure(module, pictures, exclude, "stage")


def without(module, removed, pictures):
    """The outputs of the whole network if its layers read zeros in place of the removed channels."""
    module = copy.deepcopy(module)
    for group, units in removed.items():
        roots = {channel for unit in units for channel in group.units[unit]}
        for member in group.members:
            layer = None if isinstance(member.axis, int) else module.get_submodule(member.name)
            lost = [p for p, root in zip(member.positions, member.roots, strict=True) if root in roots]
            if member.axis == "inputs" and isinstance(layer, (nn.Conv2d, nn.Linear)):
                axis = 1 if isinstance(layer, nn.Conv2d) else -1
                layer.register_forward_pre_hook(
                    lambda _layer, args, lost=lost, axis=axis: (
                        args[0].index_fill(axis, torch.tensor(lost, dtype=torch.int64), 0.0),
                    )
                )
    return call(module, pictures)


def is_exact(module, group):
    """Whether no norm computes its statistics over these channels."""
    layers = [module.get_submodule(m.name) for m in group.members if not isinstance(m.axis, int)]
    return not any(isinstance(layer, _NORMS_OVER_CHANNELS) for layer in layers)


def test_groups_and_their_units(name, shapes, structure):
    found = structure(shapes.build(name))
    groups = {group.name: (len(group.units), len(group.units[0])) for group in found.groups}
    assert groups == {label: (units, channels) for label, units, channels in EXPECTED[name]}
    assert list(found.fixed) == ["head"]
    for group in found.groups:
        assert sorted(channel for unit in group.units for channel in unit) == list(range(group.size))


@pytest.mark.parametrize("seed", range(3))
def test_removing_channels_equals_zeroing_them(name, seed, shapes, structure, pictures):
    module = shapes.build(name)
    generator = np.random.default_rng(seed)
    groups = [group for group in structure(module).groups if is_exact(module, group)]
    removed = {
        group: generator.permutation(len(group.units))[: generator.integers(1, len(group.units))].tolist()
        for group in groups
    }
    expected = without(module, removed, pictures)
    cut = rebuild(copy.deepcopy(module), removal(removed))
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in module.parameters())
    torch.testing.assert_close(call(cut, pictures), expected, rtol=1e-4, atol=1e-5)


def test_each_group_can_lose_all_but_one_unit(name, shapes, structure, pictures):
    module = shapes.build(name)
    for group in structure(module).groups:
        plan = removal({group: range(1, len(group.units))})
        assert failure(module, pictures, plan) is None


def test_heads_are_counted(shapes, structure):
    module = shapes.build("fused attention")
    (group,) = (g for g in structure(module).groups if g.heads)
    cut = rebuild(module, removal({group: [0, 2]}))
    assert cut.attention.num_heads == 2
    assert cut.attention.qkv.out_features == 24
    assert cut.attention.project.in_features == 8


def test_outermost_blocks_that_keep_their_shape_can_be_dropped(shapes, structure, pictures):
    module = shapes.build("residual")
    found = structure(module)
    assert found.blocks == ("first", "second")
    assert {name: found.inside(name) for name in found.blocks} == {
        "first": {"first.widen"},
        "second": {"second.widen"},
    }
    assert structure(module, ("second.widen",)).blocks == ("first",)
    x = module.norm(module.stem(pictures["image"]))
    plan = removal({}, ("first",))
    shorter = rebuild(copy.deepcopy(module), plan)
    torch.testing.assert_close(
        call(shorter, pictures), module.head(module.second(torch.relu(x)).mean(dim=(2, 3)))
    )


def test_modules_of_a_chain_can_be_dropped_separately(shapes, structure):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([shapes.ResidualBlock(16, 24), shapes.ResidualBlock(16, 32)])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    class PostNorm(nn.Module):
        """Returns the output of its last layer, but has its own residual sum and is not a chain."""

        def __init__(self):
            super().__init__()
            self.inner, self.widen = shapes.ResidualBlock(16, 24), nn.Conv2d(16, 16, 1)
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x):
            x = self.inner(x)
            return self.norm(x + self.widen(x))

    class Staged(shapes.Residual):
        def __init__(self):
            super().__init__()
            blocks = [shapes.ResidualBlock(16, 8) for _ in range(2)]
            self.first = nn.Sequential(*blocks, nn.Sequential(Stage(), nn.ReLU()))
            self.second = PostNorm()

    assert structure(Staged()).blocks == (
        "first.0",
        "first.1",
        "first.2.0.blocks.0",
        "first.2.0.blocks.1",
        "second",
    )


def test_excluded_modules_are_kept(shapes, structure):
    found = structure(shapes.build("residual"), ("first", "norm"))
    assert [group.name for group in found.groups] == ["second.widen"]
    assert found.fixed["first.widen"] == found.fixed["stem"] == "excluded"


def test_the_output_head_is_kept(shapes, structure):
    assert structure(shapes.build("residual")).fixed == {
        "head": "the network's outputs would change their shape"
    }


def test_tied_weights_are_kept(shapes, structure):
    class Tied(shapes.Residual):
        def __init__(self):
            super().__init__()
            self.second = self.second.__class__(16, 24)
            self.second.widen.weight = self.first.widen.weight

    found = structure(shapes.build(Tied))
    assert found.fixed["first.widen"] == "its weights are tied to another layer's"
    assert found.fixed["second.widen"] == "its weights are tied to another layer's"


def test_a_layer_that_is_called_twice_is_kept(shapes, structure):
    class Twice(shapes.Residual):
        def forward(self, image):
            x = torch.relu(self.norm(self.stem(image)))
            return self.head(self.first(self.first(x)).mean(dim=(2, 3)))

    assert structure(shapes.build(Twice)).fixed["first.widen"] == "it is called more than once"


def test_layers_of_an_unsupported_kind_are_kept(shapes, structure):
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2)
            self.act, self.last, self.head = nn.PReLU(), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

        def forward(self, image):
            x = self.last(self.act(self.up(self.stem(image))))
            return self.head(x.mean(dim=(2, 3)))

    found = structure(shapes.build(Transposed))
    assert [group.name for group in found.groups] == ["last"]
    assert "'up' is a ConvTranspose2d, which cannot be narrowed" in found.fixed.values()


def test_heads_with_a_hard_coded_count_are_kept(shapes, structure):
    class Fixed(shapes.Attention):
        def forward(self, x):
            count, length, _ = x.shape
            q, k, v = (p.reshape(count, length, 4, 4).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
            y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
            return self.project(y.transpose(1, 2).reshape(count, length, 16))

    module = shapes.build("fused attention")
    module.attention.__class__ = Fixed
    assert "the network no longer runs" in structure(module).fixed["attention.qkv"]


def test_interleaved_heads_are_kept(shapes):
    """The rows of the weight are query, key and value of one head, then of the next head.

    The positions of channels do not show this.
    """

    class Mixed(shapes.Attention):
        def forward(self, x):
            count, length, _ = x.shape
            parts = self.qkv(x).reshape(count, length, self.num_heads, 3, 4)
            q, k, v = (part.transpose(1, 2) for part in parts.unbind(3))
            y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
            return self.project(y.transpose(1, 2).reshape(count, length, -1))

    module = shapes.build("fused attention")
    module.attention.__class__ = Mixed
    found = find_structure(module, shapes.pictures(), (), "stage")
    assert "attention.qkv" in found.fixed


def test_value_dependent_control_flow_does_not_stop_the_search(shapes, structure):
    class Dynamic(shapes.Residual):
        def forward(self, image):
            return super().forward(image if image.sum() > 0 else -image)

    assert next(group.name for group in structure(shapes.build(Dynamic)).groups) == "stem"


def test_a_network_that_cannot_be_traced_is_named(shapes, structure):
    class Pair(shapes.Residual):
        def forward(self, image):
            return super().forward(image), image

    with pytest.raises(
        StageError, match=r"stage: the dependencies of the network's channels cannot be traced"
    ):
        structure(shapes.build(Pair))


def test_the_network_itself_is_not_changed(shapes, structure):
    module = shapes.build("depthwise").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    structure(module)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_failure_is_one_line(shapes, pictures):
    module = shapes.build("concat")
    assert failure(module, pictures, Plan(dropped=("left",))).startswith("the network no longer runs (")
    assert (
        failure(module, pictures, Plan(dropped=("head",)))
        == "the network's outputs would change their shape"
    )
    assert failure(module, pictures, Plan()) is None


def test_an_encoder_of_tokens(encoder):
    """The root module counts the heads, and positions are a slice of a weight.

    A dependency graph of layers shows neither.
    """
    inputs = {name: torch.from_numpy(value) for name, value in encoder.draw(2, 12).inputs.items()}
    found = find_structure(encoder.net(), inputs, (), "stage")
    assert [(group.name, len(group.units), group.heads) for group in found.groups] == [("up", 64, ())]
    assert set(found.fixed) == {"head", "out", "qkv"}


def test_heads_of_fused_attention_kernels(shapes, structure, pictures):
    class Kernel(shapes.Attention):
        def forward(self, x):
            count, length, _ = x.shape
            parts = (layer(x) for layer in (self.query, self.key, self.value))
            q, k, v = (p.reshape(count, length, self.num_heads, 4).transpose(1, 2) for p in parts)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.project(y.transpose(1, 2).reshape(count, length, -1))

    module = shapes.build("attention")
    module.attention.__class__ = Kernel
    (group,) = (group for group in structure(module).groups if group.heads)
    expected = without(module, {group: [1]}, pictures)
    cut = rebuild(module, removal({group: [1]}))
    assert cut.attention.num_heads == 3
    torch.testing.assert_close(call(cut, pictures), expected)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 5, 1)],
            "'1' is depthwise with a multiplier",
        ),
        (
            [
                nn.Conv2d(3, 12, 1),
                nn.Conv2d(12, 12, 1, groups=4),
                nn.Conv2d(12, 6, 1, groups=3),
                nn.Conv2d(6, 5, 1),
            ],
            "the groups of its grouped layers do not divide its channels evenly",
        ),
    ],
    ids=["multiplier", "groups"],
)
def test_groups_that_cannot_be_divided_are_kept(structure, layers, reason):
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert reason in structure(module).fixed.values()
