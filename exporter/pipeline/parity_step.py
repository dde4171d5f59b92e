"""The step `parity`: check that the exported models match the trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from bench.core.arrays import Array, write_npz
from bench.inputs.artifact import EVALUATION, EXPECTED_PREFIX, FLOAT_MODEL, GOLDEN, MODEL
from bench.inputs.evaluation import EvaluationSet, write_evaluation
from bench.inputs.session import open_session, signature_of
from bench.metrics.parity import Parity, parity
from exporter.caching.steps import StepFolders
from exporter.errors import ExportError
from exporter.graphs.inference import run_model, run_scores
from exporter.graphs.rewrites.processing import as_shipped
from exporter.inspection.audit import audit, coverage_failure
from exporter.inspection.fidelity import fidelity_on
from exporter.inspection.layer_errors import LAYER_SAMPLES, layer_errors
from exporter.networks.network import accuracy, load_network, predict
from exporter.pipeline.export_step import model_to_quantize
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.results import Audit, Closeness, LayerError, ParityResult
from exporter.sources.splits import Split, stratified_indices

PARITY_SAMPLES = 256
GOLDEN_SAMPLES = 8


@dataclass(frozen=True)
class ParityStep:
    """Compare PyTorch, float ONNX and int8 ONNX on real samples; write evaluation and golden sets.

    PyTorch receives the samples of the data factory, ONNX the feeds that a device sends. The comparison
    uses the outputs of the network before postprocessing. The int8 model is compared with the float
    baseline, and layer by layer with the float model that it was quantized from.

    Attributes:
        resolved: the recipe.
        trained: name of the step whose network was quantized.
        baseline: name of the step whose network is the float baseline.
    """

    kind: ClassVar[str] = ParityResult.kind
    name: ClassVar[str] = ParityResult.kind

    resolved: ResolvedRecipe
    trained: str
    baseline: str

    @property
    def parents(self) -> tuple[str, ...]:
        """The steps that trained the networks, and the steps that wrote the models."""
        return (*dict.fromkeys((self.trained, self.baseline)), "export", "quantize")

    def ingredients(self) -> Mapping[str, object]:
        """The table `export`, which contains the smallest allowed SQNR."""
        return {
            **self.resolved.ingredients,
            "config": self.resolved.recipe.export.model_dump(mode="json"),
        }

    def run(self, folders: StepFolders) -> ParityResult:
        """Compare the models, and write `evaluation.npz` and `golden.npz`.

        Raises:
            ExportError: a model's outputs differ too much from the network's or are not finite, or too few
                multiply-adds run in int8.
        """
        recipe, evaluation = self.resolved.recipe, self.resolved.data.evaluation
        exported, int8_model = folders.parents["export"], folders.parents["quantize"] / MODEL
        quantized = model_to_quantize(exported)
        chosen = _spread(evaluation, PARITY_SAMPLES, recipe.seed)
        fed = evaluation.take(chosen)
        shipped = as_shipped(evaluation, recipe.export.preprocess)
        sample = shipped.take(chosen)
        if self.trained != self.baseline:
            network = self._network(folders.parents[self.trained])
            self._check_same(network, fed, quantized, run_scores(quantized, sample))
        network = self._network(folders.parents[self.baseline])
        float_scores = run_scores(exported / FLOAT_MODEL, sample)
        export = self._check_same(network, fed, exported / FLOAT_MODEL, float_scores)
        int8_scores = run_scores(int8_model, sample)
        if not np.isfinite(int8_scores).all():
            raise ExportError(MODEL, "returns NaN or infinity", "check the calibration data")
        write_evaluation(folders.out / EVALUATION, evaluation_set(shipped))
        audited = self._audit(int8_model, folders.out / EVALUATION)
        _write_golden(folders.out / GOLDEN, sample, int8_model, int8_scores)
        few = sample.take(_spread(sample, LAYER_SAMPLES, recipe.seed))
        layers = layer_errors(quantized, int8_model, few)
        found = parity(float_scores, int8_scores)
        return ParityResult(
            torch_accuracy=accuracy(network, evaluation),
            export=export,
            int8=found,
            layers=layers,
            audit=audited,
            warnings=self.resolved.warned(_unlike(quantized, found, layers)),
        )

    def _network(self, folder: Path) -> nn.Module:
        return load_network(self.resolved.fresh_module(), folder).module

    def _check_same(self, network: nn.Module, fed: Split, model: Path, scores: Array) -> Parity:
        """The parity of a network and its exported model.

        Args:
            network: the network in PyTorch.
            fed: samples of the data factory, for the network.
            model: file of the exported model.
            scores: outputs of the exported model for the same samples.

        Raises:
            ExportError: the SQNR is below `export.min_sqnr_db`, or the outputs are not finite.
        """
        found, wanted = parity(predict(network, fed), scores), self.resolved.recipe.export.min_sqnr_db
        if not np.isfinite(scores).all() or found.sqnr_db < wanted:
            raise ExportError(
                model.name,
                f"differs from the trained network: its SQNR against PyTorch is {found.sqnr_db:.1f} dB, "
                f"at least {wanted:.1f} dB are required",
                "look for operators that behave differently in ONNX (dropout left on, custom rounding)",
            )
        return found

    def _audit(self, model: Path, evaluation: Path) -> Audit:
        """Inspect the operators that ONNX Runtime runs.

        Raises:
            ExportError: too few multiply-adds run in int8.
        """
        found = audit(model, evaluation, self.resolved.target().name)
        if failure := coverage_failure(found, self.resolved.recipe.quantize.min_int8_ratio):
            raise ExportError(
                "quantize.min_int8_ratio",
                failure,
                "fix the named operators, or lower quantize.min_int8_ratio",
            )
        return found


def _unlike(float_model: Path, found: Parity, layers: tuple[LayerError, ...]) -> tuple[str, ...]:
    """A warning if the int8 model's outputs differ much from float."""
    fidelity = fidelity_on(
        Closeness(sqnr_db=found.sqnr_db, output="scores", agreement=found.agreement),
        found.samples,
        float_model,
        layers,
    )
    warning = fidelity.warning()
    return () if warning is None else (warning,)


def evaluation_set(split: Split) -> EvaluationSet:
    """A split in the form that a device reads."""
    return EvaluationSet(split.inputs, split.labels.astype(np.int64), split.ids)


def _spread(split: Split, count: int, seed: int) -> Array:
    """Indices of a few samples, drawn from all classes because data may be sorted by class."""
    return stratified_indices(split.labels, {"few": min(count, split.count)}, seed, "parity")["few"]


def _write_golden(path: Path, sample: Split, model: Path, scores: Array) -> None:
    """Write the samples with the largest margin between the two best classes, with their outputs.

    The predicted class of such samples does not change with small rounding differences between devices.
    """
    ranked = np.sort(scores.reshape(len(scores), -1), axis=1)
    margin = ranked[:, -1] - ranked[:, -2]
    chosen = sample.take(np.sort(np.argsort(-margin, kind="stable")[:GOLDEN_SAMPLES]))
    name = signature_of(open_session(model)).outputs[0].name
    write_npz(path, {**chosen.inputs, f"{EXPECTED_PREFIX}{name}": run_model(model, chosen)})
