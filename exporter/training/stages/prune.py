"""Unstructured pruning: single weights become zero, and stay zero in all later stages and in int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from exporter.networks.network import Network, accuracy
from exporter.recipes import PruneConfig
from exporter.results import PruneResult, Trained
from exporter.sources.splits import Splits
from exporter.training.loop import check_classes
from exporter.training.sparsity.gradual import Gradual
from exporter.training.sparsity.masks import (
    joined,
    magnitude_masks,
    pattern_masks,
    prunable_weights,
    threshold_masks,
)
from exporter.training.sparsity.sizes import compressed_bytes
from exporter.training.stages.base import Context
from exporter.training.stages.labelled_loss import cross_entropy


def prune(
    network: Network, config: PruneConfig, data: Splits, context: Context
) -> tuple[Network, PruneResult]:
    """Set weights to zero by the rule of `target`, in one step or during training.

    Weights that an earlier stage pruned count towards the target. ONNX Runtime's dense kernels are not
    faster with zeros. Pruning has two benefits: the file compresses better (`int8_compressed_ratio` states
    by how much), and the network can be the starting point of a distillation.

    Raises:
        StageError: an excluded module does not exist, nothing is left to prune, or training fails.
    """
    before, already = accuracy(network.module, data.evaluation), network.sparsity()
    weights = prunable_weights(network.module, config.exclude, context.name)
    dense_bytes = compressed_bytes(weights)
    trained = Trained()
    if config.gradual is None:
        pruned = replace(network, masks=joined(chosen_masks(weights, config), network.masks))
        pruned.apply_masks()
    else:
        pruned, trained = _prune_gradually(network, list(weights), config, data, context)
    sparse_bytes = compressed_bytes(weights)
    return pruned, PruneResult(
        warnings=context.warned(_notes(pruned, already, config)),
        **dict(pruned.zero_counts()),
        layers={name: 1 - float(mask.float().mean()) for name, mask in pruned.masks.items()},
        compressed_bytes_before=dense_bytes,
        compressed_bytes=sparse_bytes,
        int8_compressed_ratio=sparse_bytes.int8 / dense_bytes.int8,
        accuracy_before=before,
        evaluation_accuracy=accuracy(pruned.module, data.evaluation),
        **dict(trained),
    )


def _prune_gradually(
    network: Network, names: list[str], config: PruneConfig, data: Splits, context: Context
) -> tuple[Network, Trained]:
    """Prune the named weights while training."""
    sparsity, gradual = config.target.sparsity, config.gradual
    assert sparsity is not None  # reading the recipe ensures it
    assert gradual is not None
    check_classes(network.module, data, context.name)
    masks = dict(network.masks)  # the hook changes this copy
    hook = Gradual(names, sparsity, scope=config.scope, method=config.method, config=gradual)
    trained = context.fit(replace(network, masks=masks), data, gradual, cross_entropy(), hooks=[hook])
    return replace(network, masks={name: mask.cpu() for name, mask in masks.items()}), trained


def _notes(pruned: Network, already: float, config: PruneConfig) -> list[str]:
    """Warnings about the result; `already` is the sparsity before the stage."""
    empty = [name for name, mask in pruned.masks.items() if not mask.any()]
    notes = [f"all weights of {name} were pruned: exclude it, or prune less" for name in empty]
    if pruned.sparsity() == already:
        notes.append(f"no weight was pruned: {_why_none(config)}")
    return notes


def _why_none(config: PruneConfig) -> str:
    if config.target.pattern is not None:
        return f"the pattern {config.target.pattern} does not divide the input channels of any layer"
    if config.target.threshold is not None:
        return f"no weight is below the threshold {config.target.threshold:g}"
    return f"a fraction of {config.target.sparsity:g} is already zero, or is less than one weight"


def chosen_masks(weights: Mapping[str, Tensor], config: PruneConfig) -> dict[str, Tensor]:
    """Masks for pruning in one step, by the rule of `config.target`."""
    detached = {name: weight.detach() for name, weight in weights.items()}
    if config.target.threshold is not None:
        return threshold_masks(detached, config.target.threshold, config.scope)
    if config.target.pattern is not None:
        kept, group = config.target.kept_and_group()
        return pattern_masks(detached, kept, group)
    assert config.target.sparsity is not None
    return magnitude_masks(detached, config.target.sparsity, config.scope)
