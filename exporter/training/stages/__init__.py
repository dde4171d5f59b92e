"""The stages in PyTorch. Each is one file and one function behind one signature.

    (network, config, data, context) -> (network, metrics)

A stage changes nothing but the network that it is given, reads nothing but its arguments, and is
deterministic in `context.seed`. Metrics are plain JSON.
"""

from __future__ import annotations

from exporter.training.stages.base import Context, Metrics, StageFunction
from exporter.training.stages.distill import distill
from exporter.training.stages.finetune import finetune
from exporter.training.stages.pretrain import pretrain
from exporter.training.stages.prune import prune
from exporter.training.stages.qat import qat
from exporter.training.stages.reestimate import reestimate
from exporter.training.stages.shrink import shrink

STAGES: dict[str, StageFunction] = {
    "finetune": finetune,
    "pretrain": pretrain,
    "prune": prune,
    "shrink": shrink,
    "distill": distill,
    "reestimate": reestimate,
    "qat": qat,
}

__all__ = ["STAGES", "Context", "Metrics", "StageFunction"]
