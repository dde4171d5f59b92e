"""The device's self-test: the golden feeds, run on this CPU."""

from __future__ import annotations

from pathlib import Path

from bench.core.errors import ArtifactError
from bench.inputs.artifact import GOLDEN, MODEL
from bench.inputs.host import fingerprint, other_target
from bench.inputs.manifest import read_manifest
from bench.inputs.runtime import check_runtime
from bench.measuring.protocol import Golden, Open
from bench.measuring.worker_process import DEFAULT_TIMEOUT_S, worker_group
from bench.metrics.parity import Parity

# The same file on another CPU may round ties differently, by one level of 8 bits here and there; a
# kernel that saturates or an optimizer that miscompiles is far below this.
GOLDEN_MIN_SQNR_DB = 25.0


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
