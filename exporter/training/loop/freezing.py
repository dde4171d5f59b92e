"""Which parts of a network learn in which epoch."""

from __future__ import annotations

from torch import nn

from exporter.errors import StageError
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import matches
from exporter.recipes import Training


def frozen_modules(config: Training, epoch: int) -> tuple[str, ...]:
    """The modules of `freeze` that are still frozen in an epoch.

    From `unfreeze_epoch` on they learn, all at once; with `unfreeze_every` n the last named first, and one
    more every n epochs (Howard & Ruder, "Universal Language Model Fine-tuning", 2018, section 3.3).
    """
    if config.unfreeze_epoch is None or epoch < config.unfreeze_epoch:
        return config.freeze
    if config.unfreeze_every is None:
        return ()
    thawed = 1 + (epoch - config.unfreeze_epoch) // config.unfreeze_every
    return config.freeze[: max(0, len(config.freeze) - thawed)]


def last_change(config: Training) -> int:
    """The first epoch from which on all that will ever learn does."""
    if config.unfreeze_epoch is None:
        return config.probe_epochs
    waiting = (len(config.freeze) - 1) * (config.unfreeze_every or 0)
    return max(config.probe_epochs, config.unfreeze_epoch + waiting)


def set_learning(module: nn.Module, config: Training, epoch: int, place: str) -> None:
    """Training mode, but for what is frozen: no gradients, and norms that keep their statistics.

    In the first `probe_epochs` the last layer alone learns (linear probe, then fine-tune: Kumar et al.,
    "Fine-Tuning can Distort Pretrained Features", 2022).

    Raises:
        StageError: nothing is left to learn.
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
        raise StageError(f"{place}.freeze", f"epoch {epoch} has nothing to learn", "freeze less")


def last_layer(module: nn.Module) -> str:
    """Name of the module that owns the last parameter: a classifier's head; "" for a lone layer."""
    return [name.rpartition(".")[0] for name, _ in module.named_parameters()][-1]


def check_norms(module: nn.Module, place: str, way_out: str) -> None:
    """Refuse a batch of one sample where a norm would take its statistics from it.

    Call it in the mode of training; `way_out` is what else than frozen statistics would help.

    Raises:
        StageError: with the way out.
    """
    norms = [name for name, m in module.named_modules() if isinstance(m, BatchNorm) and m.training]
    if norms:
        raise StageError(
            place,
            f"a batch of one sample has no statistics for {norms[0]!r}",
            f'{way_out}, or set norm_statistics = "frozen"',
        )


def _on_the_way(name: str, head: str) -> bool:
    """Whether a module is the head, lies in it or holds it; all else is a fixed feature map."""
    return name == "" or matches(name, (head,)) or head.startswith(f"{name}.")
