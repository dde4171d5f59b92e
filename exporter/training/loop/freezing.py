"""Freeze and unfreeze parts of a network by epoch."""

from __future__ import annotations

from torch import nn

from exporter.errors import StageError
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import matches
from exporter.recipes import Training


def frozen_modules(config: Training, epoch: int) -> tuple[str, ...]:
    """The modules of `freeze` that are still frozen in an epoch.

    All of them are trained from `unfreeze_epoch` on. With `unfreeze_every` n, the last one in `freeze` is
    trained first, and one more every n epochs (Howard & Ruder, "Universal Language Model Fine-tuning",
    2018, section 3.3).
    """
    if config.unfreeze_epoch is None or epoch < config.unfreeze_epoch:
        return config.freeze
    if config.unfreeze_every is None:
        return ()
    thawed = 1 + (epoch - config.unfreeze_epoch) // config.unfreeze_every
    return config.freeze[: max(0, len(config.freeze) - thawed)]


def last_change(config: Training) -> int:
    """The first epoch from which the set of trained parameters no longer changes."""
    if config.unfreeze_epoch is None:
        return config.probe_epochs
    waiting = (len(config.freeze) - 1) * (config.unfreeze_every or 0)
    return max(config.probe_epochs, config.unfreeze_epoch + waiting)


def set_learning(module: nn.Module, config: Training, epoch: int, place: str) -> None:
    """Set training mode, except for frozen modules: these get no gradients and keep their norm statistics.

    In the first `probe_epochs` epochs only the last layer is trained (linear probe, then fine-tune: Kumar
    et al., "Fine-Tuning can Distort Pretrained Features", 2022).

    Raises:
        StageError: all parameters are frozen.
    """
    frozen = frozen_modules(config, epoch)
    head: str | None = None
    if epoch < config.probe_epochs:
        chosen: str | None = getattr(config, "head", None)
        head = chosen or last_layer(module)
    module.train()
    for name, child in module.named_modules():
        norm = isinstance(child, BatchNorm) and config.norm_statistics == "frozen"
        if norm or matches(name, frozen) or (head is not None and not _on_the_way(name, head)):
            child.eval()
    for name, parameter in module.named_parameters():
        probed = not head or matches(name, (head,))
        parameter.requires_grad_(probed and not matches(name, frozen))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise StageError(
            f"{place}.freeze", f"all weights are frozen in epoch {epoch}", "freeze fewer modules"
        )


def last_layer(module: nn.Module) -> str:
    """Name of the module that owns the last parameter, the head of a classifier; "" for a single layer."""
    return [name.rpartition(".")[0] for name, _ in module.named_parameters()][-1]


def check_norms(module: nn.Module, place: str, way_out: str) -> None:
    """Reject a batch of one sample if a BatchNorm would compute its statistics from it.

    Call it while the network is in training mode. `way_out` is the first fix in the error; the second is to
    freeze the statistics.

    Raises:
        StageError: a BatchNorm is in training mode.
    """
    norms = [name for name, m in module.named_modules() if isinstance(m, BatchNorm) and m.training]
    if norms:
        raise StageError(
            place,
            f"the BatchNorm {norms[0]!r} cannot compute statistics from a batch of one sample",
            f'{way_out}, or set norm_statistics = "frozen"',
        )


def _on_the_way(name: str, head: str) -> bool:
    """Whether a module is the head, is inside the head or contains the head; other modules stay frozen."""
    return name == "" or matches(name, (head,)) or head.startswith(f"{name}.")
