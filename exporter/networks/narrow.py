"""Remove channels from one layer."""

from __future__ import annotations

from types import UnionType

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from exporter.errors import PlanError
from exporter.networks.layer_kinds import BatchNorm, InstanceNorm
from exporter.networks.shrink_plan import Kept, KeptChannels

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Layers with the same channels as inputs and outputs, along the last axis of all their tensors, and the
# attribute that holds the number of channels.
_COUNTS: tuple[tuple[type[nn.Module] | UnionType, str], ...] = (
    (BatchNorm, "num_features"),
    (InstanceNorm, "num_features"),
    (nn.LayerNorm, "normalized_shape"),
    (nn.GroupNorm, "num_channels"),
    (nn.PReLU, "num_parameters"),
    (nn.Embedding, "embedding_dim"),
)
OTHER_NETWORK = "check that the plan was written for this network"


def channels(layer: nn.Module, side: str) -> int | None:
    """Number of channels of a layer's `inputs` or `outputs`; None if `narrow` cannot narrow the layer."""
    if is_parametrized(layer) or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
        return None
    if isinstance(layer, _CONVOLUTIONS):
        return layer.out_channels if side == "outputs" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if side == "outputs" else layer.in_features
    name = next((name for kind, name in _COUNTS if isinstance(layer, kind)), None)
    count: int | tuple[int, ...] = () if name is None else getattr(layer, name)
    if isinstance(count, tuple):  # the shape of a LayerNorm
        return count[0] if len(count) == 1 else None
    return int(count)


def narrow(layer: nn.Module, name: str, kept: KeptChannels) -> None:
    """Remove all channels of a layer except the kept ones, in place.

    Args:
        layer: a convolution with any number of groups, a linear layer, a norm, PReLU or an embedding.
        name: the layer's name in errors.
        kept: ascending indices of the kept channels. For a layer with the same channels as inputs and
            outputs, one side is enough.

    Raises:
        PlanError: the layer has fewer channels than the indices require, or is of another kind.
    """
    out_count, in_count = channels(layer, "outputs"), channels(layer, "inputs")
    if out_count is None or in_count is None:
        raise PlanError(name, f"is a {type(layer).__name__}, which cannot be narrowed", OTHER_NETWORK)
    if isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
        out, into = kept_index(kept.outputs, out_count, name), kept_index(kept.inputs, in_count, name)
        if isinstance(layer, nn.Linear):
            layer.weight = parameter(layer.weight[out][:, into], layer.weight)
            layer.out_features, layer.in_features = len(out), len(into)
        else:
            _narrow_convolution(layer, name, out, into)
        if layer.bias is not None:
            layer.bias = parameter(layer.bias[out], layer.bias)
    else:
        if None not in (kept.outputs, kept.inputs) and kept.outputs != kept.inputs:
            raise PlanError(
                name,
                "has the same channels as inputs and outputs, but the plan lists different indices",
                "list the same indices for both",
            )
        chosen = kept.outputs if kept.inputs is None else kept.inputs
        _narrow_channelwise(layer, name, kept_index(chosen, out_count, name))


def kept_index(kept: Kept | None, size: int, name: str) -> Tensor:
    """The kept channels of an axis of `size` channels as an index tensor; None keeps all.

    Raises:
        PlanError: an index is not below `size`.
    """
    if kept is None:
        return torch.arange(size)
    if kept[-1] >= size:
        raise PlanError(name, f"has no channel {kept[-1]}, only {size} channels", OTHER_NETWORK)
    return torch.tensor(kept)


def parameter(value: Tensor, old: Tensor) -> nn.Parameter:
    """A parameter with separate memory, in the memory layout of the parameter that it replaces."""
    value = value.detach().clone()
    if old.ndim == 4 and not old.is_contiguous():  # keep the channels-last layout of a network
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=old.requires_grad)


def _narrow_convolution(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, name: str, out: Tensor, into: Tensor
) -> None:
    """Narrow a convolution; groups without kept channels are removed, the others must keep equally many."""
    per_out, per_in = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    out_counts = torch.bincount(out // per_out, minlength=layer.groups)
    in_counts = torch.bincount(into // per_in, minlength=layer.groups)
    alive = out_counts > 0
    if not torch.equal(alive, in_counts > 0) or not _even(out_counts[alive]) or not _even(in_counts[alive]):
        raise PlanError(
            name, "would keep groups of unequal size", "keep the same number of channels in each group"
        )
    groups = int(alive.sum())
    # For each kept output, the kept inputs of its group.
    columns = (into % per_in).view(groups, -1).repeat_interleave(len(out) // groups, dim=0)
    rows = torch.arange(len(out))[:, None]
    layer.weight = parameter(layer.weight[out][rows, columns], layer.weight)
    layer.out_channels, layer.in_channels, layer.groups = len(out), len(into), groups


def _narrow_channelwise(layer: nn.Module, name: str, index: Tensor) -> None:
    if isinstance(layer, nn.GroupNorm):
        per_group = layer.num_channels // layer.num_groups
        if not _even(torch.bincount(index // per_group, minlength=layer.num_groups)):
            raise PlanError(
                name, "would keep groups of unequal size", "keep the same number of channels in each group"
            )
    for key, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim:  # scalars, for example a norm's number of batches, have no channels
            left = value.index_select(-1, index)
            setattr(layer, key, parameter(left, value) if isinstance(value, nn.Parameter) else left)
    for kind, count in _COUNTS:
        if isinstance(layer, kind):
            setattr(layer, count, (len(index),) if count == "normalized_shape" else len(index))


def _even(counts: Tensor) -> bool:
    return bool((counts == counts[0]).all())
