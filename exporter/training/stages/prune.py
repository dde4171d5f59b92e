"""Unstructured pruning: single weights become zero and stay so, through all later stages and into int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from exporter.networks.network import Network, accuracy
from exporter.recipes import PruneConfig
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
from exporter.training.stages.base import Context, Metrics
from exporter.training.stages.labelled_loss import cross_entropy


def prune(network: Network, config: PruneConfig, data: Splits, context: Context) -> tuple[Network, Metrics]:
    """Zero weights by the rule of `target`, at once or while training.

    Weights that an earlier stage pruned count towards the target. ONNX Runtime's dense kernels gain no
    time from zeros; what they buy is a file that compresses better, by as much as the metrics say, and a
    start for distillation.

    Raises:
        StageError: an excluded module does not exist, nothing is left to prune, or training fails.
    """
    before, already = accuracy(network.module, data.evaluation), network.sparsity()
    weights = prunable_weights(network.module, config.exclude, context.name)
    dense_bytes = compressed_bytes(weights)
    training: Metrics = {}
    if config.gradual is not None:
        assert config.target.sparsity is not None  # as the recipe makes sure
        check_classes(network.module, data, context.name)
        masks = dict(network.masks)  # which the hook changes
        hook = Gradual(list(weights), config.target.sparsity, config.scope, config.method, config.gradual)
        fitted = context.fit(
            replace(network, masks=masks), data, config.gradual, cross_entropy(), hooks=[hook]
        )
        pruned = replace(network, masks={name: mask.cpu() for name, mask in masks.items()})
        training = fitted.as_json()
    else:
        pruned = replace(network, masks=joined(chosen_masks(weights, config), network.masks))
        pruned.apply_masks()
    sparse_bytes = compressed_bytes(weights)
    empty = [name for name, mask in pruned.masks.items() if not mask.any()]
    notes = [f"{name} has no weight left: exclude it, or prune less" for name in empty]
    if pruned.sparsity() == already:
        notes.append(f"no weight was pruned: {_why_none(config)}")
    return pruned, {
        **context.warned(notes),
        **pruned.zero_counts().as_json(),
        "layers": {name: 1 - float(mask.float().mean()) for name, mask in pruned.masks.items()},
        "compressed_bytes_before": dense_bytes,
        "compressed_bytes": sparse_bytes,
        "int8_compressed_ratio": sparse_bytes["int8"] / dense_bytes["int8"],
        "accuracy_before": before,
        "evaluation_accuracy": accuracy(pruned.module, data.evaluation),
        **training,
    }


def _why_none(config: PruneConfig) -> str:
    if config.target.pattern is not None:
        return f"no layer's input channels are a multiple of the pattern {config.target.pattern}"
    if config.target.threshold is not None:
        return f"none is smaller than the threshold {config.target.threshold:g}"
    return f"so many are zero already, or {config.target.sparsity:g} of them is less than one"


def chosen_masks(weights: Mapping[str, Tensor], config: PruneConfig) -> dict[str, Tensor]:
    """The masks of pruning at once."""
    detached = {name: weight.detach() for name, weight in weights.items()}
    if config.target.threshold is not None:
        return threshold_masks(detached, config.target.threshold, config.scope)
    if config.target.pattern is not None:
        kept, group = config.target.kept_and_group()
        return pattern_masks(detached, kept, group)
    assert config.target.sparsity is not None
    return magnitude_masks(detached, config.target.sparsity, config.scope)
