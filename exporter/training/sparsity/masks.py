"""Masks that select the weights to set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.errors import StageError
from exporter.networks.network import matches
from exporter.training.loop import check_modules

Scope = Literal["global", "layer"]
# A layer's weight, and the projection weights that `nn.MultiheadAttention` holds directly.
_MATRICES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(module: nn.Module, exclude: tuple[str, ...], place: str) -> dict[str, nn.Parameter]:
    """Parameter name -> weight, for all convolutions and linear layers that are not excluded.

    The projections of `nn.MultiheadAttention` are included: query, key and value in one weight, or in
    three.

    Biases and norms are not included: they are few, and the network is sensitive to them. Weights that two
    modules share are not included either: a weight that is unimportant for one may be important for the
    other.

    Raises:
        StageError: an excluded module does not exist, or nothing is left to prune.
    """
    check_modules(module, exclude, f"{place}.exclude")
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    owners: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    names = {
        f"{name}.{key}" if name else key
        for name, child in module.named_modules()
        if isinstance(child, kinds) and not matches(name, exclude)
        for key, parameter in child.named_parameters(recurse=False)
        if key in _MATRICES and owners[id(parameter)] == 1
    }
    weights = {name: parameter for name, parameter in module.named_parameters() if name in names}
    if not weights:
        raise StageError(place, "the network has no convolution or linear layer to prune", "check exclude")
    return weights


def magnitude_masks(
    weights: Mapping[str, Tensor], sparsity: float, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Masks that are False for the round(sparsity * n) weights of smallest magnitude.

    (Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015.)
    """
    return lowest_masks({name: weight.abs() for name, weight in weights.items()}, sparsity, scope)


def lowest_masks(
    scores: Mapping[str, Tensor], sparsity: float, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Masks that are False for the round(sparsity * n) lowest scores.

    Scope "global" ranks the scores of all tensors together, so layers with low scores lose more weights;
    scope "layer" ranks each tensor separately. Of equal scores, the earlier one is masked, so the count is
    exact.
    """
    if scope == "layer":
        return {name: lowest_masks({name: score}, sparsity)[name] for name, score in scores.items()}
    # kthvalue is deterministic only on the CPU.
    flat = torch.cat([score.detach().flatten().cpu() for score in scores.values()])
    keep = _all_but_lowest(flat, round(sparsity * flat.numel()))
    pieces = torch.split(keep, [score.numel() for score in scores.values()])
    return {
        name: piece.view_as(score).to(score.device)
        for piece, (name, score) in zip(pieces, scores.items(), strict=True)
    }


def threshold_masks(
    weights: Mapping[str, Tensor], threshold: float, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Masks that are False for magnitudes below a threshold.

    With scope "layer", the threshold is a multiple of the standard deviation of the layer's weights (Han et
    al., 2015, section 3.2); these standard deviations differ by an order of magnitude between layers.
    """
    return {
        name: weight.abs() >= threshold * (float(weight.std()) if scope == "layer" else 1.0)
        for name, weight in weights.items()
    }


def pattern_masks(weights: Mapping[str, Tensor], kept: int, group: int) -> dict[str, Tensor]:
    """Masks for N:M sparsity: keep the `kept` largest magnitudes of every `group` consecutive weights.

    Weights have shape [out, in, ...], and groups run along the input channels, over which a kernel sums
    (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021). Tensors whose number of input
    channels is not a multiple of `group`, for example those of depthwise convolutions, get no mask.
    """
    masks = {}
    for name, weight in weights.items():
        if weight.shape[1] % group:
            continue
        rows = weight.detach().abs().movedim(1, -1)
        groups = rows.reshape(-1, group)
        order = torch.argsort(groups, dim=1, descending=True, stable=True)
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :kept], True)
        masks[name] = mask.view(rows.shape).movedim(-1, 1).contiguous()
    return masks


def joined(masks: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Combine new masks with earlier ones; a weight that was pruned before stays pruned."""
    both = {name: mask & earlier[name] if name in earlier else mask for name, mask in masks.items()}
    return {**earlier, **both}


def _all_but_lowest(flat: Tensor, count: int) -> Tensor:
    """Mask [n] that is False for the `count` lowest values; of equal values, the first are False."""
    if count == 0:
        return torch.ones_like(flat, dtype=torch.bool)
    limit = torch.kthvalue(flat, count).values
    keep = flat > limit
    ties = flat == limit
    spared = ties & (torch.cumsum(ties, 0) > count - int((flat < limit).sum()))
    return keep | spared
