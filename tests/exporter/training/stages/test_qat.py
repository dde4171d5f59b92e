"""Quantization-aware training: the trained network in PyTorch agrees with the int8 file."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError, StageError
from exporter.graphs.inference import run_model, session_with_outputs
from exporter.graphs.ranges import Range
from exporter.graphs.targets import TARGETS
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.networks.network import Network, accuracy, deterministic, load_network, predict
from exporter.onnx_export.export import export
from exporter.quantization.qdq import plan_qdq
from exporter.quantization.split import quantize_split
from exporter.recipes import ExportConfig, QatConfig, QuantizeConfig
from exporter.sources.checkpoint import load_into, read_checkpoint
from exporter.training.loop import Checkpoints
from exporter.training.qat import (
    ConstantGraph,
    Student,
    filled,
    find_sources,
    randomized,
    rearranged_sources,
)
from exporter.training.qat.rounding import activation_qparams, channel_maxima, round_weight
from exporter.training.stages import Settings
from exporter.training.stages.qat import qat

CPU = TARGETS["x86-vnni"]
TARGET_KINDS = {
    "per channel": CPU,
    "per tensor": replace(CPU, per_channel=False),
    "signed": TARGETS["arm64"],
    "saturating": TARGETS["portable"],
}


class Many(nn.Module):
    """Folded and unfolded norms, a residual sum, gates, pools, joins and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.late_norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(16, 8, 1)
        self.hidden, self.hidden_norm = nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, image):
        x = functional.hardswish(self.stem_norm(self.stem(image)))
        y = functional.silu(self.depthwise_norm(self.depthwise(x)))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + y * gate
        x = functional.relu(self.late_norm(functional.max_pool2d(x, 2)))
        x = functional.relu6(self.project(torch.cat([x, functional.avg_pool2d(x, 3, 1, 1)], 1)))
        x = functional.relu(self.hidden_norm(self.hidden(functional.adaptive_avg_pool2d(x, 1).flatten(1))))
        return self.head(x)


class Smaller(Many):
    """Scales pictures inside the network by a ratio that is not an integer, as `shrink` may do."""

    def forward(self, image):
        return super().forward(functional.interpolate(image, (6, 6), mode="bilinear"))


class Attention(nn.Module):
    """Patches and one transformer block."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)[:, None]
        y = self.norm(x)
        x = x + functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean((1, 2)))


class Decoder(nn.Module):
    """Transposed convolutions: in blocks, cut, with stride 1, in groups and narrow (slow in int8)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 4, 4)
        self.blocks, self.norm = nn.ConvTranspose2d(32, 32, 2, 2, bias=False), nn.BatchNorm2d(32)
        self.cut = nn.ConvTranspose2d(32, 64, 4, 2, 1)
        self.mirrored = nn.ConvTranspose2d(64, 64, 3, 1, 1)
        self.grouped = nn.ConvTranspose2d(64, 64, 3, 2, 1, output_padding=1, groups=2)
        self.narrow = nn.ConvTranspose2d(64, 3, 2, 2)

    def forward(self, image):
        x = functional.relu(self.norm(self.blocks(self.stem(image))))
        x = functional.leaky_relu(self.mirrored(functional.relu(self.cut(x))))
        return self.narrow(self.grouped(x)).mean((2, 3))


class Waves(nn.Module):
    """A transposed convolution along one axis, and a spectral front end, which stays in float."""

    def __init__(self):
        super().__init__()
        angles = 2 * np.pi * np.outer(np.arange(9), np.arange(16)) / 16
        basis = np.concatenate([np.cos(angles), -np.sin(angles)]).astype(np.float32)
        self.register_buffer("basis", torch.from_numpy(basis)[:, None])
        self.layer, self.up = nn.Conv1d(9, 32, 3, padding=1), nn.ConvTranspose1d(32, 32, 4, 4)
        self.head = nn.Linear(32, 3)

    def forward(self, image):
        parts = functional.conv1d(image.flatten(2), self.basis, stride=8)
        powers = torch.log(parts[:, :9] ** 2 + parts[:, 9:] ** 2 + 1e-3)
        return self.head(functional.relu(self.up(functional.relu(self.layer(powers)))).mean(2))


class Weighed(nn.Module):
    """A layer whose weight is computed by an operator that cannot be trained."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(64, 3), nn.Parameter(torch.rand(2, 2) + torch.eye(2))

    def forward(self, image):
        return functional.linear(image.flatten(1), self.layer.weight * torch.det(self.scale))


class Branch(nn.Module):
    """A network that branches on values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, image):
        x = image.flatten(1)
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def settings(**changes):
    values = {"kind": "qat", "epochs": 1, "batch_size": 10, "learning_rate": 1e-3} | changes
    return QatConfig(**values)


def made(factory):
    with deterministic(0, "qat"):
        module = factory()
        for child in module.modules():
            if isinstance(child, _BatchNorm):  # statistics and scales like after training
                for tensor in (child.running_mean, child.running_var, child.weight.data, child.bias.data):
                    tensor.uniform_(0.5, 1.5)
    return module.eval()


@pytest.fixture(scope="module")
def exported(splits, tmp_path_factory):
    """A function (factory) -> graph and sources of its weights; each factory is exported once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export_once(factory):
        probe = randomized(made(factory))
        paths = folder / "probe.onnx", folder / "unfolded.onnx"
        export(probe, splits.calibration, paths[0], ExportConfig(), {}, unfolded=paths[1])
        graph, unfolded = map(onnx.load, paths)
        return graph, find_sources(graph, ConstantGraph.of(unfolded, probe), probe)

    return export_once


@pytest.fixture
def traced(exported, splits, tmp_path):
    """A function that builds a network from a factory, together with its graph."""

    def trace(factory=Many, target=CPU, exclude=()):
        options = {"splits": splits, "folder": tmp_path, "target": target, "exclude": exclude}
        return Traced(made(factory), *exported(factory), **options)

    return trace


class Traced:
    """A network, its graph, and the int8 files for its weights."""

    def __init__(self, module, graph, sources, *, splits, folder, target, exclude):
        self.module, self.graph, self.sources = module, graph, sources
        self.splits, self.folder, self.target, self.exclude = splits, folder, target, exclude
        plan = plan_qdq(self.graph, target, exclude)
        self.tensors, self.moved = plan.tensors, plan.moved

    def int8(self, trained_qparams=NO_TRAINED_QPARAMS):
        onnx.save(filled(self.graph, self.sources, self.module), self.folder / "float.onnx")
        path = self.folder / "int8.onnx"
        config = QuantizeConfig(samples=16, exclude=self.exclude)
        quantize_split(
            self.folder / "float.onnx",
            path,
            self.splits.calibration,
            config,
            self.target,
            seed=0,
            progress=SILENT,
            trained_qparams=trained_qparams,
        )
        return path

    def student(self, **options):
        return Student(
            self.module,
            onnx.load(self.int8()),
            {**self.sources, **rearranged_sources(self.graph, self.sources, self.target, self.exclude)},
            target=self.target,
            learnable=self.tensors,
            moved=self.moved,
            inputs=["image"],
            place="qat",
            **options,
        )


def as_written(path, split):
    """Outputs of the QDQ file if each node runs separately, in float between the roundings."""
    session = session_with_outputs(onnx.load(path), [])
    return session.run(None, split.inputs)[0]


def moved(student, splits, steps=3):
    """Train weights, norms and ranges for a few steps."""
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), 2e-3)
    images, labels = torch.from_numpy(splits.train.inputs["image"]), torch.from_numpy(splits.train.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(student(images), labels).backward()
        optimizer.step()
    student.eval()


@pytest.mark.parametrize(
    ("factory", "kind", "exclude"),
    [
        *((Many, kind, ()) for kind in TARGET_KINDS),
        (Many, "per channel", ("project", "excite")),
        (Smaller, "per channel", ()),
        (Attention, "per channel", ()),
        *((factory, kind, ()) for factory in (Decoder, Waves) for kind in ("per channel", "signed")),
        (Decoder, "per tensor", ("mirrored",)),
    ],
)
def test_the_student_equals_the_int8_model_before_and_after_training(
    factory, kind, exclude, traced, splits
):
    traced = traced(factory, TARGET_KINDS[kind], exclude)
    student = traced.student()
    start = {name: value.clone() for name, value in student.named_parameters()}
    assert sqnr_db(as_written(traced.int8(), splits.evaluation), predict(student, splits.evaluation)) > 40
    moved(student, splits)
    assert not [name for name, value in student.named_parameters() if torch.equal(value, start[name])]
    path = traced.int8(student.trained_qparams())
    outputs = predict(student, splits.evaluation)
    assert sqnr_db(as_written(path, splits.evaluation), outputs) > 40
    # ONNX Runtime's kernels and the student both round integer sums directly: the outputs are almost equal.
    assert sqnr_db(run_model(path, splits.evaluation), outputs) > 60
    agreement = (run_model(path, splits.evaluation).argmax(1) == outputs.argmax(1)).mean()
    assert agreement >= 0.99


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])
def test_the_quantizer_uses_the_learned_qparams_exactly(traced, splits, target):
    traced = traced(target=TARGETS[target])
    student = traced.student()
    moved(student, splits)
    ranges, levels = student.trained_qparams().ranges, student.trained_qparams().levels
    assert bool(levels) is TARGETS[target].saturates
    model = onnx.load(traced.int8(student.trained_qparams()))
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert len(ranges) > 10
    assert set(ranges) <= set(traced.tensors)
    for name, found in ranges.items():
        ends = (torch.tensor(end, dtype=torch.float32) for end in (found.lowest, found.highest))
        scale, zero_point = activation_qparams(*ends, (0, 255))
        assert constants[f"{name}_scale"] == scale.numpy()
        assert constants[f"{name}_zero_point"] == zero_point.numpy()
    for name, source in traced.sources.items():
        if f"{name}_quantized" in constants and constants[f"{name}_quantized"].dtype == np.int8:
            stored, scale = constants[f"{name}_quantized"], constants[f"{name}_scale"]
            axis = stored.shape.index(scale.size)
            least = levels.get(name, np.full(scale.size, 127))
            rounded = round_weight(
                source.value(traced.module), axis, torch.from_numpy(least.astype(np.float64))
            ).real()
            shape = [-1 if i == axis else 1 for i in range(stored.ndim)]
            wanted = stored.astype(np.float32) * scale.reshape(shape)
            # Channels whose weights grew in training still have fewer levels and are not compared.
            others = tuple(i for i in range(stored.ndim) if i != axis)
            kept = np.flatnonzero(np.abs(stored.astype(int)).max(axis=others) == least)
            assert len(kept) > len(least) / 2
            # The scale of a channel with fewer levels is computed from a range, so its last bit may differ.
            np.testing.assert_allclose(
                rounded.detach().numpy().take(kept, axis),
                wanted.take(kept, axis),
                rtol=2.5e-7 if name in levels else 0,
            )


def test_the_student_follows_channels_that_saturate_after_training(traced, splits):
    traced = traced(target=TARGETS["portable"])
    student = traced.student()
    before = student.trained_qparams()
    with torch.no_grad():  # set all weights to the largest weight of their channel
        for layer in (traced.module.stem, traced.module.project, traced.module.hidden):
            layer.weight.copy_(channel_maxima(layer.weight, 0).view(-1, *[1] * (layer.weight.ndim - 1)))
    model = onnx.load(traced.int8(before))
    student.follow(model)
    after = student.trained_qparams()
    assert "hidden.weight" not in before.levels
    assert (after.levels["hidden.weight"] < 127).all()
    path = traced.int8(after)
    assert onnx.load(path) == model
    assert sqnr_db(run_model(path, splits.evaluation), predict(student, splits.evaluation)) > 60


def test_weights_too_small_for_their_bias_keep_the_quantizers_scale(traced):
    traced = traced(target=TARGETS["portable"])
    constants = {i.name: numpy_helper.to_array(i) for i in onnx.load(traced.int8()).graph.initializer}
    scale = constants["project.bias_quantized_scale"] / constants["project.weight_scale"]
    # With 127 levels for these small weights, int32 could not hold a bias of 1 at their scale.
    with torch.no_grad():
        weight = traced.module.project.weight
        weight[3] *= 60 / (2.0**31 * scale[3].item() * weight[3].abs().max())
        weight[4] = 0.0
        traced.module.project.bias[3:5] = 1.0
    student = traced.student()
    model = onnx.load(traced.folder / "int8.onnx")
    levels = student.trained_qparams().levels["project.weight"]
    assert levels[3] == 60
    assert onnx.load(traced.int8(student.trained_qparams())) == model


def test_weights_that_the_quantizer_moves_are_traced(traced):
    traced = traced(Decoder)
    found = rearranged_sources(traced.graph, traced.sources, CPU, ())
    operators = [node.op_type for node in onnx.load(traced.int8()).graph.node]
    assert {source.tensor for source in found.values() if source.norm is None} == {
        "cut.weight", "cut.bias", "mirrored.weight", "mirrored.bias"
    }  # fmt: skip
    assert {(source.norm, source.is_bias) for source in found.values() if source.norm} == {
        ("norm", False), ("norm", True),
    }  # fmt: skip
    assert operators.count("ConvTranspose") == 2


def test_every_weight_is_traced_through_norms_and_transposes(traced):
    sources = traced().sources
    assert sources["stem.weight"].norm == sources["stem.bias"].norm == "stem_norm"
    assert (sources["stem.bias"].tensor, sources["depthwise.bias"].tensor) == (None, "depthwise.bias")
    assert sources["late_norm.running_var"].tensor == "late_norm.running_var"
    sources = traced(Attention).sources
    assert sum(source.tensor in source.graph.nodes for source in sources.values()) == 5


def test_ranges_are_trained_for_range_steps(traced, splits):
    student = traced().student(range_steps=1)
    moved(student, splits, steps=1)
    once = student.trained_qparams().ranges
    moved(student, splits, steps=2)
    assert student.trained_qparams().ranges == once
    assert student.steps == 3


def test_rounding_is_exact_under_bfloat16(traced, splits):
    student = traced().student()
    images = torch.from_numpy(splits.evaluation.inputs["image"])
    wanted = student(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(student(images), wanted)


def test_a_student_trains_the_graph_of_evaluation_mode(traced, splits):
    student = traced().student()
    before = student.network.stem_norm.running_mean.clone()
    student.train()
    one = torch.from_numpy(splits.train.inputs["image"][:1])
    assert torch.equal(student(one), student.eval()(one))
    assert torch.equal(student.network.stem_norm.running_mean, before)


@pytest.fixture
def network(tiny, trained):
    return load_network(tiny.net(), trained)


def test_the_stage_agrees_with_the_int8_file_and_is_deterministic(network, splits, context, tiny, trained):
    before = accuracy(network.module, splits.evaluation)
    after, result = qat(network, settings(epochs=2), splits, context("qat"))
    again, same = qat(load_network(tiny.net(), trained), settings(epochs=2), splits, context("qat"))
    assert result == same
    assert after.trained_qparams.ranges == again.trained_qparams.ranges
    assert result.agreement_with_int8 >= 0.99
    assert result.float_accuracy == before
    assert result.ranges == len(after.trained_qparams.ranges) > 3
    assert result.evaluation_accuracy >= result.accuracy_before - 0.01
    assert len(result.curves) == 2


def test_training_recovers_the_accuracy_lost_to_rounding(network, splits, context):
    with torch.no_grad():  # one channel is 1000 times as large and uses up the levels of its tensor
        network.module.norm.weight[0] *= 1000
        network.module.norm.bias[0] *= 1000
        network.module.body.weight[:, 0] /= 1000
    config = settings(epochs=8, learning_rate=3e-3, hard_weight=0.2)
    _, result = qat(network, config, splits, context("qat"))
    assert result.float_accuracy > 0.95
    assert result.accuracy_before < result.float_accuracy - 0.05
    assert result.evaluation_accuracy > result.accuracy_before + 0.05


def test_a_stem_that_is_deployed_on_blocks_is_trained_without_them(splits, context):
    stem, head = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8, 3)
    module = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    place = replace(context("qat"), settings=Settings(quantize=QuantizeConfig(target="x86-vnni")))
    trained, result = qat(Network(module), settings(epochs=1), splits, place)
    assert result.agreement_with_int8 >= 0.99
    assert trained.module[0].weight.shape == (8, 1, 3, 3)


@pytest.mark.parametrize("target", ["x86-avx2", "arm64"])
@pytest.mark.parametrize("factory", [Decoder, Waves])
def test_the_stage_trains_transposed_convolutions(factory, target, splits, context):
    place = replace(context("qat"), settings=Settings(quantize=QuantizeConfig(target=target)))
    before = made(factory)
    trained, result = qat(Network(made(factory)), settings(learning_rate=1e-2, epochs=2), splits, place)
    assert result.agreement_with_int8 >= 0.97
    if result.improved:
        weights = dict(trained.module.named_parameters())
        assert not [name for name, value in before.named_parameters() if torch.equal(value, weights[name])]


def test_masks_and_frozen_modules_still_apply(network, splits, context):
    mask = torch.rand(network.module.body.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    network = replace(network, masks={"body.weight": mask})
    network.apply_masks()
    head = network.module.head.weight.clone()
    body = network.module.body.weight.clone()
    after, result = qat(network, settings(freeze=("head",)), splits, context("qat"))
    assert torch.equal(after.module.body.weight == 0, ~mask)
    assert not torch.equal(after.module.body.weight, body)
    assert torch.equal(after.module.head.weight, head)
    assert result.sparsity == after.sparsity() > 0.4


def test_the_start_is_kept_if_no_epoch_is_as_accurate(network, splits, context):
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    _, result = qat(network, settings(learning_rate=0.3, warmup=0.0), splits, context("qat"))
    assert not result.improved
    assert result.evaluation_accuracy == result.accuracy_before
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())


@pytest.fixture
def students(monkeypatch):
    """Every student that is created, with its qparams before training."""
    made, make = [], Student.__init__

    def remember(self, *args, **kwargs):
        make(self, *args, **kwargs)
        made.append((self, self.trained_qparams()))

    monkeypatch.setattr(Student, "__init__", remember)
    return made


def test_batches_of_one_sample_work(network, splits, context, students):
    few = replace(splits, train=splits.train.take(np.arange(12)))
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    after, result = qat(network, settings(batch_size=1, learning_rate=1e-4), few, context("qat"))
    assert result.improved
    assert result.evaluation_accuracy > 0.9
    assert np.isfinite([line.train_loss for line in result.curves]).all()
    for name, weight in after.module.named_parameters():
        assert not torch.equal(weight, before[name]), name
    ((student, start),) = students
    assert int(student.steps) == 11
    assert after.trained_qparams.ranges.keys() == start.ranges.keys()
    assert not after.trained_qparams.ranges.items() & start.ranges.items()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_ranges_are_trained_in_their_share_of_the_steps(network, splits, context, students, share):
    after, result = qat(network, settings(epochs=2, range_share=share), splits, context("qat"))
    ((student, start),) = students
    assert result.improved
    assert int(student.steps) == 10
    assert student.range_steps == 10 * share
    same = after.trained_qparams.ranges.items() & start.ranges.items()
    assert len(same) == (0 if share else len(start.ranges))


def test_the_stage_passes_on_the_levels_of_its_last_int8_file(network, splits, context, students, tmp_path):
    """After much training, more channels are at risk of saturation and get fewer levels."""
    place = replace(context("qat"), settings=Settings(quantize=QuantizeConfig(target="portable")))
    after, result = qat(network, settings(epochs=2, learning_rate=0.03), splits, place)
    assert result.improved
    export(after.module, splits.calibration, tmp_path / "float.onnx", ExportConfig(), {})
    quantize_split(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        splits.calibration,
        place.settings.quantize,
        TARGETS["portable"],
        seed=0,
        progress=SILENT,
        trained_qparams=after.trained_qparams,
    )
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    ((_, start),) = students
    changed = 0
    for name, levels in after.trained_qparams.levels.items():
        largest = np.abs(stored[f"{name}_quantized"].astype(int)).max((1, 2, 3))
        assert levels.tolist() == largest.tolist()
        changed += int((levels != start.levels[name]).sum())
    assert changed


def test_trained_qparams_are_saved_with_the_network(tiny, tmp_path):
    ranges = {"image": Range(-1.5, 2.25), "body": Range(0.0, float(np.float32(0.1)))}
    Network(tiny.net(), trained_qparams=TrainedQparams(ranges, {"body": np.array([127, 90])})).save(
        tmp_path
    )
    loaded = load_network(tiny.net(), tmp_path)
    assert (loaded.trained_qparams.ranges, loaded.masks) == (ranges, {})
    assert {name: levels.tolist() for name, levels in loaded.trained_qparams.levels.items()} == {
        "body": [127, 90]
    }


def test_an_operator_between_parameters_and_weights_is_named(splits, context):
    with pytest.raises(StageError) as caught:
        qat(Network(made(Weighed)), settings(), splits, context("qat"))
    assert caught.value.place == "qat"
    assert caught.value.cause.endswith("by operators that cannot be trained (Det)")
    assert "quantize makes an int8 model without it" in caught.value.fix


def test_value_dependent_control_flow_is_named_by_qat(splits, context):
    with pytest.raises(ExportError) as caught:
        qat(Network(made(Branch)), settings(), splits, context("qat"))
    assert caught.value.cause == "branches on the values of a tensor"
    assert "all stages except shrink, qat and export work" in caught.value.fix


class Odd(nn.Module):
    """A layer, and a branch inside the graph."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3)

    def forward(self, image):
        x = self.layer(image)
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)).mean((2, 3))


def test_an_operator_that_cannot_be_trained_is_named(traced):
    with pytest.raises(StageError) as caught:
        traced(Odd).student()
    assert "has the operator If, which cannot be trained" in caught.value.cause


def test_freezing_everything_is_refused_unless_ranges_are_trained(network, splits, context):
    everything = ("stem", "norm", "body", "head")
    with pytest.raises(StageError) as caught:
        qat(network, settings(freeze=everything), splits, context("qat"))
    assert caught.value.place == "qat.freeze"
    assert caught.value.fix == "freeze fewer modules, or set range_share = 1"
    _, result = qat(network, settings(freeze=everything, range_share=1.0), splits, context("qat"))
    assert len(result.curves) == 1


def test_layers_have_their_own_learning_rates(splits, context, tiny, trained):
    def moved(decay):
        network = load_network(tiny.net(), trained)
        before = network.module.stem.weight.detach().clone()
        qat(network, settings(layer_decay=decay), splits, context("qat"))
        return (network.module.stem.weight - before).abs().max().item()

    assert 0 < moved(0.1) < 0.1 * moved(1.0)


def test_a_diverged_training_leaves_a_checkpoint(splits, context, tiny, trained, tmp_path):
    network = load_network(tiny.net(), trained)
    calls = []

    def augment(inputs, generator):
        calls.append(0)
        return {name: image * (np.nan if len(calls) > 6 else 1) for name, image in inputs.items()}

    place = replace(context("qat"), checkpoints=Checkpoints(tmp_path))
    with pytest.raises(StageError, match="the weights of epoch 0 are saved in"):
        qat(network, settings(epochs=2), replace(splits, augment=augment), place)
    (path,) = tmp_path.glob("*last-good*")
    load_into(tiny.net(), read_checkpoint(path), path)
