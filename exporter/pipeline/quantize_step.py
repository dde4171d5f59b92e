"""The step `quantize`: from the float model to 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx

from bench.core.files import model_size
from bench.inputs.artifact import FLOAT_MODEL, MODEL
from exporter.caching.cache import content_key
from exporter.caching.steps import StepFolders
from exporter.graphs.kernels import check_runtime_asked
from exporter.graphs.rewrites.processing import as_shipped
from exporter.inspection.drift import drifts
from exporter.networks.network import load_trained_qparams
from exporter.pipeline.export_step import model_to_quantize
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.quantization.calibration import RangeStore
from exporter.quantization.fastest import Race
from exporter.quantization.split import quantize_split, sample_count
from exporter.results import Int4Model, Int4Result, Int8Model, Int8Result
from exporter.training.sparsity.sizes import compressed_size


@dataclass(frozen=True)
class QuantizeStep:
    """Quantize the exported model by the recipe's table `quantize`.

    Attributes:
        resolved: the recipe.
        reuse: folder in which builds share activation ranges; None shares nothing.
    """

    kind: ClassVar[str] = "quantize"
    name: ClassVar[str] = "quantize"
    parents: ClassVar[tuple[str, ...]] = ("export",)

    resolved: ResolvedRecipe
    reuse: Path | None

    def ingredients(self) -> Mapping[str, object]:
        """The table `quantize`, and the target after `auto` is resolved."""
        return {
            **self.resolved.ingredients,
            "config": self.resolved.recipe.quantize.model_dump(mode="json"),
            "target": self.resolved.target().name,
        }

    def run(self, folders: StepFolders) -> Int8Result | Int4Result:
        """Write the quantized model.

        Raises:
            DataError: there are too few calibration samples.
            ModelError: a float model needs a newer ONNX Runtime than the recipe names.
            ExportError: an excluded node does not exist, ONNX Runtime refuses the model, or no
                configuration meets the limits of the fallback.
            SlowerError: int8 is slower than float on this CPU, and the goal is speed.
        """
        resolved, exported, path = self.resolved, folders.parents["export"], folders.out / MODEL
        config, target, calibration = resolved.recipe.quantize, resolved.target(), resolved.data.calibration
        source = model_to_quantize(exported)
        if config.onnxruntime is not None:
            for model in dict.fromkeys((source, exported / FLOAT_MODEL)):
                check_runtime_asked(onnx.load(model), target.runtime, "quantize.onnxruntime")
        made = quantize_split(
            source,
            path,
            as_shipped(calibration, resolved.recipe.export.preprocess),
            config,
            target,
            seed=resolved.recipe.seed,
            progress=resolved.progress,
            store=self._ranges(),
            race=Race(source, config.goal, self.reuse),
            trained_qparams=load_trained_qparams(exported),
        )
        warnings = resolved.warned((*self._drift(), *_slower(made), *_unlike(made)))
        result = Int4Result if isinstance(made, Int4Model) else Int8Result
        return result(
            **dict(made),
            size_bytes=model_size(path),
            compressed_bytes=compressed_size(sorted(folders.out.iterdir())),
            warnings=warnings,
        )

    def _ranges(self) -> RangeStore | None:
        """The store of activation ranges of earlier builds on the same samples; None without `reuse`."""
        if self.reuse is None:
            return None
        drawn = {
            "data": self.resolved.data_fingerprint,
            "seed": self.resolved.recipe.seed,
            "samples": sample_count(self.resolved.data.calibration, self.resolved.recipe.quantize),
        }
        return RangeStore(self.reuse, content_key(drawn))

    def _drift(self) -> tuple[str, ...]:
        """A warning for each input whose calibration samples differ from the evaluation samples."""
        data = self.resolved.data
        return tuple(
            f"calibration and evaluation samples of input {drift.name!r} differ: their distance is "
            f"{drift.distance:.2f}, but two halves of the calibration samples have a distance of "
            f"{drift.own:.2f}"
            for drift in drifts(data.calibration.inputs, data.evaluation.inputs)
            if drift.is_far
        )


def _slower(made: Int8Model | Int4Model) -> tuple[str, ...]:
    """A warning if the model is slower than float on this CPU, or not clearly faster."""
    if not isinstance(made, Int8Model) or made.speed is None:
        return ()
    slow = made.pays == "float" or not made.speed.is_clear
    return (f"the int8 model {made.speed.text()}",) if slow else ()


def _unlike(made: Int8Model | Int4Model) -> tuple[str, ...]:
    """A warning if the model's outputs differ much from float."""
    fidelity = made.fidelity if isinstance(made, Int8Model) else None
    warning = None if fidelity is None else fidelity.warning()
    return () if warning is None else (warning,)
