"""Importance scores of units, and the damage of removing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.networks.network import predict
from exporter.networks.shrink_plan import Plan
from exporter.sources.splits import Split
from exporter.training.shrinking.damage import Damage, interpolate
from exporter.training.shrinking.importance import unit_scores, weakest
from exporter.training.shrinking.structure import find_structure, removal


@pytest.fixture
def judges(shapes):
    images = shapes.pictures(70)["image"].numpy()
    return Split({"image": images}, np.arange(70) % 5)


def groups_of(module, shapes):
    return find_structure(module, shapes.pictures(), (), "stage").groups


@pytest.mark.parametrize("kind", ["taylor", "magnitude", "bn_scale"])
def test_a_unit_without_effect_has_the_lowest_score(shapes, name, judges, kind):
    """A channel whose weights are all zero has the lowest score."""
    module = shapes.build(name)
    for group in groups_of(module, shapes):
        unit = len(group.units) // 2
        silent = shapes.build(name)
        with torch.no_grad():
            for member in group.members:
                if isinstance(member.axis, int):
                    continue
                gone = [
                    p
                    for p, root in zip(member.positions, member.roots, strict=True)
                    if root in group.units[unit]
                ]
                layer = silent.get_submodule(member.name)
                for value in layer.parameters(recurse=False):
                    if member.axis == "inputs" and value.ndim > 1 and value.shape[1] == member.size:
                        value[:, gone] = 0
                    elif member.axis == "outputs" or (value.ndim == 1 and len(value) == member.size):
                        value[gone] = 0
                if "position" in dict(silent.named_parameters()) and group.name == "patch":
                    silent.position[..., gone] = 0
        scores = unit_scores(silent, [group], kind, judges)[group.name]
        assert scores.shape == (len(group.units),)
        assert (scores >= 0).all()
        if name != "grouped":  # weights of a grouped layer have no full input axis and are not zeroed above
            assert scores[unit] == scores.min() == 0.0


def test_taylor_is_the_slope_of_the_loss(shapes, judges):
    """The definition: |sum of weight x gradient| of each tensor of the unit, summed."""
    module = shapes.build("residual")
    group = next(g for g in groups_of(module, shapes) if g.name == "first.widen")
    scores = unit_scores(module, [group], "taylor", judges)["first.widen"]
    inputs, labels = torch.from_numpy(judges.inputs["image"]), torch.from_numpy(judges.labels)
    torch.nn.functional.cross_entropy(module(inputs), labels).backward()
    block = module.first
    expected = sum(
        (value * value.grad).movedim(axis, 0).reshape(24, -1).sum(dim=1).abs()
        for value, axis in ((block.widen.weight, 0), (block.norm.weight, 0), (block.narrow.weight, 1))
    )
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-3, atol=1e-7)


def test_the_network_keeps_no_gradients(shapes, judges):
    module = shapes.build("residual")
    unit_scores(module, groups_of(module, shapes), "taylor", judges)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_of_equal_units_the_later_are_removed():
    assert weakest(np.array([1.0, 1.0, 2.0, 1.0]), 2) == [1, 3]
    assert weakest(np.array([3.0, 1.0]), 2) == []


def test_damage_is_the_divergence_of_the_predictions(shapes, judges):
    module = shapes.build("residual")
    damage = Damage(module, judges)
    hits = (predict(module, judges).argmax(axis=1) == judges.labels).mean()
    assert damage.of(Plan()) == (0.0, hits)
    before = torch.from_numpy(predict(module, judges)).log_softmax(dim=1)
    nats, _ = damage.of(Plan(dropped=("second",)))
    module.second = torch.nn.Identity()
    after = torch.from_numpy(predict(module, judges)).log_softmax(dim=1)
    expected = torch.nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)
    assert nats == pytest.approx(float(expected), rel=1e-4)


def test_a_curve_narrows_one_group_alone(shapes, judges):
    module = shapes.build("residual")
    group = groups_of(module, shapes)[1]
    scores = np.arange(24, dtype=float)
    curve = Damage(module, judges).curve(group, scores, (1.0, 0.75, 0.5, 0.01))
    assert sorted(curve) == [1, 12, 18]
    assert curve[12] == Damage(module, judges).of(removal({group: range(12)}))


def test_between_measured_widths_damage_follows_the_importance_lost():
    def mass(width):
        return {8: 0.0, 7: 1.0, 6: 3.0, 4: 4.0, 2: 6.0, 1: 8.0}[width]

    assert interpolate((8, 7, 6, 4, 2, 1), {8: 0.0, 4: 2.0, 2: 5.0}, mass) == [
        0.0,
        0.5,
        1.5,
        2.0,
        5.0,
        pytest.approx(8.0 / 6.0 * 5.0),
    ]


def test_damage_never_falls_with_the_width_and_needs_no_importance():
    assert interpolate((4, 3, 2, 1), {4: 0.0, 3: 2.0, 2: 1.0}, lambda _: 0.0) == [
        0.0,
        2.0,
        2.0,
        pytest.approx(3.0),
    ]
