"""Fitting weights: one loop for all stages that train. What differs between them is loss and hooks."""

from __future__ import annotations

from exporter.training.checkpoints import Checkpoints
from exporter.training.checks import check_classes, check_modules, class_notes, hold_out
from exporter.training.engine import ONE_CPU, Engine
from exporter.training.freezing import frozen_modules
from exporter.training.hooks import Hook
from exporter.training.loop import Epoch, Fitted, Loss, fit
from exporter.training.rates import warmup_cosine

__all__ = [
    "ONE_CPU",
    "Checkpoints",
    "Engine",
    "Epoch",
    "Fitted",
    "Hook",
    "Loss",
    "check_classes",
    "check_modules",
    "class_notes",
    "fit",
    "frozen_modules",
    "hold_out",
    "warmup_cosine",
]
