"""BatchNorm re-estimation: compute the running statistics again for the current weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from exporter.errors import StageError
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import Network, accuracy, call, matches
from exporter.recipes import ReestimateConfig
from exporter.results import ReestimateResult
from exporter.sources.splits import Splits
from exporter.training.loop import check_modules
from exporter.training.stages.base import Context


def reestimate(
    network: Network, config: ReestimateConfig, data: Splits, context: Context
) -> tuple[Network, ReestimateResult]:
    """Run the training data through the network once, and average the statistics of all batches equally.

    The running statistics after training are an exponential average over batches that ran with older
    weights, and pruning changes the activations further. The training samples are used without
    augmentation, as in inference. The method follows PyTorch's `torch.optim.swa_utils.update_bn`.

    Raises:
        StageError: a frozen module does not exist, or the network has no BatchNorm to re-estimate.
    """
    check_modules(network.module, config.freeze, f"{context.name}.freeze")
    norms = {
        name: child
        for name, child in network.module.named_modules()
        if isinstance(child, BatchNorm) and child.track_running_stats and not matches(name, config.freeze)
    }
    if not norms:
        raise StageError(context.name, "the network has no BatchNorm to re-estimate", "remove this stage")
    before = accuracy(network.module, data.evaluation)
    shift = _average_statistics(network.module, norms, config.batch_size, data, context)
    return network, ReestimateResult(
        norms=len(norms),
        largest_shift=shift,
        accuracy_before=before,
        evaluation_accuracy=accuracy(network.module, data.evaluation),
    )


def _average_statistics(
    module: nn.Module, norms: dict[str, BatchNorm], batch_size: int, data: Splits, context: Context
) -> float:
    """Set the norms' statistics to the mean over all batches.

    Returns the largest change of a running mean, in standard deviations.
    """
    momenta = {name: norm.momentum for name, norm in norms.items()}
    means = {name: _statistics(norm)[0].clone() for name, norm in norms.items()}
    training = module.training
    module.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then computes a cumulative average
        norm.train()
    # A smaller last batch would have too much weight in the average.
    full = data.train.count // batch_size * batch_size or data.train.count
    batches = data.train.take(np.arange(full)).batches(batch_size)
    try:
        with torch.no_grad(), context.progress.task(context.name, -(-full // batch_size)) as task:
            for batch in batches:
                call(module, {name: torch.from_numpy(array.copy()) for name, array in batch.items()})
                task.advance()
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        module.train(training)
    return max(
        float(((mean - means[name]).abs() / (variance + norms[name].eps).sqrt()).max())
        for name, (mean, variance) in ((name, _statistics(norm)) for name, norm in norms.items())
    )


def _statistics(norm: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
