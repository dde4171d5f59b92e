"""Distillation: the losses, feature transfer, ONNX teachers, unlabelled samples; teachers never change."""

from __future__ import annotations

import math
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.errors import ArtifactError, DataError, ModelError
from exporter.errors import StageError
from exporter.networks.network import Network
from exporter.recipes import DataConfig, DistillConfig, ExportConfig, TransferConfig
from exporter.sources.splits import UNLABELLED, with_unlabelled
from exporter.training.distillation.features import transfers
from exporter.training.distillation.losses import (
    Distillation,
    decoupled,
    hinton,
    labelled_cross_entropy,
    soft_targets,
)
from exporter.training.distillation.onnx_teacher import OnnxTeacher, as_graph
from exporter.training.stages.distill import distill, load_teachers


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
def test_the_loss_equals_the_paper_s_formula(temperature, hard_weight):
    taught, given, labels = [[3.0, 1.0, -2.0], [0.0, 0.5, 1.0]], [[1.0, 2.0, 0.0], [2.0, -1.0, 0.3]], [0, 2]
    soft = hard = 0.0
    for teacher, student, label in zip(taught, given, labels, strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        soft += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(labels)
        hard -= math.log(softmax(student, 1.0)[label]) / len(labels)
    expected = hard_weight * hard + (1 - hard_weight) * temperature**2 * soft
    loss = Distillation([nn.Identity()], settings(temperature=temperature, hard_weight=hard_weight))
    value = loss({"input": torch.tensor(taught)}, torch.tensor(given), torch.tensor(labels))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_has_no_soft_loss():
    outputs = torch.tensor([[3.0, 1.0, -2.0]])
    loss = Distillation([nn.Identity()], settings(hard_weight=0.0))
    assert loss({"input": outputs}, outputs, torch.tensor([2])).item() == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Linear(3, 3)
    outputs = torch.zeros(2, 3, requires_grad=True)
    loss = Distillation([teacher], settings())
    loss({"input": torch.ones(2, 3)}, outputs, torch.tensor([0, 1])).backward()
    assert teacher.weight.grad is None
    assert outputs.grad.abs().sum() > 0


@pytest.fixture
def teacher(tiny, trained):
    from exporter.networks.network import load_network

    return load_network(tiny.net(), trained).module


def test_the_student_learns_and_the_teacher_does_not_change(tiny, splits, context, teacher):
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    _, result = distill(
        Network(tiny.net()), settings(epochs=5, hard_weight=0.0), splits, context(teacher=teacher)
    )
    assert result.evaluation_accuracy > max(0.8, result.accuracy_before)
    assert result.teacher_accuracy > 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training


def test_masks_still_apply(tiny, splits, context, teacher):
    module = tiny.net()
    mask = torch.rand(module.body.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    start = Network(module, {"body.weight": mask})
    start.apply_masks()
    network, result = distill(start, settings(), splits, context(teacher=teacher))
    assert result.sparsity == int((~mask).sum()) / mask.numel()
    assert not network.module.body.weight[~mask].any()


def test_teachers_with_other_classes_are_refused(tiny, splits, context):
    with pytest.raises(
        StageError, match=r"stage.teacher: the teacher has 4 classes, the student 3; choose a"
    ):
        distill(Network(tiny.net()), settings(), splits, context(teacher=tiny.net(classes=4)))


def test_teachers_that_do_not_take_the_data_are_refused(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.teacher: the network does not run on inputs of shapes"):
        distill(Network(tiny.net()), settings(), splits, context(teacher=nn.Linear(3, 3)))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_equals_the_paper_s_formula(temperature):
    """Equation 7, computed directly: the labelled class against the rest, and the rest among themselves."""
    taught, given = (
        [[3.0, 1.0, -2.0, 0.5], [0.0, 0.5, 1.0, 2.0]],
        [[1.0, 2.0, 0.0, 1.0], [2.0, -1.0, 0.3, 0.0]],
    )
    labels = [0, 2]
    target = other = 0.0
    for teacher, student, label in zip(taught, given, labels, strict=True):
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        target += kl([p[label], 1 - p[label]], [q[label], 1 - q[label]]) / 2
        rest = [[v / (1 - row[label]) for i, v in enumerate(row) if i != label] for row in (p, q)]
        other += kl(*rest) / 2
    outputs = torch.tensor(given, requires_grad=True)
    value = decoupled(
        outputs,
        soft_targets([torch.tensor(taught)], temperature),
        torch.tensor(labels),
        temperature,
        target_weight=0.7,
        other_weight=3.0,
    )
    assert value.item() == pytest.approx(temperature**2 * (0.7 * target + 3.0 * other), rel=1e-5)
    value.backward()
    assert torch.isfinite(outputs.grad).all()


def test_decoupled_with_the_teachers_own_weights_equals_hinton():
    """KL = TCKD + (1 - p of the label) * NCKD: equation 6 of the paper, on one sample."""
    targets = soft_targets([torch.tensor([[2.0, 0.0, -1.0]])], 2.0)
    outputs, label = torch.tensor([[0.3, 0.1, 0.9]]), torch.tensor([1])
    rest = 1 - float(targets.exp()[0, 1])
    both = decoupled(outputs, targets, label, 2.0, target_weight=1.0, other_weight=rest)
    assert both.item() == pytest.approx(hinton(outputs, targets, 2.0).item(), rel=1e-5)


def test_decoupled_is_finite_if_the_teacher_is_certain():
    outputs = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    targets = soft_targets([torch.tensor([[100.0, 0.0, -90.0]])], 1.0)
    value = decoupled(outputs, targets, torch.tensor([0]), 1.0, target_weight=1.0, other_weight=8.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(outputs.grad).all()


def test_soft_targets_are_the_mean_of_the_teachers_probabilities():
    one, other = torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[0.0, 5.0, 1.0]])
    mean = (torch.softmax(one / 3, dim=1) + torch.softmax(other / 3, dim=1)) / 2
    assert torch.allclose(soft_targets([one, other], 3.0).exp(), mean)


def test_an_ensemble_of_teachers(tiny, splits, context, teacher):
    named = {"a": teacher, "b": tiny.net(seed=7)}
    config = settings(teacher=("a", "b"), epochs=4, hard_weight=0.0)
    _, result = distill(Network(tiny.net()), config, splits, context(teacher=named))
    assert len(result.teacher_accuracies) == 2
    assert result.teacher_accuracy == result.teacher_accuracies[0] > 0.9
    with pytest.raises(StageError, match="the teacher has 5 classes, the student 3"):
        distill(Network(tiny.net()), config, splits, context(teacher={**named, "b": tiny.net(classes=5)}))


def test_the_decoupled_parts_have_the_configured_weights():
    taught = torch.tensor([[3.0, 1.0, -2.0, 0.5], [0.0, 0.5, 1.0, 2.0]])
    given, labels = torch.tensor([[1.0, 2.0, 0.0, 1.0], [2.0, -1.0, 0.3, 0.0]]), torch.tensor([0, 2])
    weights = {"target_weight": 0.7, "other_weight": 3.0}
    config = settings(method="decoupled", temperature=2.0, hard_weight=0.25, **weights)
    value = Distillation([nn.Identity()], config)({"input": taught}, given, labels)
    soft = decoupled(given, soft_targets([taught], 2.0), labels, 2.0, **weights)
    expected = 0.25 * nn.functional.cross_entropy(given, labels) + 0.75 * soft
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_decoupled_distillation_learns(tiny, splits, context, teacher):
    config = settings(method="decoupled", epochs=8, hard_weight=0.5, other_weight=1.0)
    _, result = distill(Network(tiny.net()), config, splits, context(teacher=teacher))
    assert result.evaluation_accuracy > max(0.8, result.accuracy_before)


def explained(ours, theirs):
    """Mean squared error of the best linear map from one network's features to another's, [N, C, H, W]."""
    ours, theirs = (features.movedim(1, -1).flatten(0, -2).double() for features in (ours, theirs))
    ours = torch.cat([ours, torch.ones(len(ours), 1)], dim=1)
    return float(((ours @ torch.linalg.lstsq(ours, theirs).solution - theirs) ** 2).mean())


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_transfer_reduces_the_distance_of_features(tiny, splits, context, teacher, kind):
    """The student has another width, and its head passes no gradient: only the transfer trains it."""
    student = tiny.net(width=12)
    nn.init.zeros_(student.head.weight)
    config = settings(
        epochs=6,
        freeze=("head",),
        norm_statistics="frozen",
        weight_decay=0.0,
        features=(TransferConfig(student="body", kind=kind, weight=500.0),),
    )
    probe = {"image": torch.from_numpy(splits.evaluation.inputs["image"])}

    def distance(module):
        listener = TransferConfig(student="body", kind="attention")
        with transfers((listener,), module, teacher, probe, "x") as (found,), torch.no_grad():
            module.eval()(**probe)
            teacher.eval()(**probe)
            return found().item() if kind == "attention" else explained(found.student, found.teacher)

    before = distance(student)
    network, result = distill(Network(student), config, splits, context(teacher=teacher))
    assert result.curves[-1].train_loss < 0.7 * result.curves[0].train_loss
    assert distance(network.module) < 0.7 * before
    assert not network.module.body._forward_hooks
    assert not teacher.body._forward_hooks


def test_the_projection_of_a_hint_is_linear_over_channels(tiny, splits, teacher):
    inputs = {"image": torch.from_numpy(splits.train.inputs["image"][:4])}
    student = tiny.net(width=5)
    config = TransferConfig(student="stem", teacher="body", weight=3.0)
    with transfers((config,), student, teacher, inputs, "stage") as (transfer,):
        student(**inputs)
        teacher(**inputs)
        ours, theirs = student.stem(inputs["image"]), transfer.teacher
        pooled = nn.functional.adaptive_avg_pool2d(ours, 4)  # the body has a stride of two
        layer = transfer.projection
        expected = torch.einsum("oc,nchw->nohw", layer.weight, pooled) + layer.bias[:, None, None]
        assert transfer().item() == pytest.approx(3.0 * ((expected - theirs) ** 2).mean().item(), rel=1e-5)


def test_projections_learn_and_resume(tiny, splits, context, teacher, tmp_path):
    from exporter.training.loop import Checkpoints

    config = settings(epochs=3, features=(TransferConfig(student="body"),))
    expected, first = distill(Network(tiny.net()), config, splits, context(teacher=teacher))

    class Stop(nn.Module):
        def __init__(self, net, limit):
            super().__init__()
            self.net, self.left = net, limit

        @property
        def body(self):
            return self.net.body

        def forward(self, image):
            self.left -= self.training
            if self.left < 0:
                raise KeyboardInterrupt
            return self.net(image)

    inner = settings(epochs=3, features=(TransferConfig(student="net.body", teacher="body"),))
    kept = replace(context(teacher=teacher), checkpoints=Checkpoints(tmp_path, interval_s=0))
    with pytest.raises(KeyboardInterrupt):
        distill(Network(Stop(tiny.net(), 7)), inner, splits, kept)
    found, second = distill(Network(Stop(tiny.net(), 99)), inner, splits, kept)
    assert second.curves == first.curves
    for name, value in found.module.net.state_dict().items():
        assert torch.equal(value, expected.module.state_dict()[name])


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"student": "neck"}, r"stage.features.0.student: the network has no module 'neck'"),
        (
            {"student": "body", "teacher": "neck"},
            r"stage.features.0.teacher: the network has no module 'neck'",
        ),
        (
            {"student": "body", "teacher": "head"},
            r"features of shapes \[8, 4, 4\] and \[3\] cannot be compared",
        ),
        ({"student": "head", "kind": "attention"}, r"attention maps need pictures or tokens, not vectors"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(splits, context, teacher, transfer, message):
    config = settings(features=(TransferConfig(**transfer),))
    with pytest.raises(StageError, match=message):
        distill(Network(deepcopy(teacher)), config, splits, context(teacher=teacher))


@pytest.fixture
def onnx_teacher(onnx_models, splits):
    def make(path=onnx_models.float, split=splits.train):
        return OnnxTeacher(path, split.first(1), "stage.teacher.model")

    return make


def test_an_onnx_teacher_gives_the_same_outputs_as_its_network(
    tiny, splits, context, teacher, onnx_teacher
):
    from exporter.networks.network import accuracy, predict

    given = predict(onnx_teacher(), splits.evaluation)
    assert np.allclose(given, predict(teacher, splits.evaluation), atol=1e-4)
    config = settings(epochs=4, hard_weight=0.0)
    _, result = distill(Network(tiny.net()), config, splits, context(teacher=onnx_teacher()))
    assert result.teacher_accuracy == accuracy(teacher, splits.evaluation)
    assert result.evaluation_accuracy > 0.8


class Moody(nn.Module):
    """Computes the same outputs, but with control flow that cannot be exported."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image):
        return self.net(image * 1.0) if image.mean().item() > 0 else self.net(image)


def test_on_a_cpu_teachers_are_exported_if_possible(splits, context, teacher):
    from exporter.networks.network import predict

    given = context(teacher={"one": teacher, "other": Moody(deepcopy(teacher))})
    graph, itself = load_teachers(settings(teacher=("one", "other")), splits, given, classes=3)
    assert isinstance(graph, OnnxTeacher)
    assert isinstance(itself, Moody)
    wanted = predict(teacher, splits.evaluation)
    assert np.allclose(predict(graph, splits.evaluation), wanted, atol=1e-4)
    config = settings(teacher=("one", "one"), features=(TransferConfig(student="body"),))
    first, second = load_teachers(config, splits, given, classes=3)
    assert first is teacher
    assert isinstance(second, OnnxTeacher)


def test_a_teacher_whose_export_differs_is_not_exported(splits, teacher):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = teacher

        def forward(self, image):
            return self.net(image) * (2.0 if torch.compiler.is_exporting() else 1.0)

    fickle = Fickle().eval()
    assert as_graph(fickle, splits.train, ExportConfig(), "stage.teacher") is fickle


def test_onnx_teachers_with_other_inputs_are_refused(tiny, splits, context, onnx_teacher, tmp_path):
    config = settings(features=(TransferConfig(student="body"),))
    with pytest.raises(StageError, match=r"stage.features: features need a teacher in PyTorch"):
        distill(Network(tiny.net()), config, splits, context(teacher=onnx_teacher()))
    wide = replace(splits.train, inputs={"image": np.zeros((2, 3, 8, 8), np.float32)}, labels=np.arange(2))
    with pytest.raises(StageError) as caught:
        onnx_teacher(split=wide)
    assert "feed 'image' has shape [1, 3, 8, 8]" in caught.value.cause
    assert caught.value.fix == "choose a teacher with the same inputs"
    two = replace(splits.train, inputs={**splits.train.inputs, "more": splits.train.inputs["image"]})
    with pytest.raises(StageError, match="'more' is not an input of the model"):
        onnx_teacher(split=two)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError):
        onnx_teacher(tmp_path / "empty.onnx")


def test_a_single_input_may_have_another_name(splits, teacher, onnx_teacher):
    from exporter.networks.network import predict

    renamed = replace(splits.evaluation, inputs={"inputs": splits.evaluation.inputs["image"]})
    assert np.array_equal(
        predict(onnx_teacher(split=renamed), renamed), predict(onnx_teacher(), splits.evaluation)
    )


def test_unlabelled_samples_improve_the_student(tiny, splits, context, teacher):
    """With 12 labelled and 60 unlabelled samples, the teacher's outputs on the latter help clearly."""
    few = replace(splits, train=splits.train.take(np.arange(12)))
    extra = {"image": tiny.splits(seed=9).train.inputs["image"]}
    accuracies = {}
    for name, unlabelled in (("without", None), ("with", DataConfig(factory="a:b"))):
        config = settings(
            epochs=6, batch_size=10, unlabelled=unlabelled, learning_rate=0.02, validation=0.3
        )
        _, result = distill(Network(tiny.net()), config, few, context(teacher=teacher, unlabelled=extra))
        accuracies[name] = result.evaluation_accuracy
        assert result.unlabelled_samples == (60 if unlabelled else None)
        assert 0.0 <= result.curves[-1].train_accuracy <= 1.0
    assert accuracies["with"] > accuracies["without"] + 0.1


def test_a_batch_without_labels_has_no_hard_loss():
    outputs = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]], requires_grad=True)
    none = labelled_cross_entropy(outputs, torch.tensor([UNLABELLED, UNLABELLED]))
    assert none.item() == 0.0
    one = labelled_cross_entropy(outputs, torch.tensor([UNLABELLED, 2]))
    assert one.item() == pytest.approx(nn.functional.cross_entropy(outputs[1:], torch.tensor([2])).item())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([1, 2], r"returned list"),
        (
            {"picture": np.zeros((2, 1, 8, 8), np.float32)},
            r"has inputs \['picture'\]; name them \['image'\]",
        ),
        (
            {"image": np.zeros((2, 1, 9, 9), np.float32)},
            r"is float32 \[1, 9, 9\], but in train it is float32 \[1, 8, 8\]",
        ),
        ({"image": np.full((2, 1, 8, 8), np.nan, np.float32)}, r"sample 0 contains NaN or infinity"),
        ({"image": "evaluation"}, r"120 of its samples are also in evaluation"),
    ],
)
def test_invalid_unlabelled_samples_are_refused(splits, extra, message):
    if isinstance(extra, dict) and isinstance(extra.get("image"), str):
        extra = {"image": splits.evaluation.inputs["image"]}
    with pytest.raises(DataError, match=message):
        with_unlabelled(splits, extra, "stage.unlabelled")


PROJECT_STAGES = """
[[stage]]
kind = "distill"
epochs = 2
batch_size = 10
teacher = [
    "finetune",
    { model = "other" },
    { model = "other/model.onnx" },
    { factory = "net:Net", args = { classes = 3 }, checkpoint = "weights.safetensors" },
]
unlabelled = { factory = "shapes:more" }
"""


@pytest.mark.slow
def test_all_kinds_of_teachers_in_a_build(built, trained):
    """The built artifact serves as the other recipe's; its files and the new data are part of the key."""
    shutil.move(built.artifact, built.folder / "other")
    shutil.copy(trained / "weights.safetensors", built.folder / "weights.safetensors")
    (built.folder / "shapes.py").write_text(
        (built.folder / "shapes.py").read_text()
        + "\n\ndef more():\n    return {'image': make_splits(seed=5).train.inputs['image']}\n"
    )
    text = built.recipe.read_text()
    built.recipe.write_text(text.replace("\n[quantize]", f"{PROJECT_STAGES}\n[quantize]"))
    outcome = built.build(until="distill")
    found = outcome.steps["distill"]
    assert len(found.teacher_accuracies) == 4
    assert found.unlabelled_samples == 60
    assert built.build(until="distill").ran == ()
    (built.folder / "other" / "model.fp32.onnx").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="differs from the hash in the manifest"):
        built.build(until="distill")
