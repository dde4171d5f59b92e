"""Accuracy repair: what is done to a float model so that it loses less in int8.

Each repair is one file and one function, all of one signature.

    (model, context) -> (repaired copy, figures)

A repair reads nothing but its arguments and is deterministic. Those in `PRESERVING_REPAIRS` leave the
function of the float model as it is; the others bend it so that rounding bends it back. What a repair
bought is measured (`repair.trial`) on samples that it has not seen, and one that bought nothing is not
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exporter.options import RepairName
from exporter.quantization.repair.adaround import adaround
from exporter.quantization.repair.base import Repair, RepairContext
from exporter.quantization.repair.bias_correction import correct_bias
from exporter.quantization.repair.equalize import equalize
from exporter.quantization.repair.smooth import smooth
from exporter.results import AdaRoundReport, AnyRepairReport, BiasReport, EqualizeReport, SmoothReport

REPAIRS: dict[RepairName, Repair] = {
    "equalize": equalize,
    "smooth": smooth,
    "adaround": adaround,
    "bias": correct_bias,
}
# Of each repair: its figures, and what it bought.
REPORTS: Final[Mapping[RepairName, type[AnyRepairReport]]] = {
    "equalize": EqualizeReport,
    "smooth": SmoothReport,
    "adaround": AdaRoundReport,
    "bias": BiasReport,
}

__all__ = ["REPAIRS", "REPORTS", "Repair", "RepairContext"]
