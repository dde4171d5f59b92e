"""Distillation: the formula, the teacher's peace, the masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from exporter.errors import StageError
from exporter.network import Network
from exporter.recipe import DistillConfig
from exporter.stages.distill import distill, distillation_loss


def settings(**changes):
    base = {
        "kind": "distill",
        "teacher": "pretrained",
        "epochs": 2,
        "batch_size": 10,
        "learning_rate": 0.05,
    }
    return DistillConfig(**base | changes)


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_the_paper(temperature, hard_weight):
    taught, given, labels = [[3.0, 1.0, -2.0], [0.0, 0.5, 1.0]], [[1.0, 2.0, 0.0], [2.0, -1.0, 0.3]], [0, 2]
    soft = hard = 0.0
    for teacher, student, label in zip(taught, given, labels, strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        soft += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(labels)
        hard -= math.log(softmax(student, 1.0)[label]) / len(labels)
    expected = hard_weight * hard + (1 - hard_weight) * temperature**2 * soft
    loss = distillation_loss(nn.Identity(), temperature, hard_weight)
    value = loss({"input": torch.tensor(taught)}, torch.tensor(given), torch.tensor(labels))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_has_no_soft_loss():
    outputs = torch.tensor([[3.0, 1.0, -2.0]])
    loss = distillation_loss(nn.Identity(), 4.0, 0.0)
    assert loss({"input": outputs}, outputs, torch.tensor([2])).item() == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Linear(3, 3)
    outputs = torch.zeros(2, 3, requires_grad=True)
    distillation_loss(teacher, 2.0, 0.5)(
        {"input": torch.ones(2, 3)}, outputs, torch.tensor([0, 1])
    ).backward()
    assert teacher.weight.grad is None
    assert outputs.grad.abs().sum() > 0


@pytest.fixture
def teacher(tiny, trained):
    from exporter.network import load_network

    return load_network(tiny.net(), trained).module


def test_the_student_follows_and_the_teacher_stays(tiny, splits, context, teacher):
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    _, metrics = distill(
        Network(tiny.net()), settings(epochs=5, hard_weight=0.0), splits, context(teacher=teacher)
    )
    assert metrics["evaluation_accuracy"] > max(0.8, metrics["accuracy_before"])
    assert metrics["teacher_accuracy"] > 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training


def test_masks_hold(tiny, splits, context, teacher):
    module = tiny.net()
    mask = torch.rand(module.body.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    start = Network(module, {"body.weight": mask})
    start.apply_masks()
    network, metrics = distill(start, settings(), splits, context(teacher=teacher))
    assert metrics["sparsity"] == int((~mask).sum()) / mask.numel()
    assert not network.module.body.weight[~mask].any()


def test_teachers_with_other_classes_are_refused(tiny, splits, context):
    with pytest.raises(
        StageError, match=r"stage.teacher: the teacher tells another number of classes apart"
    ):
        distill(Network(tiny.net()), settings(), splits, context(teacher=tiny.net(classes=4)))


def test_teachers_that_do_not_take_the_data_are_refused(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.teacher: the network does not take the data"):
        distill(Network(tiny.net()), settings(), splits, context(teacher=nn.Linear(3, 3)))
