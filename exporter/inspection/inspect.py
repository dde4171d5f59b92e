"""`edgeproof inspect`: show which kernels ONNX Runtime runs, and the error of each layer against float."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import JsonValue

from bench.core.errors import UsageError
from bench.core.files import AnyPath
from bench.inputs.artifact import Subject, subject
from bench.inputs.evaluation import read_evaluation
from bench.inputs.host import fingerprint, host_target
from bench.inputs.runtime import check_runtime, stated_version
from bench.inputs.session import open_session, signature_of
from bench.measuring.worker import fixed_batch
from exporter.extras import require
from exporter.options import TargetName
from exporter.results import Audit, Fidelity, LayerError
from exporter.sources.splits import ArraySamples


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        audit: the operators in int8, the operators in float with reasons, and the layers that may saturate.
        layers: the error of each rounded tensor, in graph order; None if it was not requested.
        fidelity: closeness of the outputs to float; None if layers were not requested.
    """

    audit: Audit
    layers: tuple[LayerError, ...] | None = None
    fidelity: Fidelity | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """The output of `inspect --json`."""
        found: dict[str, JsonValue] = self.audit.model_dump(mode="json")
        if self.layers is not None:
            found["layers"] = [layer.model_dump(mode="json") for layer in self.layers]
        if self.fidelity is not None:
            found["fidelity"] = self.fidelity.model_dump(mode="json")
        return found


def inspect(
    model: AnyPath,
    *,
    data: AnyPath | None = None,
    layers: bool = False,
    float_model: AnyPath | None = None,
    target: TargetName | None = None,
) -> Inspection:
    """Inspect which operators of a model ONNX Runtime runs in int8 and in float.

    Args:
        model: an .onnx file, or the folder of an artifact.
        data: samples, an `.npz` with one array [N, ...] per model input. By default, an artifact's own.
        layers: whether to measure the error of each layer; requires samples and a float model.
        float_model: the model to compare layers with. By default, an artifact's own float model.
        target: the kind of CPU to inspect for; `auto` is this CPU. By default, the kind that the model was
            made for. Layers that may saturate are reported for `x86-avx2` and `portable`.

    Raises:
        MissingExtraError: the extra `export` is not installed.
        UsageError: the file does not exist, the target is unknown, or `layers` is set without samples or a
            float model.
        ArtifactError: the folder is not a complete artifact.
        ModelError: the model cannot be loaded or run, or requires a newer ONNX Runtime.
        DataError: the samples do not fit the model.

    Examples:
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

    known = get_args(TargetName)
    if target is not None and target not in known:
        raise UsageError("--target", f"{target!r} is unknown", f"choose one of: {', '.join(known)}")
    wanted = host_target(fingerprint()) if target == "auto" else target
    chosen = subject(Path(model), None if data is None else Path(data))
    found = audit(chosen.model, chosen.evaluation, wanted or chosen.target)
    if not layers:
        return Inspection(found)
    return Inspection(found, *_layers(chosen, None if float_model is None else Path(float_model)))


def _layers(chosen: Subject, float_model: Path | None) -> tuple[tuple[LayerError, ...], Fidelity]:
    from exporter.inspection.fidelity import closeness, count_samples, fidelity_on
    from exporter.inspection.layer_errors import layer_errors, layer_samples
    from exporter.inspection.same_outputs import answers_of, few_samples

    reference = float_model or chosen.float_twin
    if reference is None:
        raise UsageError("--layers", "there is no float model to compare with", "provide it with --float")
    if chosen.evaluation is None:
        raise UsageError("--layers", "there are no samples to run", "provide samples with --data")
    check_runtime(reference, stated_version(reference))
    open_session(reference)  # raises clear errors if the model cannot be loaded
    size = fixed_batch(signature_of(open_session(chosen.model)))
    samples = read_evaluation(chosen.evaluation, rows=layer_samples(size), spread=True)
    layers = layer_errors(reference, chosen.model, ArraySamples(samples.feeds), size)
    answers = answers_of(reference, few_samples(samples.feeds, size))
    found = closeness(answers, chosen.model)
    return layers, fidelity_on(found, count_samples(answers), reference, layers)
