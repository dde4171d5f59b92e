"""`edgeproof inspect`: what ONNX Runtime really runs of a model, and how far its layers are from float."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from bench.core.errors import UsageError
from bench.core.files import AnyPath
from bench.inputs.artifact import Subject, subject
from bench.inputs.evaluation import read_evaluation
from bench.inputs.runtime import check_runtime, stated_version
from bench.inputs.session import open_session
from exporter.extras import require
from exporter.results import Audit, LayerError
from exporter.sources.splits import ArraySamples


@dataclass(frozen=True)
class Inspection:
    """What an inspection found.

    Attributes:
        audit: what runs in int8, what stayed in float and why, what may saturate.
        layers: the error of each tensor that is rounded, in graph order; None where it was not asked for.
    """

    audit: Audit
    layers: tuple[LayerError, ...] | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """What `inspect --json` prints."""
        found: dict[str, JsonValue] = self.audit.model_dump(mode="json")
        if self.layers is not None:
            found["layers"] = [layer.model_dump(mode="json") for layer in self.layers]
        return found


def inspect(
    model: AnyPath,
    *,
    data: AnyPath | None = None,
    layers: bool = False,
    float_model: AnyPath | None = None,
) -> Inspection:
    """Look at what ONNX Runtime really runs of a model.

    Args:
        model: an .onnx file, or the folder of an artifact.
        data: samples, an `.npz` with one array [N, ...] per model input; an artifact brings its own.
        layers: whether the error of each layer is measured, too; needs samples and a float model.
        float_model: what layers are compared with; an artifact brings its own.

    Raises:
        MissingExtraError: the extra `export` is not installed.
        UsageError: there is no such file, or layers are asked for without samples or a float model.
        ArtifactError: the folder is not a whole artifact.
        ModelError: the model cannot be loaded or run, or needs a newer ONNX Runtime.
        DataError: the samples do not fit the model.

    Example:
        >>> import exporter
        >>> found = exporter.inspect("artifact", layers=True)
        >>> found.audit.int8_mac_ratio, found.audit.float_ops
        (1.0, ())
        >>> worst = min(found.layers, key=lambda layer: layer.sqnr_db)
        >>> worst.sqnr_db > 20
        True
    """
    require("onnx", "export")
    from exporter.inspection.audit import audit

    chosen = subject(Path(model), None if data is None else Path(data))
    found = audit(chosen.model, chosen.evaluation, chosen.target)
    return Inspection(
        found, _layers(chosen, None if float_model is None else Path(float_model)) if layers else None
    )


def _layers(chosen: Subject, float_model: Path | None) -> tuple[LayerError, ...]:
    from exporter.inspection.layer_errors import LAYER_SAMPLES, layer_errors

    reference = float_model or chosen.float_twin
    if reference is None:
        raise UsageError("--layers", "there is no float model to compare with", "name it with --float")
    if chosen.evaluation is None:
        raise UsageError("--layers", "there are no samples to run", "name some with --data")
    check_runtime(reference, stated_version(reference))
    open_session(reference)  # for its clear errors
    samples = read_evaluation(chosen.evaluation, rows=LAYER_SAMPLES, spread=True)
    return layer_errors(reference, chosen.model, ArraySamples(samples.feeds))
