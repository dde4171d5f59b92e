"""Quantization-aware training: train the network with the rounding of its final int8 graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from torch import Tensor, nn

from bench.metrics.parity import parity, sqnr_db
from exporter.errors import StageError
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import run_model
from exporter.graphs.targets import Target, find_target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.networks.network import Network, accuracy, matches, predict
from exporter.onnx_export.export import SAME_SQNR_DB, export
from exporter.quantization.qdq import plan_qdq
from exporter.quantization.split import quantize_split
from exporter.recipes import DistillConfig, QatConfig
from exporter.results import QatResult, Trained
from exporter.sources.splits import Splits
from exporter.training.distillation.losses import Distillation
from exporter.training.distillation.onnx_teacher import OnnxTeacher
from exporter.training.loop import check_classes, check_modules, hold_out
from exporter.training.loop.freezing import frozen_modules
from exporter.training.qat import (
    WITHOUT_QAT,
    ConstantGraph,
    Student,
    WeightSource,
    filled,
    find_sources,
    randomized,
    rearranged_sources,
)
from exporter.training.stages.base import Context

_CHECK_SAMPLES = 32


def qat(network: Network, config: QatConfig, data: Splits, context: Context) -> tuple[Network, QatResult]:
    """Train the network's int8 graph, and pass the learned ranges on to the quantizer.

    The recipe's `quantize` step builds the graph and its initial ranges, so training starts at the result
    of static quantization. The loss uses the labels and the outputs of the float network. Masks of earlier
    pruning still apply. If no epoch is at least as accurate as the start on held-out data, the start is
    kept.

    Raises:
        StageError: a weight of the graph cannot be traced to the network's parameters, or an operator
            cannot be trained.
        ExportError: the network cannot be exported.
    """
    check_classes(network.module, data, context.name)
    check_modules(network.module, config.freeze, f"{context.name}.freeze")
    float_accuracy = accuracy(network.module, data.evaluation)
    with TemporaryDirectory() as folder:
        graph = _trace(network.module, data, context, Path(folder))
        student = graph.student(network.module, data, context)
        before = accuracy(student, data.evaluation)
        teacher = graph.teacher(network.module, data, context)
        trained, improved = _train(network.masks, student, config, data, context, teacher=teacher)
        int8 = graph.int8(network.module, data, context, student.trained_qparams())
        student.follow(onnx.load(int8))
        network = replace(network, trained_qparams=student.trained_qparams())
        outputs = predict(student, data.evaluation)
        agreement = parity(outputs, run_model(int8, data.evaluation)).agreement
    return network, QatResult(
        target=graph.target.name,
        float_accuracy=float_accuracy,
        accuracy_before=before,
        evaluation_accuracy=float((outputs.argmax(axis=1) == data.evaluation.labels).mean()),
        improved=improved,
        agreement_with_int8=agreement,
        ranges=len(network.trained_qparams.ranges),
        **dict(network.zero_counts()),
        **dict(trained),
    )


@dataclass(frozen=True)
class _TracedNetwork:
    """The exported graph of a network, the sources of its weights, and a folder for files."""

    model: onnx.ModelProto
    sources: Mapping[str, WeightSource]
    target: Target
    folder: Path

    def float(self, module: nn.Module) -> Path:
        """Write the float graph with the network's current weights."""
        path = self.folder / "float.onnx"
        onnx.save(filled(self.model, self.sources, module), path)
        return path

    def int8(
        self,
        module: nn.Module,
        data: Splits,
        context: Context,
        trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
    ) -> Path:
        """Write the int8 graph that the recipe's `quantize` step creates from the float graph."""
        path = self.folder / "int8.onnx"
        quantize_split(
            self.float(module),
            path,
            data.calibration,
            context.settings.quantize,
            self.target,
            seed=context.seed,
            progress=context.progress,
            trained_qparams=trained_qparams,
        )
        return path

    def student(self, module: nn.Module, data: Splits, context: Context) -> Student:
        """The int8 graph as a module that trains the network's own parameters."""
        exclude = context.settings.quantize.exclude
        plan = plan_qdq(self.model, self.target, exclude)
        return Student(
            module,
            onnx.load(self.int8(module, data, context)),
            {**self.sources, **rearranged_sources(self.model, self.sources, self.target, exclude)},
            target=self.target,
            learnable=plan.tensors,
            moved=plan.moved,
            inputs=tuple(data.calibration.inputs),
            place=context.name,
        )

    def teacher(self, module: nn.Module, data: Splits, context: Context) -> nn.Module:
        """The current network in float; on a CPU as an ONNX graph, because this is faster."""
        if context.engine.device.type != "cpu":
            return copy.deepcopy(module).eval().requires_grad_(False)
        return OnnxTeacher(self.float(module), data.train.first(1), context.name)


def _trace(module: nn.Module, data: Splits, context: Context, folder: Path) -> _TracedNetwork:
    """Export the network, and find the parameters from which each weight of the graph is computed.

    Raises:
        StageError: the graph with the network's weights computes other outputs than the network.
    """
    probe = randomized(module)
    path, unfolded = folder / "probe.onnx", folder / "unfolded.onnx"
    settings = context.settings.export.network_alone()
    export(probe, data.calibration, path, settings, {}, unfolded=unfolded)
    model, constants = onnx.load(path), ConstantGraph.of(onnx.load(unfolded), probe)
    # A stem on blocks computes the same sums, but its weights are in another order than the network's.
    asked = context.settings.quantize
    target = replace(find_target(asked.target, asked.onnxruntime), stem_on_blocks=False)
    graph = _TracedNetwork(model, find_sources(model, constants, probe), target, folder)
    sample = data.train.first(_CHECK_SAMPLES)
    if sqnr_db(predict(module, sample), run_model(graph.float(module), sample)) < SAME_SQNR_DB:
        raise _untraced(graph, constants, context.name)
    return graph


def _untraced(graph: _TracedNetwork, constants: ConstantGraph, place: str) -> StageError:
    """The error that names the operators, or else the weights, between the parameters and the graph."""
    index = GraphIndex.of(graph.model.graph)
    weights = [
        name
        for name in index.constants
        if index.element_type(name) == onnx.TensorProto.FLOAT and index.shape(name)
        if name not in graph.sources and name not in constants.constants
    ]
    return StageError(
        place,
        f"weights are computed from parameters by operators that cannot be trained "
        f"({', '.join(sorted(constants.unknown))})"
        if constants.unknown
        else f"weights of the exported graph cannot be traced to parameters ({', '.join(weights[:6])})",
        f"{WITHOUT_QAT}, or use plain parameters as weights",
    )


def _train(
    masks: Mapping[str, Tensor],
    student: Student,
    config: QatConfig,
    data: Splits,
    context: Context,
    *,
    teacher: nn.Module,
) -> tuple[Trained, bool]:
    """Train the student in place; return the curves, and whether the weights of an epoch were kept."""
    training, validation = hold_out(data.train, config.validation, context.seed, context.name)
    steps = config.epochs * max(1, training.count // config.batch_size)
    student.range_steps = round(config.range_share * steps)
    for epoch in range(student.range_steps * config.epochs // steps, config.epochs):
        frozen = frozen_modules(config, epoch)
        if all(matches(name, frozen) for name, _ in student.network.named_parameters()):
            raise StageError(
                f"{context.name}.freeze",
                f"nothing is trained in epoch {epoch}: all weights are frozen, and the ranges are fixed",
                "freeze fewer modules, or set range_share = 1",
            )
    before, start = accuracy(student, validation), copy.deepcopy(student.state_dict())
    trained = context.fit(
        Network(student, {f"{Student.wrapped_prefix}{name}": mask for name, mask in masks.items()}),
        data,
        config.model_copy(
            update={"freeze": tuple(f"{Student.wrapped_prefix}{name}" for name in config.freeze)}
        ),
        Distillation([teacher], _loss_config(config)),
    )
    assert trained.validation_accuracy is not None
    improved = trained.validation_accuracy >= before
    if not improved:
        student.load_state_dict(start)
    return trained, improved


def _loss_config(config: QatConfig) -> DistillConfig:
    """Distillation from the logits of the float network, without features."""
    return DistillConfig(
        kind="distill", teacher="float", temperature=config.temperature, hard_weight=config.hard_weight
    )
