"""Global magnitude pruning: the weights nearest to zero become zero and stay so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.data import Splits
from exporter.errors import StageError
from exporter.network import Network, accuracy, matches
from exporter.recipe import PruneConfig
from exporter.stages.base import Context, Metrics
from exporter.training import check_modules


def prune(network: Network, config: PruneConfig, data: Splits, context: Context) -> tuple[Network, Metrics]:
    """Zero the share `target.sparsity` of smallest magnitude, over all layers together.

    Weights that an earlier stage pruned count towards the target. ONNX Runtime's dense kernels gain no
    time from zeros; what they buy is a file that compresses better, and a start for distillation.
    """
    before = accuracy(network.module, data.evaluation)
    weights = prunable_weights(network.module, config.exclude, context.name)
    masks = magnitude_masks(weights, config.target.sparsity)
    pruned = Network(network.module, {**network.masks, **_joined(masks, network)})
    pruned.apply_masks()
    return pruned, {
        "sparsity": pruned.sparsity(),
        "layers": {name: 1 - float(mask.float().mean()) for name, mask in pruned.masks.items()},
        "accuracy_before": before,
        "evaluation_accuracy": accuracy(pruned.module, data.evaluation),
    }


def prunable_weights(module: nn.Module, exclude: tuple[str, ...], place: str) -> dict[str, Tensor]:
    """Parameter name -> weight of all convolutions and linear layers that are not excluded.

    Biases and norms stay: they are few, and the network is sensitive to them.

    Raises:
        StageError: an excluded module does not exist, or nothing is left to prune.
    """
    modules = dict(module.named_modules())
    check_modules(module, exclude, f"{place}.exclude")
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {
        f"{name}.weight" if name else "weight": child.weight.detach()
        for name, child in modules.items()
        if isinstance(child, kinds) and not matches(name, exclude)
    }
    if not weights:
        raise StageError(place, "the network has no convolution or linear layer to prune", "check exclude")
    return weights


def magnitude_masks(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks that are False for the round(sparsity * n) weights of smallest magnitude.

    Ranked over all tensors together, so that layers with small weights give more; of equal magnitudes
    the earlier one goes, so that the count is exact.
    """
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    keep = torch.ones(flat.numel(), dtype=torch.bool)
    order = torch.argsort(flat, stable=True)
    keep[order[: round(sparsity * flat.numel())]] = False
    pieces = torch.split(keep, [weight.numel() for weight in weights.values()])
    return {name: piece.view_as(w) for piece, (name, w) in zip(pieces, weights.items(), strict=True)}


def _joined(masks: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    """What was pruned before stays pruned, even where its zero tied with others."""
    return {
        name: mask & network.masks[name] if name in network.masks else mask for name, mask in masks.items()
    }
