"""Importance scores for the units of a group."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core.arrays import Array
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import EVALUATION_BATCH, call
from exporter.options import Importance
from exporter.sources.splits import Split
from exporter.training.shrinking.groups import Group, Member


def unit_scores(
    module: nn.Module, groups: Sequence[Group], kind: Importance, split: Split
) -> dict[str, Array]:
    """The importance of every unit: group name -> scores [units], at least 0.

    magnitude: the squared L2 norm of the unit's weights in each layer, as a fraction of the layer's squared
        norm, summed over layers (the group norm of Torch-Pruning: Fang et al., CVPR 2023, equation 5).
    taylor: |sum of weight x gradient| over the same weights: to first order, the change of the loss when
        they become zero (Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019).
    bn_scale: the scales of the unit's BatchNorms (Liu et al., "Network slimming", ICCV 2017); for a group
        without BatchNorms, the magnitude.

    Args:
        module: the network.
        groups: groups of the network.
        kind: one of the three measures.
        split: labelled samples; only `taylor` uses them.
    """
    gradients = _gradients(module, split) if kind == "taylor" else None
    return {group.name: _scores(module, group, kind, gradients) for group in groups}


def weakest(scores: Array, kept: int) -> list[int]:
    """The least important units, to remove so that `kept` units remain; of equal units, the later."""
    order = np.argsort(-scores, kind="stable")
    return sorted(int(unit) for unit in order[kept:])


def _scores(
    module: nn.Module, group: Group, kind: Importance, gradients: Mapping[str, Tensor] | None
) -> Array:
    found = np.zeros(group.size)
    members = group.members
    if kind == "bn_scale":
        members = tuple(m for m in members if _is_batch_norm(module, m)) or members
    for member in members:
        if (weight := _weight(module, member)) is None:
            continue
        name, axis = weight
        value = module.get_parameter(name).detach()
        if gradients is not None:
            if name not in gradients:
                continue
            each = _rows(value * gradients[name], axis).sum(dim=1).abs()
        else:
            each = _rows(value, axis).square().sum(dim=1)
            each = each / each.sum().clamp_min(1e-12)
        np.add.at(found, list(member.roots), each.double().numpy()[list(member.positions)])
    return np.array([found[list(unit)].sum() for unit in group.units])


def _weight(module: nn.Module, member: Member) -> tuple[str, int] | None:
    """Name of a member's weight and the axis of its channels, or None if no axis holds them."""
    if isinstance(member.axis, int):
        return member.name, member.axis
    layer = module.get_submodule(member.name)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None
    axis = 0 if member.axis == "outputs" else 1
    if weight.ndim == 1 or isinstance(layer, nn.Embedding):
        axis = weight.ndim - 1
    # A depthwise weight holds its channels only along the output axis, so it is counted once.
    return (f"{member.name}.weight", axis) if weight.shape[axis] == member.size else None


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _is_batch_norm(module: nn.Module, member: Member) -> bool:
    if isinstance(member.axis, int):
        return False
    return isinstance(module.get_submodule(member.name), BatchNorm)


def _gradients(module: nn.Module, split: Split) -> dict[str, Tensor]:
    """Mean gradient of the cross-entropy over a split, in evaluation mode."""
    module = copy.deepcopy(module).eval().requires_grad_(True)
    total = split.count
    for start in range(0, total, EVALUATION_BATCH):
        part = split.take(np.arange(start, min(start + EVALUATION_BATCH, total)))
        inputs = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in part.inputs.items()}
        labels = torch.from_numpy(part.labels.astype(np.int64))
        loss = functional.cross_entropy(call(module, inputs), labels, reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
