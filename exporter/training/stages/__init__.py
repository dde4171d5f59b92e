"""The stages in PyTorch. Each is one file and one function behind one signature.

    (network, config, data, context) -> (network, result)

A stage changes nothing but the network that it is given, reads nothing but its arguments, and is
deterministic in `context.seed`. Each kind of stage has its own class of results in `exporter.results`.
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

# `Any` because no type can say that the configuration's `kind` is the key: the recipe's reader sees to it.
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
