"""Assemble an artifact from the files of finished steps, in one atomic rename."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from bench.core.errors import EdgeproofError
from bench.core.files import atomic_directory, sha256_of, storage_errors, write_json
from bench.core.model_file import external_data
from bench.inputs.artifact import EVALUATION, FLOAT_MODEL, GOLDEN, MODEL, REPORT, RESULT, check_hashes
from bench.inputs.manifest import (
    MANIFEST,
    FileEntry,
    ImageInput,
    Manifest,
    MetricEntry,
    SignatureEntry,
    StageEntry,
)
from bench.inputs.runtime import stated_version
from bench.inputs.session import Signature, open_session, signature_of
from bench.judging.gate import Judgement
from exporter.caching.provenance import library_versions
from exporter.caching.steps import FinishedSteps
from exporter.recipes import Recipe
from exporter.reporting.report import render_report
from exporter.reporting.stage_sections import FinishedStep
from exporter.results import Int4Result, Int8Result

# The only task that the stages train for.
TASK = "classification"
# File of an artifact -> the step that writes it.
_SOURCES = {
    MODEL: "quantize",
    FLOAT_MODEL: "export",
    EVALUATION: "parity",
    GOLDEN: "parity",
    RESULT: "gate",
}


def is_current(destination: Path, finished: FinishedSteps) -> bool:
    """Whether the artifact at `destination` is undamaged and was made from exactly these steps."""
    try:
        manifest = check_hashes(destination)
    except EdgeproofError:
        return False
    keys = [entry.key for entry in finished.entries.values()]
    return [stage.key for stage in manifest.stages] == keys


def write_artifact(
    destination: Path, recipe: Recipe, finished: FinishedSteps, judgement: Judgement
) -> None:
    """Write the artifact of a build.

    Raises:
        StorageError: the folder cannot be written.
    """
    with storage_errors(destination), atomic_directory(destination) as staging:
        for name, step in _SOURCES.items():
            path = finished.folder(step) / name
            for source in (path, *external_data(path)):
                shutil.copyfile(source, staging / source.name)
        manifest = _manifest(staging, recipe, finished, judgement)
        steps = [FinishedStep(name, entry.result) for name, entry in finished.entries.items()]
        (staging / REPORT).write_text(render_report(manifest, steps, judgement), encoding="utf-8")
        manifest = manifest.model_copy(update={"files": _entries(staging)})
        write_json(staging / MANIFEST, manifest.model_dump(mode="json"))


def _manifest(folder: Path, recipe: Recipe, finished: FinishedSteps, judgement: Judgement) -> Manifest:
    quantized = finished.entries["quantize"].result
    assert isinstance(quantized, Int8Result | Int4Result)
    versions, signature = library_versions(), signature_of(open_session(folder / MODEL))
    return Manifest(
        name=recipe.name,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        edgeproof=versions["edgeproof"],
        target=quantized.target,
        verdict=judgement.verdict.value,
        files=_entries(folder),
        stages=tuple(
            StageEntry(name=name, kind=entry.result.kind, key=entry.key, metrics=entry.result.as_json())
            for name, entry in finished.entries.items()
        ),
        recipe=recipe.model_dump(mode="json"),
        libraries=versions,
        min_onnxruntime=_oldest_runtime(folder),
        task=TASK,
        preprocessing=preprocessing_entries(recipe, signature),
        metrics=_metrics(judgement),
        signature=SignatureEntry.of(signature),
    )


def preprocessing_entries(recipe: Recipe, signature: Signature) -> tuple[ImageInput, ...] | None:
    """The preprocessing inside the model, for the manifest; None if the model has none."""
    config = recipe.export.preprocess
    if config is None:
        return None
    name = config.input or signature.inputs[0].name
    return (ImageInput(input=name, layout=config.layout, mean=config.mean, std=config.std, in_graph=True),)


def _metrics(judgement: Judgement) -> dict[str, MetricEntry] | None:
    """Accuracy of the int8 model and of its float baseline; None without labels."""
    by_name = {model.path: model for model in judgement.result.models}
    correct = by_name[MODEL].correct()
    if correct is None:
        return None
    accuracy = MetricEntry(
        value=float(correct.mean()),
        baseline=by_name[FLOAT_MODEL].accuracy(),
        direction="higher",
        split="evaluation",
        samples=len(correct),
    )
    return {"accuracy": accuracy}


def _oldest_runtime(folder: Path) -> str:
    """The oldest version of ONNX Runtime that runs both models of an artifact."""
    stated = [stated_version(folder / name) for name in (MODEL, FLOAT_MODEL)]
    return str(max(needed for needed in stated if needed is not None))


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        path.name: FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
