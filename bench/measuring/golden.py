"""The device's self-test: feeds, and the outputs that the build saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.core.arrays import Array, read_npz
from bench.core.errors import ArtifactError
from bench.inputs.artifact import EXPECTED_PREFIX
from bench.metrics.parity import Parity, parity


def read_golden(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Read golden feeds and the outputs expected of them."""
    arrays = read_npz(path)
    expected = {
        name.removeprefix(EXPECTED_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(EXPECTED_PREFIX)
    }
    feeds = {n: a for n, a in arrays.items() if not n.startswith(EXPECTED_PREFIX)}
    if not feeds or not expected:
        raise ArtifactError(path, "holds no feeds or no expected outputs", "build it again")
    return feeds, expected


def compare_golden(feeds_path: Path, outputs: dict[str, Array]) -> Parity:
    """Parity of a model's outputs with the golden ones; the worst output counts."""
    _, expected = read_golden(feeds_path)
    found = []
    for name, array in expected.items():
        if name not in outputs or outputs[name].shape != array.shape:
            raise ArtifactError(feeds_path, f"does not fit output {name!r}", "build it again")
        if not (np.isfinite(array).all() and np.isfinite(outputs[name]).all()):
            raise ArtifactError(feeds_path, f"output {name!r} holds NaN or infinity", "build it again")
        found.append(parity(array, outputs[name]))
    return min(found, key=lambda p: (p.agreement, p.sqnr_db))
