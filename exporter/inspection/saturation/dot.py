"""An exact simulation of the x86 instruction `vpmaddubsw`.

Without VNNI, ONNX Runtime's x86 kernels (both AVX2 and AVX512) multiply unsigned activations by signed
weights with `vpmaddubsw`. It adds two neighbouring products into 16 bits *with saturation*. `vpmaddwd` with
ones then widens the pair sums to 32 bits; all other additions have 32 bits. Neighbours are elements 2 i and
2 i + 1 of the summed axis K; an odd K is padded with a zero. The zero points are corrected later, with sums
that cannot saturate, so the activations here are the raw bytes.

Source: onnxruntime/core/mlas/lib/x86_64, macros MultiplyAccumulateRowU8S8Avx2 in QgemmU8X8KernelAvx2.S,
MultiplyAccumulateRowAvx2 in ConvSymKernelAvx2.S and their AVX512 counterparts. U8U8 kernels widen to 16
bits first and cannot saturate.
"""

from __future__ import annotations

import numpy as np

from bench.core.arrays import Array

LEAST, MOST = -(2**15), 2**15 - 1
# Rows processed together. This limits the memory of one pair's sums to 16 MiB for a thousand columns.
_ROWS = 4096


def vpmaddubsw_dot(a: Array, w: Array) -> Array:
    """The product of two matrices as an x86 CPU without VNNI computes it.

    Args:
        a: activations, uint8 [M, K].
        w: weights, int8 [K, N].

    Returns:
        int32 [M, N]; the 32-bit sums wrap around, as in hardware.
    """
    weights = w.astype(np.float64)  # sums of fewer than 2 ** 38 products are exact in 53 bits
    exact = np.concatenate(
        [a[start : start + _ROWS].astype(np.float64) @ weights for start in range(0, max(len(a), 1), _ROWS)]
    )
    return (exact.astype(np.int64) - saturation_excess(a, w)).astype(np.int32)


def saturation_excess(a: Array, w: Array) -> Array:
    """The error of saturation: the exact product minus `vpmaddubsw_dot`.

    Only pairs that can saturate with the smallest and largest activations of `a` are computed.

    Args:
        a: activations, uint8 [M, K].
        w: weights, int8 [K, N].

    Returns:
        int64 [M, N].
    """
    excess = np.zeros((len(a), w.shape[1]), np.int64)
    if not excess.size or not len(w):
        return excess
    least, most = pair_sums(w, a.min(axis=0), a.max(axis=0))
    risky = (least < LEAST) | (most > MOST)
    if not risky.any():
        return excess
    left, right = _pairs(a, 1)
    above, below = _pairs(w.astype(np.int32), 0)
    for pair in np.flatnonzero(risky.any(axis=1)):
        columns = np.flatnonzero(risky[pair])
        for start in range(0, len(a), _ROWS):
            rows = slice(start, start + _ROWS)
            sums = np.multiply.outer(left[rows, pair].astype(np.int32), above[pair, columns])
            sums += np.multiply.outer(right[rows, pair].astype(np.int32), below[pair, columns])
            excess[rows, columns] += sums - np.clip(sums, LEAST, MOST)
    return excess


def pair_sums(w: Array, lowest: Array, highest: Array) -> tuple[Array, Array]:
    """The smallest and the largest sum that each pair of products can have, before saturation.

    Activations at the ends of their ranges reach both.

    Args:
        w: weights, int8 [K, N].
        lowest, highest: bounds of the activations at each k, uint8 [K].

    Returns:
        Two arrays int32 [ceil(K / 2), N].
    """
    weights = w.astype(np.int32)
    low, high = lowest.astype(np.int32)[:, None], highest.astype(np.int32)[:, None]
    positive, negative = np.maximum(weights, 0), np.minimum(weights, 0)
    least, most = positive * low + negative * high, positive * high + negative * low
    return sum(_pairs(least, 0)), sum(_pairs(most, 0))  # type: ignore[return-value]


def _pairs(values: Array, axis: int) -> tuple[Array, Array]:
    """Elements 0, 2, 4 ... and 1, 3, 5 ... along an axis; an odd number of elements is padded with zero."""
    if values.shape[axis] % 2:
        fill = [(0, 0)] * values.ndim
        fill[axis] = (0, 1)
        values = np.pad(values, fill)
    even: tuple[slice, ...] = (slice(None),) * axis
    return values[(*even, slice(0, None, 2))], values[(*even, slice(1, None, 2))]
