"""Reading an artifact: the folder that passes from the workstation to the device."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from bench.core.errors import ArtifactError, UsageError
from bench.core.files import sha256_of
from bench.core.policy import Policy, policy_from
from bench.core.schema import FrozenModel, explain_validation
from bench.inputs.host import HostFingerprint, host_target, other_target, stated_target
from bench.inputs.runtime import VERSION_PATTERN, RuntimeVersion, check_runtime, stated_version

MODEL = "model.onnx"
FLOAT_MODEL = "model.fp32.onnx"
EVALUATION = "evaluation.npz"
GOLDEN = "golden.npz"
MANIFEST = "manifest.json"
REPORT = "report.html"
RESULT = "result.json"

EXPECTED_PREFIX = "expected."


# History of the format. A reader refuses a version it does not know.
# 1 (0.1.0): flat folder, SHA-256 of every file but the manifest.
# 2: the oldest ONNX Runtime that runs both models; may be absent.
SCHEMA_VERSION: Final = 2
MAX_MANIFEST_BYTES = 64 * 2**20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class FileEntry(FrozenModel):
    """What a file of the artifact must be."""

    sha256: str
    size_bytes: int


class StageEntry(FrozenModel):
    """One step of the build: what it was, the hash of all that went in, what it measured."""

    name: str
    kind: str
    key: str
    metrics: dict[str, Any]


class Manifest(FrozenModel):
    """Provenance of an artifact.

    Attributes:
        target: the kind of CPU that the int8 model was made for.
        verdict: what the gate of the build said.
        files: file name -> size and hash; names are plain, the folder is flat.
        stages: the steps that led here, in order; each key covers its parents'.
        recipe: the recipe as it was built, defaults included.
        libraries: versions of everything that shaped the model.
        min_onnxruntime: the oldest ONNX Runtime that runs both models, such as "1.22"; None where the
            build did not know.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    name: str
    created_utc: str
    edgeproof: str
    target: str
    verdict: str
    files: dict[str, FileEntry]
    stages: tuple[StageEntry, ...]
    recipe: dict[str, Any]
    libraries: dict[str, str]
    min_onnxruntime: Annotated[str, Field(pattern=rf"^{VERSION_PATTERN}$")] | None = None

    def runtime(self) -> RuntimeVersion | None:
        """The oldest ONNX Runtime that runs both models, or None."""
        return None if self.min_onnxruntime is None else RuntimeVersion.parse(self.min_onnxruntime)


@dataclass(frozen=True)
class Subject:
    """What is to be measured: a model alone, or an artifact's model with what came along.

    `target` is the kind of CPU that it was made for, None where nothing says so.
    """

    model: Path
    float_twin: Path | None = None
    evaluation: Path | None = None
    target: str | None = None

    @property
    def place(self) -> Path:
        """What a person calls it: the artifact's folder, or the file."""
        return self.model if self.float_twin is None else self.model.parent


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of an artifact.

    Raises:
        ArtifactError: it is missing, damaged, of an unknown schema, or names files outside the folder.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(path, "is larger than a manifest can be", "copy the artifact again")
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            path, f"cannot be read ({error.strerror})", "name an artifact folder or an .onnx"
        ) from error
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        place, cause, fix = explain_validation(error, Manifest)
        if place == "schema_version":
            fix = f"this version reads schemas 1 to {SCHEMA_VERSION}; install a newer edgeproof"
        raise ArtifactError(f"{path}: {place}", cause, fix) from error
    for name in manifest.files:
        if not _PLAIN_NAME.fullmatch(name):
            raise ArtifactError(path, f"names the file {name!r}", "artifact files have plain names")
    return manifest


def own_policy(path: Path) -> Policy:
    """The budgets of the recipe that made an artifact; the default ones for a lone .onnx."""
    if not path.is_dir():
        return Policy()
    return policy_from(read_manifest(path).recipe.get("gate", {}), path)


def check_hashes(folder: Path) -> Manifest:
    """Make sure that every file is what the manifest says, and that there is no other.

    Raises:
        ArtifactError: a file is missing, was altered, or is not listed.
    """
    manifest = read_manifest(folder)
    for name in (MODEL, FLOAT_MODEL, GOLDEN):
        if name not in manifest.files:
            raise ArtifactError(folder / MANIFEST, f"does not list {name}", "build it again")
    if strangers := unlisted_files(folder, manifest):
        raise ArtifactError(
            folder / strangers[0],
            "is not listed in the manifest",
            "move it out of the artifact, or copy the artifact again",
        )
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(path, "is missing from the artifact", "copy the artifact again")
        if path.stat().st_size != entry.size_bytes or sha256_of(path) != entry.sha256:
            raise ArtifactError(
                path, "differs from the hash in the manifest", "copy or build the artifact again"
            )
    return manifest


def unlisted_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names of what lies in an artifact's folder and is not part of it, files and folders alike."""
    known = {*manifest.files, MANIFEST}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def subject(path: Path, evaluation: Path | None = None) -> Subject:
    """Resolve what a user named: an artifact folder (its hashes are checked) or an .onnx file.

    Args:
        path: the folder or file.
        evaluation: data that take the place of the artifact's own.

    Raises:
        UsageError: there is no such file or folder.
        ArtifactError: the folder is not a whole artifact.
        ModelError: it says that it needs a newer ONNX Runtime than there is here.
    """
    if path.is_dir():
        manifest = check_hashes(path)
        check_runtime(path, manifest.runtime())
        own = path / EVALUATION if EVALUATION in manifest.files else None
        return Subject(path / MODEL, path / FLOAT_MODEL, evaluation or own, manifest.target)
    if not path.exists():
        raise UsageError(path, "there is no such file or folder", "check the path")
    check_runtime(path, stated_version(path))
    return Subject(path, None, evaluation, stated_target(path))


def target_warnings(subjects: Iterable[Subject], host: HostFingerprint) -> tuple[str, ...]:
    """A line for each model that was made for another kind of CPU; what is measured here misleads."""
    return tuple(
        f"{subject.place} was made for {subject.target!r}, this CPU is {host_target(host)}: "
        "its times and outputs here are not those of its target"
        for subject in subjects
        if other_target(subject.target, host) is not None
    )
