"""`edgeproof build`: recipe in, gated artifact out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.core.errors import ArtifactError, EdgeproofError, UsageError
from bench.core.files import (
    atomic_directory,
    remove_leftovers_of,
    sha256_of,
    storage_errors,
    write_json,
)
from bench.core.model_file import external_data
from bench.core.policy import criteria
from bench.core.progress import SILENT, Progress
from bench.inputs.artifact import (
    EVALUATION,
    FLOAT_MODEL,
    GOLDEN,
    MODEL,
    REPORT,
    RESULT,
    check_hashes,
    unlisted_files,
)
from bench.inputs.manifest import MANIFEST, FileEntry, Manifest, StageEntry, read_manifest
from bench.inputs.runtime import stated_version
from bench.judging.gate import Judgement, judgement_from
from bench.measuring.result import read_result
from exporter.caching.cache import RECORD, Cache
from exporter.caching.lock import exclusive
from exporter.caching.run_log import RunLog
from exporter.caching.steps import Trail, run_steps
from exporter.extras import require_all
from exporter.recipes import OnnxTeacherConfig, Recipe, TeacherConfig, read_recipe, teachers_of
from exporter.sources.lookup import PACKAGE_SCHEME, local_path

CACHE_VARIABLE = "EDGEPROOF_CACHE"
CACHE_FOLDER = ".edgeproof"
ARTIFACTS_FOLDER = "artifacts"


@dataclass(frozen=True)
class BuildOutcome:
    """What a build gave.

    Attributes:
        artifact: the folder, or None if the build was told to stop earlier.
        judgement: the gate's, or None likewise.
        stages: metrics of each step, in order.
        ran: the steps that had to be run; empty if everything was there already.
        packaged: whether the artifact was written anew.
    """

    artifact: Path | None
    judgement: Judgement | None
    stages: Mapping[str, Mapping[str, Any]]
    ran: tuple[str, ...]
    packaged: bool


def build(
    recipe_path: Path,
    *,
    out: Path | None = None,
    until: str | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress = SILENT,
) -> BuildOutcome:
    """Run a recipe.

    Args:
        recipe_path: a TOML file.
        out: the artifact's folder; by default `artifacts/NAME` in the working directory.
        until: the last step to run; then no artifact is written, but that step's files to `out` if given.
        overrides: `table.key=value` texts.
        fresh: run every step, whatever the cache holds.
        progress: told how far the build is.

    Raises:
        EdgeproofError: whatever a user can mend.
    """
    require_all()
    recipe = read_recipe(recipe_path, overrides)
    folder = recipe_path.resolve().parent
    destination = (out or Path(ARTIFACTS_FOLDER) / recipe.name).absolute()
    if until is None or out is not None:
        _check_destination(destination, MANIFEST if until is None else RECORD)
        _refuse_read(destination, recipe, folder)
    _check_until(until, recipe)
    root = cache_root(recipe_path)
    # Matplotlib writes its list of fonts into the home folder unless told another place.
    os.environ.setdefault("MPLCONFIGDIR", str(root / "matplotlib"))
    prepare_cache(recipe, folder, root)
    with exclusive(root / "lock", progress.say):
        cache = Cache(root)
        cache.sweep()
        remove_leftovers_of(destination)
        log = RunLog(root, recipe.name)
        trail = _run(recipe, folder, cache, log, until=until, fresh=fresh, progress=progress)
        stages = {name: entry.metrics for name, entry in trail.entries.items()}
        if until is not None:
            if out is not None:
                with storage_errors(destination), atomic_directory(destination) as staging:
                    shutil.copytree(trail.entries[until].folder, staging, dirs_exist_ok=True)
            return BuildOutcome(None, None, stages, trail.ran, packaged=False)
        judgement = _judgement(recipe, trail)
        packaged = not _is_current(destination, trail)
        if packaged:
            _package(destination, recipe, trail, judgement)
            log.write("packaged", verdict=judgement.verdict.value)
        return BuildOutcome(destination, judgement, stages, trail.ran, packaged)


def cache_root(recipe_path: Path) -> Path:
    """Where a recipe's finished steps are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or recipe_path.resolve().parent / CACHE_FOLDER).absolute()


def prepare_cache(recipe: Recipe, folder: Path, root: Path) -> None:
    """Make sure, before any work, that other machines will follow a build; one machine needs nothing.

    Raises:
        StageError: others can write to the recipe's folder or the cache.
    """
    if recipe.train.nodes > 1:
        from exporter.training.loop.hardware import prepare_places

        prepare_places(folder, root)


def _run(
    recipe: Recipe,
    folder: Path,
    cache: Cache,
    log: RunLog,
    *,
    until: str | None,
    fresh: bool,
    progress: Progress,
) -> Trail:
    from exporter.pipeline.context import open_workshop
    from exporter.pipeline.steps import recipe_steps

    shop = open_workshop(recipe, folder, progress)
    steps = recipe_steps(shop, kept=None if fresh else cache.root)
    return run_steps(steps, cache, until=until, fresh=fresh, progress=progress, log=log)


def _check_destination(destination: Path, mark: str) -> None:
    """Refuse to replace a folder that no build like this one wrote: it may be somebody's work."""
    if destination.exists() and not destination.is_dir():
        raise UsageError(destination, "is a file", "choose another --out")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    if not (destination / mark).is_file():
        raise UsageError(destination, "is a folder with other content", "choose another --out")
    if mark != MANIFEST:
        return
    try:
        strangers = unlisted_files(destination, read_manifest(destination))
    except ArtifactError:  # a damaged artifact is built again
        return
    if strangers:
        raise UsageError(
            destination / strangers[0],
            "no build wrote this, and it would be lost with the artifact",
            "move it away, or choose another --out",
        )


def _refuse_read(destination: Path, recipe: Recipe, folder: Path) -> None:
    """Refuse to replace a folder that the recipe reads from, as its checkpoint or a teacher."""
    read = [recipe.model.checkpoint]
    for teacher in (teacher for stage in recipe.stage for teacher in teachers_of(stage)):
        if isinstance(teacher, TeacherConfig):
            read.append(teacher.checkpoint)
        elif isinstance(teacher, OnnxTeacherConfig):
            read.append(teacher.model)
    for address in read:
        if address is None or address.startswith(PACKAGE_SCHEME):
            continue
        if local_path(address, folder).resolve().is_relative_to(destination.resolve()):
            raise UsageError(
                destination, f"holds {address}, which the recipe reads", "choose another --out"
            )


def _check_until(until: str | None, recipe: Recipe) -> None:
    known = ["pretrained", *recipe.stage_names(), "export", "quantize", "parity", "gate"]
    if until is not None and until not in known:
        raise UsageError(f"--until {until}", "is no step of this recipe", f"there are: {', '.join(known)}")


def _judgement(recipe: Recipe, trail: Trail) -> Judgement:
    """The verdict, computed from the raw samples that the gate kept."""
    result = read_result(trail.entries["gate"].folder / RESULT)
    return judgement_from(result, criteria(recipe.gate, [recipe.gate.float_twin]))


def _is_current(destination: Path, trail: Trail) -> bool:
    """Whether the artifact there is whole and comes from these very steps."""
    if not (destination / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(destination)
        check_hashes(destination)
    except EdgeproofError:
        return False
    keys = [entry.key for entry in trail.entries.values()]
    return [stage.key for stage in manifest.stages] == keys


def _package(destination: Path, recipe: Recipe, trail: Trail, judgement: Judgement) -> None:
    """Put the artifact together; it appears whole or not at all."""
    from exporter.caching.provenance import library_versions
    from exporter.reporting.report import render_report

    sources = {
        MODEL: "quantize",
        FLOAT_MODEL: "export",
        EVALUATION: "parity",
        GOLDEN: "parity",
        RESULT: "gate",
    }
    stages = tuple(
        StageEntry(name=name, kind=trail.kinds[name], key=entry.key, metrics=entry.metrics)
        for name, entry in trail.entries.items()
    )
    versions = library_versions()
    with storage_errors(destination), atomic_directory(destination) as staging:
        for name, step in sources.items():
            for source in (
                trail.entries[step].folder / name,
                *external_data(trail.entries[step].folder / name),
            ):
                shutil.copyfile(source, staging / source.name)
        manifest = Manifest(
            name=recipe.name,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            edgeproof=versions["edgeproof"],
            target=trail.entries["quantize"].metrics["target"],
            verdict=judgement.verdict.value,
            files=_entries(staging),
            stages=stages,
            recipe=recipe.model_dump(mode="json"),
            libraries=versions,
            min_onnxruntime=_oldest_runtime(staging),
        )
        (staging / REPORT).write_text(render_report(manifest, judgement), encoding="utf-8")
        manifest = manifest.model_copy(update={"files": _entries(staging)})
        write_json(staging / MANIFEST, manifest.model_dump(mode="json"))


def _oldest_runtime(folder: Path) -> str:
    """The oldest ONNX Runtime that runs both models of an artifact."""
    stated = [stated_version(folder / name) for name in (MODEL, FLOAT_MODEL)]
    return str(max(needed for needed in stated if needed is not None))


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        path.name: FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
