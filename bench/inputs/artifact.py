"""Reading of an artifact: the folder that is copied from the workstation to the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import ArtifactError, UsageError
from bench.core.files import AnyPath, sha256_of
from bench.core.policy import Policy, policy_from
from bench.core.progress import Progress
from bench.inputs.host import HostFingerprint, fingerprint, host_target, other_target, stated_target
from bench.inputs.manifest import MANIFEST, Manifest, read_manifest
from bench.inputs.runtime import check_runtime, stated_version

MODEL = "model.onnx"
FLOAT_MODEL = "model.fp32.onnx"
EVALUATION = "evaluation.npz"
GOLDEN = "golden.npz"
REPORT = "report.html"
RESULT = "result.json"

EXPECTED_PREFIX = "expected."


@dataclass(frozen=True)
class Subject:
    """A model to measure: an .onnx file without an artifact, or the model of an artifact.

    Attributes:
        model: the .onnx file.
        float_twin: the float baseline of an artifact; None for an .onnx file without an artifact.
        evaluation: the evaluation set, or None.
        target: the kind of CPU that the model was made for; None if the model does not state it.
    """

    model: Path
    float_twin: Path | None = None
    evaluation: Path | None = None
    target: str | None = None

    @property
    def place(self) -> Path:
        """The path to show to a person: the artifact's folder, or the file."""
        return self.model if self.float_twin is None else self.model.parent


def own_policy(path: Path) -> Policy:
    """Return the budgets of the recipe that built an artifact; for a separate .onnx, the default budgets.

    Raises:
        ArtifactError: the manifest cannot be read.
        PolicyError: the budgets have an unknown key or an impossible value.
    """
    if not path.is_dir():
        return Policy()
    return policy_from(read_manifest(path).recipe.get("gate", {}), path)


def check_hashes(folder: Path) -> Manifest:
    """Check that every file matches the manifest, and that there are no other files.

    Raises:
        ArtifactError: a file is missing, was changed, or is not listed.
    """
    manifest = read_manifest(folder)
    for name in (MODEL, FLOAT_MODEL, GOLDEN):
        if name not in manifest.files:
            raise ArtifactError(folder / MANIFEST, f"does not list {name}", "build the artifact again")
    if unlisted := unlisted_files(folder, manifest):
        raise ArtifactError(
            folder / unlisted[0],
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
    """Return the names of files and folders in an artifact's folder that the manifest does not list."""
    known = {*manifest.files, MANIFEST}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def subject(place: AnyPath, data: AnyPath | None = None) -> Subject:
    """Return the model of an artifact folder (after a check of its hashes) or of an .onnx file.

    Args:
        place: the artifact folder or the .onnx file.
        data: an evaluation set to use instead of the artifact's evaluation set.

    Raises:
        UsageError: the file or folder does not exist.
        ArtifactError: the folder is not a complete artifact.
        ModelError: the model states that it needs a newer ONNX Runtime than the installed one.
    """
    path, evaluation = Path(place), None if data is None else Path(data)
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
    """Return a warning for each model that was made for another kind of CPU than `host` has."""
    return tuple(
        f"{subject.place} was made for {subject.target!r}, this CPU is {host_target(host)}: "
        "its times and outputs here do not apply to its target"
        for subject in subjects
        if other_target(subject.target, host) is not None
    )


def warn_of_targets(subjects: Iterable[Subject], progress: Progress) -> tuple[str, ...]:
    """Show a warning for each model that was made for another kind of CPU, and return the warnings."""
    warnings = target_warnings(subjects, fingerprint())
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return warnings
