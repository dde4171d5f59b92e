"""The values between which a recipe and the command line let a person choose.

The command line reads them before it knows what to do, so they load nothing.
"""

from __future__ import annotations

from typing import Literal

TargetName = Literal["auto", "x86-vnni", "x86-avx2", "arm64", "portable"]
CalibrationMethod = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
Importance = Literal["taylor", "magnitude", "bn_scale"]
AllocationMethod = Literal["latency", "macs", "uniform"]
Precision = Literal["int8", "fp32"]
BlockSize = Literal[16, 32, 64, 128, 256]
RepairName = Literal["equalize", "smooth", "adaround", "bias"]
# They leave the float model's function as it is, and so come before those that do not.
PRESERVING_REPAIRS: tuple[RepairName, ...] = ("equalize", "smooth")
