"""The classification loss, and warnings about the labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.recipes import FineTuneConfig, PretrainConfig
from exporter.sources.splits import Splits
from exporter.training.loop import Loss, class_notes
from exporter.training.stages.base import Context


def labelled_loss(
    config: FineTuneConfig | PretrainConfig, data: Splits, classes: int, context: Context
) -> tuple[tuple[str, ...], Loss]:
    """Warnings about the training labels, and the loss that the configuration sets."""
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
    """The cross entropy with the labels; `weights` [classes] are the weights of the classes."""
    return _CrossEntropy(label_smoothing, weights)


def balanced(labels: Array, classes: int) -> Tensor:
    """Weights [classes] that give every class the same total: samples / (classes * samples of the class).

    `classes` counts the classes with samples; a class without samples has weight zero. The mean weight over
    all samples is one. (King & Zeng, "Logistic Regression in Rare Events Data", 2001; scikit-learn's
    `balanced`.)
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)
    return torch.from_numpy(weights.astype(np.float32))
