"""Fine-tuning: fit a pretrained network to the data at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bench.arrays import Array
from exporter.data import Splits
from exporter.errors import StageError
from exporter.network import Network, accuracy, deterministic
from exporter.recipe import FineTuneConfig, PretrainConfig
from exporter.stages.base import Context, Metrics
from exporter.stages.few_shot import few_shot_curve, random_network, unfrozen
from exporter.training import Loss, check_classes, check_modules, class_notes


def finetune(
    network: Network, config: FineTuneConfig, data: Splits, context: Context
) -> tuple[Network, Metrics]:
    """Train on `data`; with `from_scratch` and `few_shot`, train random networks beside it to compare."""
    classes = check_classes(network.module, data, context.name)
    warnings, loss = labelled_loss(config, data, classes, context)
    curve = None
    if config.few_shot is not None:
        # So many of each class weigh alike already.
        even = cross_entropy(config.label_smoothing)
        curve = few_shot_curve(network, config, data, context, few=config.few_shot, loss=even)
    if config.head is not None:
        reset_head(network.module, config.head, context)
    fitted = context.fit(network, data, config, loss)
    metrics: Metrics = {
        **warnings,
        "evaluation_accuracy": accuracy(network.module, data.evaluation),
        **fitted.as_json(),
    }
    if config.from_scratch:
        metrics["from_scratch"] = _train_from_scratch(network, config, data, loss, context)
    if curve is not None:
        metrics["few_shot"] = curve
    return network, metrics


def labelled_loss(
    config: FineTuneConfig | PretrainConfig, data: Splits, classes: int, context: Context
) -> tuple[Metrics, Loss]:
    """What a person should know of the training labels, as a warning, and the loss that is asked for."""
    weighted = config.class_weights == "balanced"
    notes = class_notes(data.train.labels, classes, config.validation, weighted=weighted)
    weights = balanced(data.train.labels, classes) if weighted else None
    return context.warned(notes), cross_entropy(config.label_smoothing, weights)


class _CrossEntropy(nn.Module):
    def __init__(self, label_smoothing: float, weights: Tensor | None) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing)

    def forward(self, _inputs: Mapping[str, Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.criterion(outputs, labels)
        return value


def cross_entropy(label_smoothing: float = 0.0, weights: Tensor | None = None) -> Loss:
    """The usual loss of classification, with the labels alone; `weights` [classes] count the classes."""
    return _CrossEntropy(label_smoothing, weights)


def balanced(labels: Array, classes: int) -> Tensor:
    """Weights [classes] that make every class count alike: samples / (classes * samples of the class).

    The mean over all samples is one; a class without samples weighs nothing. (King & Zeng, "Logistic
    Regression in Rare Events Data", 2001; scikit-learn's `balanced`.)
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


def reset_head(module: nn.Module, name: str, context: Context) -> None:
    """Initialise a module anew, and all below it.

    Raises:
        StageError: there is no such module, or nothing in it can be initialised.
    """
    check_modules(module, (name,), f"{context.name}.head")
    head = module.get_submodule(name)
    resets = [
        cast("Callable[[], None]", child.reset_parameters)
        for child in head.modules()
        if hasattr(child, "reset_parameters")
    ]
    if not resets:
        raise StageError(f"{context.name}.head", f"{name!r} has no weights", "name a layer that has")
    with deterministic(context.seed, f"{context.name}.head"):
        for reset in resets:
            reset()


def _train_from_scratch(
    start: Network, config: FineTuneConfig, data: Splits, loss: Loss, context: Context
) -> Metrics:
    """The same network, budget and data without the pretrained weights, and so nothing frozen."""
    name = f"{context.name} from scratch"
    network = random_network(start, name, context)
    fitted = context.fit(network, data, unfrozen(config), loss, name=name)
    return {"evaluation_accuracy": accuracy(network.module, data.evaluation), **fitted.as_json()}
