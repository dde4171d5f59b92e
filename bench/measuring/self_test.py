"""The device's self-test: the golden feeds, run on this CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import ArtifactError, UsageError
from bench.core.files import AnyPath
from bench.core.progress import SILENT, Progress
from bench.inputs.artifact import FLOAT_MODEL, GOLDEN, MODEL, Subject, check_hashes, warn_of_targets
from bench.inputs.host import fingerprint, other_target
from bench.inputs.manifest import Manifest, read_manifest
from bench.inputs.runtime import check_runtime
from bench.measuring.protocol import Golden, Open
from bench.measuring.worker_process import DEFAULT_TIMEOUT_S, worker_group
from bench.metrics.parity import Parity

# The same file on another CPU may round ties differently, by one level of 8 bits here and there; a
# kernel that saturates or an optimizer that miscompiles is far below this.
GOLDEN_MIN_SQNR_DB = 25.0


@dataclass(frozen=True)
class Verification:
    """A whole artifact, whose outputs here are those that the build saw.

    Attributes:
        artifact: its folder.
        manifest: what it says of itself; every file matches its hash.
        golden: how near the golden outputs come to those of the build.
        warnings: what makes this host a poor one to measure it on.
    """

    artifact: Path
    manifest: Manifest
    golden: Parity
    warnings: tuple[str, ...] = ()


def verify(artifact: AnyPath, *, progress: Progress = SILENT) -> Verification:
    """Check an artifact's hashes, and that this CPU gives the outputs that the build saw.

    Args:
        artifact: the folder.
        progress: told of warnings; `SILENT` says nothing.

    Raises:
        UsageError: it is not a folder.
        ArtifactError: a file is missing, was altered or is not listed, or the outputs differ.
        ModelError: the artifact needs a newer ONNX Runtime than there is here.

    Example:
        >>> import bench
        >>> bench.verify("artifact").golden.agreement
        1.0
    """
    folder = Path(artifact)
    if not folder.is_dir():
        raise UsageError(folder, "is no folder", "name the artifact folder of a build")
    manifest = check_hashes(folder)
    made = Subject(folder / MODEL, folder / FLOAT_MODEL, None, manifest.target)
    warnings = warn_of_targets([made], progress)
    return Verification(folder, manifest, self_test(folder), warnings)


def self_test(folder: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Parity:
    """Run the golden feeds on this CPU and compare with the outputs that the build saw.

    `check_hashes` comes first: what it did not see is not to be trusted.

    Raises:
        ArtifactError: this CPU gives other outputs than the one that the artifact was built on.
        ModelError: the artifact needs a newer ONNX Runtime than there is here.
    """
    manifest = read_manifest(folder)
    check_runtime(folder, manifest.runtime())
    golden = folder / GOLDEN
    with worker_group(1, timeout_s) as (worker,):
        worker.ask(Open(str(folder / MODEL), feeds=None, threads=1, arena=True, cores=None))
        outcome = worker.ask(Golden(str(golden)))
    if outcome.agreement < 1.0 or outcome.sqnr_db < GOLDEN_MIN_SQNR_DB:
        other = other_target(manifest.target, fingerprint())
        wanted = "than where it was built" if other is None else f"than on {other}, which it was made for"
        raise ArtifactError(
            folder / MODEL,
            f"gives other outputs here {wanted} (SQNR {outcome.sqnr_db:.1f} dB, "
            f"{outcome.agreement:.0%} equal predictions)",
            "build it for this CPU" if other is None else "verify it there, or build it for this CPU",
        )
    return outcome
