"""Running models on this workstation, for numbers and not for times."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.arrays import Array
from bench.session import open_session
from exporter.data import Split

BATCH = 64


def run_model(path: Path, split: Split) -> Array:
    """The first output of a model on a split, [N, ...]."""
    session = open_session(path)
    return np.concatenate(
        [
            session.run(None, {n: np.ascontiguousarray(a) for n, a in feeds.items()})[0]
            for feeds in split.batches(BATCH)
        ]
    )
