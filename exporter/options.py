"""Allowed values of options that the recipe and the command line share.

The command line imports this module at every start, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import Literal

TargetName = Literal["auto", "x86-vnni", "x86-avx2", "arm64", "portable"]
CalibrationMethod = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
Importance = Literal["taylor", "magnitude", "bn_scale"]
AllocationMethod = Literal["latency", "macs", "uniform"]
Precision = Literal["int8", "fp32"]
BlockSize = Literal[16, 32, 64, 128, 256]
# `speed`: a model that is slower than float is not written. `size`: it is written, with a warning.
Goal = Literal["speed", "size"]
RepairName = Literal["equalize", "smooth", "adaround", "bias"]
# These repairs do not change the outputs of the float model, so they run before the repairs that do.
PRESERVING_REPAIRS: tuple[RepairName, ...] = ("equalize", "smooth")
