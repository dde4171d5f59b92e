"""Knowledge distillation: a student learns from teachers' outputs and features, and from the labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy, deterministic
from exporter.recipes import DistillConfig
from exporter.results import DistillResult
from exporter.sources.splits import Splits, with_unlabelled
from exporter.training.distillation.features import Transfer, transfers
from exporter.training.distillation.losses import Distillation
from exporter.training.distillation.onnx_teacher import OnnxTeacher, as_graph
from exporter.training.loop import check_classes
from exporter.training.stages.base import Context


def distill(
    network: Network, config: DistillConfig, data: Splits, context: Context
) -> tuple[Network, DistillResult]:
    """Train the network to match its teachers; masks of earlier pruning still apply.

    Raises:
        StageError: a teacher has another number of classes or other inputs, features cannot be compared,
            or training fails.
        DataError: unlabelled samples have other names, types or shapes than the labelled ones, or are part
            of the evaluation split.
    """
    classes = check_classes(network.module, data, context.name)
    teachers = load_teachers(config, data, context, classes)
    training = data
    if config.unlabelled is not None:
        place = f"{context.name}.unlabelled"
        extra = context.load.unlabelled(config.unlabelled, place)
        training = replace(data, train=with_unlabelled(data, extra, place))
    before = accuracy(network.module, data.evaluation)
    with _transfers(network.module, teachers, config, data, context) as listeners:
        loss = Distillation(teachers, config, listeners)
        trained = context.fit(network, training, config, loss)
    of_teachers = [accuracy(teacher, data.evaluation) for teacher in teachers]
    added = training.train.count - data.train.count
    return network, DistillResult(
        teacher_accuracy=of_teachers[0],
        teacher_accuracies=tuple(of_teachers) if len(teachers) > 1 else (),
        unlabelled_samples=None if config.unlabelled is None else added,
        accuracy_before=before,
        evaluation_accuracy=accuracy(network.module, data.evaluation),
        **dict(network.zero_counts()),
        **dict(trained),
    )


def load_teachers(config: DistillConfig, data: Splits, context: Context, classes: int) -> list[nn.Module]:
    """Load all teachers in evaluation mode.

    On a CPU they are converted to ONNX graphs. The first one is not converted if the stage needs its
    features.

    Raises:
        StageError: a teacher does not accept the data, or has another number of classes.
    """
    teachers: list[nn.Module] = []
    for which in config.teachers():
        teacher = context.load.teacher(which, data).eval().requires_grad_(False)
        known = check_classes(teacher, data, f"{context.name}.teacher")
        if known != classes:
            raise StageError(
                f"{context.name}.teacher",
                f"the teacher has {known} classes, the student {classes}",
                "choose a teacher with the same classes",
            )
        shown = bool(config.features) and not teachers
        if context.engine.device.type == "cpu" and not shown and not isinstance(teacher, OnnxTeacher):
            teacher = as_graph(teacher, data.train, context.settings.export, f"{context.name}.teacher")
        teachers.append(teacher)
    return teachers


@contextmanager
def _transfers(
    student: nn.Module, teachers: list[nn.Module], config: DistillConfig, data: Splits, context: Context
) -> Iterator[list[Transfer]]:
    if config.features and isinstance(teachers[0], OnnxTeacher):
        raise StageError(
            f"{context.name}.features",
            "features need a teacher in PyTorch, but the first teacher is an .onnx model",
            "remove features, or list a PyTorch teacher first",
        )
    probe = data.train.first(2)
    inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in probe.inputs.items()}
    with (
        deterministic(context.seed, f"{context.name}.features"),
        transfers(config.features, student, teachers[0], inputs, context.name) as listeners,
    ):
        yield listeners
