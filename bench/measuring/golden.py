"""Golden data of an artifact: feeds, and the outputs that the build computed from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.core.arrays import Array, read_npz
from bench.core.errors import ArtifactError
from bench.inputs.artifact import EXPECTED_PREFIX
from bench.metrics.parity import Parity, parity


def read_golden(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Read the golden feeds and the expected outputs.

    Raises:
        ArtifactError: the file contains no feeds or no expected outputs.
    """
    arrays = read_npz(path)
    expected = {
        name.removeprefix(EXPECTED_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(EXPECTED_PREFIX)
    }
    feeds = {n: a for n, a in arrays.items() if not n.startswith(EXPECTED_PREFIX)}
    if not feeds or not expected:
        raise ArtifactError(path, "contains no feeds or no expected outputs", "build the artifact again")
    return feeds, expected


def compare_golden(feeds_path: Path, outputs: dict[str, Array]) -> Parity:
    """Parity of a model's outputs with the golden outputs; for several outputs, the worst parity.

    Raises:
        ArtifactError: an expected output has no counterpart of the same shape, or an output contains NaN or
            infinity.
    """
    _, expected = read_golden(feeds_path)
    found = []
    for name, array in expected.items():
        if name not in outputs or outputs[name].shape != array.shape:
            actual = f"has shape {list(outputs[name].shape)}" if name in outputs else "does not exist"
            raise ArtifactError(
                feeds_path,
                f"expects output {name!r} of shape {list(array.shape)}, but in the model it {actual}",
                "build the artifact again",
            )
        if not (np.isfinite(array).all() and np.isfinite(outputs[name]).all()):
            raise ArtifactError(
                feeds_path, f"output {name!r} holds NaN or infinity", "build the artifact again"
            )
        found.append(parity(array, outputs[name]))
    return min(found, key=lambda p: (p.agreement, p.sqnr_db))
