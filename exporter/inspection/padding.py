"""Find the positions of a sequence that hold padding, whose results nobody reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.core.arrays import Array

_MASK = "mask"
_RANK = 2


def real_positions(feeds: Mapping[str, Array]) -> Array | None:
    """The positions that hold no padding, bool [N, length]; None if no input states them.

    The input that states them has "mask" in its name, holds only 0 and 1, and starts with 1 in each row
    that is not empty, or ends with 1 if the padding is on the left. This is the `attention_mask` of
    Transformers. Other masks, for example of masked words, do not have this form.

    Args:
        feeds: input name -> array [N, ...].
    """
    masks = [array for name, array in feeds.items() if _MASK in name.lower() and _is_padding(array)]
    return masks[0].astype(bool) if len(masks) == 1 else None


def without_padding(values: Array, real: Array | None) -> Array:
    """Values with 0 at positions of padding; the same array if it does not have these positions.

    Args:
        values: an output, [N, length, ...].
        real: the result of `real_positions`.
    """
    if real is None or values.shape[:_RANK] != real.shape:
        return values
    cleared = values.copy()
    cleared[~real] = 0
    return cleared


def _is_padding(array: Array) -> bool:
    if array.ndim != _RANK or not array.size or array.dtype.kind not in "biuf":
        return False
    if not np.isin(array, (0, 1)).all() or not array.any():
        return False
    steps = np.diff(array.astype(np.int8), axis=1)
    return bool((steps <= 0).all() or (steps >= 0).all())
