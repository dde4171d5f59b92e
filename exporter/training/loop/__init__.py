"""The training loop. All stages that train use it, with their own loss and hooks."""

from __future__ import annotations

from exporter.training.loop.checkpoints import Checkpoints
from exporter.training.loop.checks import check_classes, check_modules, class_notes, hold_out
from exporter.training.loop.engine import ONE_CPU, Engine
from exporter.training.loop.fit import Loss, fit
from exporter.training.loop.freezing import frozen_modules
from exporter.training.loop.hooks import Hook
from exporter.training.loop.rates import warmup_cosine

__all__ = [
    "ONE_CPU",
    "Checkpoints",
    "Engine",
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
