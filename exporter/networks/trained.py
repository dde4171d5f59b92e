"""Load a finished network in a user's own code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.files import AnyPath

if TYPE_CHECKING:
    from torch import nn


def load_trained(module: nn.Module, folder: AnyPath) -> nn.Module:
    """Apply the plan of a build to a network that its factory has built, and load the build's weights.

    Args:
        module: the network, changed in place.
        folder: output folder of `edgeproof build RECIPE --until STAGE --out FOLDER`. It contains
            `weights.safetensors`, and `plan.json` if the network was shrunk. No pickle is read.

    Returns:
        The same module.

    Raises:
        PlanError: the plan is damaged, or belongs to another network.
        CheckpointError: the weights are missing, damaged, or belong to another network.

    Examples:
        >>> import exporter
        >>> from net import Net  # the network that the recipe names
        >>> stopped = exporter.build("recipe.toml", until="finetune", out="finetuned")
        >>> network = exporter.load_trained(Net(), "finetuned")
        >>> network.training
        True
    """
    from exporter.errors import CheckpointError
    from exporter.networks.network import WEIGHTS
    from exporter.networks.rebuild import rebuild
    from exporter.networks.shrink_plan import PLAN
    from exporter.sources.checkpoint import load_into, read_checkpoint

    plan, weights = Path(folder) / PLAN, Path(folder) / WEIGHTS
    state = read_checkpoint(weights)
    if plan.exists():
        rebuild(module, plan)
    if (head := load_into(module, state, weights).new_head) is not None:
        raise CheckpointError(
            weights,
            f"its layer {head!r} has another number of classes than the network",
            "correct the factory's arguments",
        )
    return module
