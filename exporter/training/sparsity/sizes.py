"""Compressed size of weights and files, as in a download or an over-the-air update."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from bench.core.arrays import Array
from exporter.graphs.targets import WEIGHT_LEVELS
from exporter.results import CompressedBytes

LEVEL = 6  # zlib's and gzip's default
PIECE = 1 << 20


def compressed_bytes(weights: Mapping[str, Tensor]) -> CompressedBytes:
    """Bytes of weights [out, ...] after zlib compression, as float32 and as int8.

    int8 is symmetric, per output channel, rounded to the nearest, like the deployed weights. The scales do
    not count.
    """
    arrays = [weight.detach().cpu().numpy() for weight in weights.values()]
    return CompressedBytes(
        float=sum(_compressed(array) for array in arrays),
        int8=sum(_compressed(_rounded(array)) for array in arrays),
    )


def compressed_size(paths: Iterable[Path]) -> int:
    """Bytes of files after zlib compression; each file is read piece by piece."""
    total = 0
    for path in paths:
        packer = zlib.compressobj(LEVEL)
        with path.open("rb") as stream:
            for piece in iter(lambda: stream.read(PIECE), b""):
                total += len(packer.compress(piece))
        total += len(packer.flush())
    return total


def _compressed(array: Array) -> int:
    return len(zlib.compress(np.ascontiguousarray(array).tobytes(), LEVEL))


def _rounded(array: Array) -> Array:
    rows = array.reshape(len(array), -1)
    scales = np.abs(rows).max(axis=1, keepdims=True) / WEIGHT_LEVELS
    return np.rint(rows / np.where(scales == 0, 1, scales)).astype(np.int8)
