"""Knowledge distillation: a student learns from a teacher's softened outputs and from the labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.data import Splits
from exporter.errors import StageError
from exporter.network import Network, accuracy, call
from exporter.recipe import DistillConfig
from exporter.stages.base import Context, Metrics
from exporter.training import Loss, check_classes, fit


def distill(
    network: Network, config: DistillConfig, data: Splits, context: Context
) -> tuple[Network, Metrics]:
    """Train the network to follow the teacher; masks of earlier pruning hold."""
    classes = check_classes(network.module, data, context.name)
    teacher = context.teacher(config.teacher).eval().requires_grad_(False)
    if check_classes(teacher, data, f"{context.name}.teacher") != classes:
        raise StageError(
            f"{context.name}.teacher",
            "the teacher tells another number of classes apart than the student",
            "choose a teacher with the same classes",
        )
    before = accuracy(network.module, data.evaluation)
    fitted = fit(
        network,
        data,
        config,
        distillation_loss(teacher, config.temperature, config.hard_weight),
        seed=context.seed,
        name=context.name,
        progress=context.progress,
    )
    return network, {
        "teacher_accuracy": accuracy(teacher, data.evaluation),
        "accuracy_before": before,
        "evaluation_accuracy": accuracy(network.module, data.evaluation),
        "sparsity": network.sparsity(),
        **fitted.as_json(),
    }


def distillation_loss(teacher: nn.Module, temperature: float, hard_weight: float) -> Loss:
    """The loss of Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015).

        hard_weight * CE(student, labels) + (1 - hard_weight) * T^2 * KL(teacher / T || student / T)

    The gradients of the softened term shrink with 1 / T^2; the factor keeps the balance of the two
    terms the same at every temperature (section 2 of the paper).
    """

    def loss(inputs: Mapping[str, Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = functional.log_softmax(call(teacher, inputs) / temperature, dim=1)
        student = functional.log_softmax(outputs / temperature, dim=1)
        soft = functional.kl_div(student, target, reduction="batchmean", log_target=True)
        hard = functional.cross_entropy(outputs, labels)
        return hard_weight * hard + (1 - hard_weight) * temperature**2 * soft

    return loss
