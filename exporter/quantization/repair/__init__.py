"""Accuracy repair: change a float model so that it loses less accuracy in int8.

Each repair is one function in its own file. All repairs have the same signature:

    (model, context) -> (repaired copy, figures)

A repair depends only on its arguments and is deterministic. The repairs in `PRESERVING_REPAIRS` do not
change the function of the float model. The others change it to compensate for the error of rounding. The
effect of a repair is measured (`repair.trial`) on samples that it has not seen. A repair without gain is
not kept.
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
# The report of each repair: its figures and its effect.
REPORTS: Final[Mapping[RepairName, type[AnyRepairReport]]] = {
    "equalize": EqualizeReport,
    "smooth": SmoothReport,
    "adaround": AdaRoundReport,
    "bias": BiasReport,
}

__all__ = ["REPAIRS", "REPORTS", "Repair", "RepairContext"]
