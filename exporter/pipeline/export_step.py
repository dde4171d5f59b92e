"""The step `export`: from PyTorch to ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.core.files import model_size, sha256_of
from bench.inputs.artifact import FLOAT_MODEL
from exporter.caching.steps import StepFolders
from exporter.networks.network import WEIGHTS, Network, load_network
from exporter.onnx_export.export import export
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.results import ExportResult

# File of the model that is quantized, if that model differs from the float baseline.
TRAINED_MODEL = "trained.onnx"


@dataclass(frozen=True)
class ExportStep:
    """Export the float baseline and, if it has other weights, the model that is quantized.

    Attributes:
        resolved: the recipe.
        trained: name of the step whose network is quantized.
        baseline: name of the step whose network is the float baseline.
    """

    kind: ClassVar[str] = ExportResult.kind
    name: ClassVar[str] = ExportResult.kind

    resolved: ResolvedRecipe
    trained: str
    baseline: str

    @property
    def parents(self) -> tuple[str, ...]:
        """The steps whose networks are exported."""
        return tuple(dict.fromkeys((self.trained, self.baseline)))

    def ingredients(self) -> Mapping[str, object]:
        """The table `export`, and the recipe's name, which is written into the model."""
        recipe = self.resolved.recipe
        return {
            **self.resolved.ingredients,
            "config": recipe.export.model_dump(mode="json"),
            "name": recipe.name,
        }

    def run(self, folders: StepFolders) -> ExportResult:
        """Write the models, and the quantization parameters that were trained, if any.

        Raises:
            ExportError: PyTorch cannot export the network.
        """
        trained = folders.parents[self.trained]
        network = load_network(self.resolved.fresh_module(), trained)
        if self.trained == self.baseline:
            nodes = self._export(network, trained, folders.out / FLOAT_MODEL)
        else:
            nodes = self._export(network, trained, folders.out / TRAINED_MODEL)
            baseline = folders.parents[self.baseline]
            other = load_network(self.resolved.fresh_module(), baseline)
            self._export(other, baseline, folders.out / FLOAT_MODEL)
        network.save_trained_qparams(folders.out)
        return ExportResult(
            nodes=nodes,
            opset=self.resolved.recipe.export.opset,
            **dict(network.zero_counts()),
            size_bytes=model_size(folders.out / FLOAT_MODEL),
        )

    def _export(self, network: Network, folder: Path, path: Path) -> int:
        recipe = self.resolved.recipe
        metadata = {
            "edgeproof.name": recipe.name,
            "edgeproof.version": self.resolved.code.libraries["edgeproof"],
            "edgeproof.weights": sha256_of(folder / WEIGHTS),
        }
        return export(network.module, self.resolved.data.calibration, path, recipe.export, metadata)


def model_to_quantize(exported: Path) -> Path:
    """Path of the float model that is quantized.

    Args:
        exported: folder of the step `export`.
    """
    trained = exported / TRAINED_MODEL
    return trained if trained.exists() else exported / FLOAT_MODEL
