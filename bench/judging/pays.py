"""Whether a quantized model pays: the verdict on its measured time against float."""

from __future__ import annotations

from typing import Literal

from bench.core.statistics import Interval

# `mixed`: operators that multiply stay in float. `float`: the quantized model is slower.
Pays = Literal["int8", "mixed", "float"]


def judge_speed(ratio: Interval, *, mixed: bool) -> Pays:
    """Judge the ratio quantized / float of CPU times.

    `float` needs proof, because it may stop a release: the whole interval is above 1. An unclear result
    does not.

    Args:
        ratio: the ratio with a two-sided 99 % interval.
        mixed: whether operators stay in float.
    """
    if ratio.lower > 1:
        return "float"
    return "mixed" if mixed else "int8"
