"""The PyTorch stages. Each stage is one function in its own file, and all have the same signature.

    (network, config, data, context) -> (network, result)

A stage changes only the network that it receives, reads only its arguments, and is deterministic for a
given `context.seed`. Each kind of stage has its own result class in `exporter.results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from exporter.results import StepResult
from exporter.training.stages.base import Context, Loaders, Settings, StageFunction
from exporter.training.stages.distill import distill
from exporter.training.stages.finetune import finetune
from exporter.training.stages.pretrain import pretrain
from exporter.training.stages.prune import prune
from exporter.training.stages.qat import qat
from exporter.training.stages.reestimate import reestimate
from exporter.training.stages.shrink import shrink

# `Any` because no type can express that the key equals the configuration's `kind`; reading the recipe
# ensures it.
STAGES: Final[Mapping[str, StageFunction[Any, StepResult]]] = {
    "finetune": finetune,
    "pretrain": pretrain,
    "prune": prune,
    "shrink": shrink,
    "distill": distill,
    "reestimate": reestimate,
    "qat": qat,
}

__all__ = ["STAGES", "Context", "Loaders", "Settings", "StageFunction"]
