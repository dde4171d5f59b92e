"""The self-test of an artifact on a device: run the golden feeds on this CPU."""

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

# Another CPU may round ties in the same file differently, which changes some values by one 8-bit level. A
# kernel that saturates, or a wrong graph optimization, has an SQNR far below this.
GOLDEN_MIN_SQNR_DB = 25.0


@dataclass(frozen=True)
class Verification:
    """A complete artifact whose outputs on this CPU match those of its build.

    Attributes:
        artifact: folder of the artifact.
        manifest: the artifact's manifest; every file matches the hash in it.
        golden: parity of the golden outputs on this CPU with those of the build.
        warnings: reasons why measurements of this artifact on this host are less reliable.
    """

    artifact: Path
    manifest: Manifest
    golden: Parity
    warnings: tuple[str, ...] = ()


def verify(artifact: AnyPath, *, progress: Progress = SILENT) -> Verification:
    """Check an artifact's hashes, and that its outputs on this CPU match those of its build.

    Args:
        artifact: folder of the artifact.
        progress: receives warnings; `SILENT` shows none.

    Raises:
        UsageError: `artifact` is not a folder.
        ArtifactError: a file is missing, was changed or is not in the manifest, or the outputs differ.
        ModelError: the artifact needs a newer ONNX Runtime than the installed one.

    Examples:
        >>> import bench
        >>> bench.verify("artifact").golden.agreement
        1.0
    """
    folder = Path(artifact)
    if not folder.is_dir():
        raise UsageError(folder, "is not a folder", "pass the artifact folder of a build")
    manifest = check_hashes(folder)
    made = Subject(folder / MODEL, folder / FLOAT_MODEL, None, manifest.target)
    warnings = warn_of_targets([made], progress)
    return Verification(folder, manifest, self_test(folder), warnings)


def self_test(folder: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Parity:
    """Run the golden feeds on this CPU and compare the outputs with those of the build.

    Call `check_hashes` first, because files that it has not checked cannot be trusted.

    Raises:
        ArtifactError: the outputs on this CPU differ from the outputs on the CPU that built the artifact.
        ModelError: the artifact needs a newer ONNX Runtime than the installed one.
    """
    manifest = read_manifest(folder)
    check_runtime(folder, manifest.runtime())
    golden = folder / GOLDEN
    with worker_group(1, timeout_s) as (worker,):
        worker.ask(Open(str(folder / MODEL), feeds=None, threads=1, arena=True, cores=None))
        outcome = worker.ask(Golden(str(golden)))
    if outcome.agreement < 1.0 or outcome.sqnr_db < GOLDEN_MIN_SQNR_DB:
        other = other_target(manifest.target, fingerprint())
        made = "at its build" if other is None else f"on {other}, which it was made for"
        raise ArtifactError(
            folder / MODEL,
            f"its outputs on this CPU differ from the outputs {made} (SQNR {outcome.sqnr_db:.1f} dB, "
            f"at least {GOLDEN_MIN_SQNR_DB:.0f} dB expected; {outcome.agreement:.0%} of predictions equal, "
            "100% expected)",
            "build it for this CPU" if other is None else f"verify it on {other}, or build it for this CPU",
        )
    return outcome
