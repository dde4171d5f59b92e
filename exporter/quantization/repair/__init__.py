"""Accuracy repair: what is done to a float model so that it loses less in int8.

Each repair is one file and one function behind one signature.

    (model, context) -> (repaired copy, metrics)

A repair reads nothing but its arguments and is deterministic. Those in `PRESERVING_REPAIRS` leave the
function of the float model as it is; the others bend it so that rounding bends it back. What a repair
bought is measured by `quantization.repaired` on samples that it has not seen, and one that bought nothing
is not kept.
"""

from __future__ import annotations

from exporter.quantization.repair.adaround import adaround
from exporter.quantization.repair.base import Metrics, Repair, RepairContext
from exporter.quantization.repair.bias_correction import correct_bias
from exporter.quantization.repair.equalize import equalize
from exporter.quantization.repair.smooth import smooth
from exporter.recipes.options import RepairName

REPAIRS: dict[RepairName, Repair] = {
    "equalize": equalize,
    "smooth": smooth,
    "adaround": adaround,
    "bias": correct_bias,
}

__all__ = ["REPAIRS", "Metrics", "Repair", "RepairContext"]
