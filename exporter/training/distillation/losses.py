"""Losses between the outputs of a student and the outputs of its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.networks.memory_layout import laid_out, layout_for
from exporter.networks.network import call
from exporter.recipes import DistillConfig
from exporter.sources.splits import UNLABELLED
from exporter.training.distillation.features import Transfer


class Distillation(nn.Module):
    """hard_weight * CE(student, labels) + (1 - hard_weight) * soft + the sum of all transfers.

    `soft` is `hinton` or `decoupled`. Samples without a label count only in `soft` and in the transfers.

    Args:
        teachers: at least one teacher; the soft targets are the mean of their predictions.
        config: configuration of the stage.
        transfers: feature transfers from the first teacher.
    """

    def __init__(
        self, teachers: Sequence[nn.Module], config: DistillConfig, transfers: Sequence[Transfer] = ()
    ) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers).eval().requires_grad_(False)
        self.transfers = nn.ModuleList(transfers)
        self.config = config
        self._layouts: tuple[torch.memory_format, ...] = ()

    def forward(self, inputs: Mapping[str, Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: outputs [N, classes], labels int64 [N] or float [N, classes]."""
        config = self.config
        with torch.no_grad():
            self._layouts = self._layouts or tuple(layout_for(t, inputs) for t in self.teachers)
            given = [
                call(teacher, laid_out(inputs, layout)).float()
                for teacher, layout in zip(self.teachers, self._layouts, strict=True)
            ]
            targets = soft_targets(given, config.temperature)
        if config.method == "logits":
            soft = hinton(outputs, targets, config.temperature)
        else:
            classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
            classes = torch.where(classes == UNLABELLED, targets.argmax(dim=1), classes)
            soft = decoupled(
                outputs,
                targets,
                classes,
                config.temperature,
                target_weight=config.target_weight,
                other_weight=config.other_weight,
            )
        value = (
            config.hard_weight * labelled_cross_entropy(outputs, labels) + (1 - config.hard_weight) * soft
        )
        for transfer in self.transfers:
            value = value + transfer()
        return value


def soft_targets(given: Sequence[Tensor], temperature: float) -> Tensor:
    """Log-probabilities [N, classes] at a temperature, of one teacher or of the mean of several.

    The mean is over probabilities at this temperature (Hinton, Vinyals & Dean, 2015, section 1).
    """
    logs = [functional.log_softmax(outputs / temperature, dim=1) for outputs in given]
    if len(logs) == 1:
        return logs[0]
    return torch.logsumexp(torch.stack(logs), dim=0) - torch.log(torch.tensor(float(len(logs))))


def hinton(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(targets || student at T), mean over samples.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015). The gradients of this
    term shrink with 1 / T^2; the factor T^2 keeps its weight relative to the label loss the same at every
    temperature (section 2).

    Args:
        outputs: outputs of the student, [N, classes].
        targets: log-probabilities at T, [N, classes].
        temperature: T.
    """
    student = functional.log_softmax(outputs / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, targets, reduction="batchmean", log_target=True)


def decoupled(
    outputs: Tensor,
    targets: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    target_weight: float,
    other_weight: float,
) -> Tensor:
    """T^2 * (target_weight * TCKD + other_weight * NCKD), mean over samples.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), equation 7. TCKD compares the probability of the
    labelled class with the total probability of all other classes. NCKD compares the other classes with
    each other; `hinton` scales this part down when the teacher is confident. With the weights 1 and (1 -
    the teacher's probability of the labelled class) the sum is `hinton`.

    Args:
        outputs: outputs of the student, [N, classes]; NCKD is zero for fewer than three classes.
        targets: log-probabilities at T, [N, classes].
        labels: class indices, int64 [N].
        temperature: T.
        target_weight: alpha.
        other_weight: beta.
    """
    student = functional.log_softmax(outputs / temperature, dim=1)
    rows = labels[:, None]
    pairs = []
    rests = []
    for logs in (student, targets):
        own = logs.gather(1, rows)
        # Sum the other classes instead of computing 1 - p, which loses all digits if p is close to 1.
        others = logs.scatter(1, rows, -torch.inf)
        rest = torch.logsumexp(others, dim=1, keepdim=True)
        pairs.append(torch.cat([own, rest], dim=1))
        rests.append((others - rest).scatter(1, rows, 0.0))  # the labelled class is left out of the sum
    target = functional.kl_div(pairs[0], pairs[1], reduction="batchmean", log_target=True)
    probabilities = rests[1].exp().scatter(1, rows, 0.0)
    other = (probabilities * (rests[1] - rests[0])).sum(dim=1).mean()
    return temperature**2 * (target_weight * target + other_weight * other)


def labelled_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over the samples that have a label; zero if no sample has one."""
    if labels.is_floating_point():
        return functional.cross_entropy(outputs, labels)
    count = (labels != UNLABELLED).sum()
    total = functional.cross_entropy(outputs, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / count.clamp(min=1)
