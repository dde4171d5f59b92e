"""Measure, compare and gate ONNX models, with numpy and ONNX Runtime and without PyTorch or onnx.

These functions do the same as the commands:

    measure, measure_scenario      run models in fresh processes: times, memory, size, accuracy
    compare, gate                  measure models in pairs, and judge one of them by budgets
    verify                         check an artifact's hashes and its outputs on this CPU
    certify                        measure how often the gate is wrong on this host
    read_result, read_scenario     read a result file
    replay, convert, write_result  judge a result again, convert it for other tools, write it to a file

Several threads may call them at once, but their measurements then disturb each other. Importing this
package loads none of its modules. The import disables ONNX Runtime's telemetry for this process and its
child processes.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.core.errors import (
        ArtifactError,
        DataError,
        EdgeproofError,
        HostError,
        MeasurementError,
        ModelError,
        PolicyError,
        ResultError,
        StorageError,
        UsageError,
    )
    from bench.core.policy import Budgets, Policy, ReleaseBudgets, TwinBudgets
    from bench.core.progress import Progress
    from bench.inputs.manifest import Manifest
    from bench.judging.certificate import Certificate
    from bench.judging.certify import CertifyOptions, certify
    from bench.judging.gate import GateOptions, Judgement, compare, gate
    from bench.judging.replay import replay
    from bench.judging.verdicts import Flip, Metric, Verdict
    from bench.measuring.measure import Interrupted, MeasureConfig, measure
    from bench.measuring.result import LatencySummary, ModelResult, Result, Run, read_result, write_result
    from bench.measuring.scenario import Scenario
    from bench.measuring.scenario_result import ScenarioModel, ScenarioResult, read_scenario
    from bench.measuring.scenario_run import ScenarioConfig, measure_scenario
    from bench.measuring.self_test import Verification, verify
    from bench.metrics.parity import Parity
    from bench.views.formats import Format, convert

    __version__: str

__all__ = [
    "ArtifactError",
    "Budgets",
    "Certificate",
    "CertifyOptions",
    "DataError",
    "EdgeproofError",
    "Flip",
    "Format",
    "GateOptions",
    "HostError",
    "Interrupted",
    "Judgement",
    "LatencySummary",
    "Manifest",
    "MeasureConfig",
    "MeasurementError",
    "Metric",
    "ModelError",
    "ModelResult",
    "Parity",
    "Policy",
    "PolicyError",
    "Progress",
    "ReleaseBudgets",
    "Result",
    "ResultError",
    "Run",
    "Scenario",
    "ScenarioConfig",
    "ScenarioModel",
    "ScenarioResult",
    "StorageError",
    "TwinBudgets",
    "UsageError",
    "Verdict",
    "Verification",
    "__version__",
    "certify",
    "compare",
    "convert",
    "gate",
    "measure",
    "measure_scenario",
    "read_result",
    "read_scenario",
    "replay",
    "verify",
    "write_result",
]

# The module that defines each name; it is imported at the first use of the name.
_HOMES = {
    "bench.core.errors": (
        "ArtifactError",
        "DataError",
        "EdgeproofError",
        "HostError",
        "MeasurementError",
        "ModelError",
        "PolicyError",
        "ResultError",
        "StorageError",
        "UsageError",
    ),
    "bench.core.policy": ("Budgets", "Policy", "ReleaseBudgets", "TwinBudgets"),
    "bench.core.progress": ("Progress",),
    "bench.inputs.manifest": ("Manifest",),
    "bench.judging.certificate": ("Certificate",),
    "bench.judging.certify": ("CertifyOptions", "certify"),
    "bench.judging.gate": ("GateOptions", "Judgement", "compare", "gate"),
    "bench.judging.replay": ("replay",),
    "bench.judging.verdicts": ("Flip", "Metric", "Verdict"),
    "bench.measuring.measure": ("Interrupted", "MeasureConfig", "measure"),
    "bench.measuring.result": (
        "LatencySummary",
        "ModelResult",
        "Result",
        "Run",
        "read_result",
        "write_result",
    ),
    "bench.measuring.scenario": ("Scenario",),
    "bench.measuring.scenario_result": ("ScenarioModel", "ScenarioResult", "read_scenario"),
    "bench.measuring.scenario_run": ("ScenarioConfig", "measure_scenario"),
    "bench.measuring.self_test": ("Verification", "verify"),
    "bench.metrics.parity": ("Parity",),
    "bench.views.formats": ("Format", "convert"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

# From 1.29 on, ONNX Runtime on Linux writes a device id and an event store into the home folder, looks up
# a host on the network, and starts a thread for telemetry. It reads these variables during its import; a
# later call of `onnxruntime.disable_telemetry_events` has no effect on that. They are set here because
# every module of edgeproof imports this package before it can import ONNX Runtime.
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1"}
os.environ.update(TELEMETRY_OFF)


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name of this package

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return import_module("bench.core.version").tool_version()
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
