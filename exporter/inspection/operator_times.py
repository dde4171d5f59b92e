"""Where a model's time goes, operator by operator, as ONNX Runtime itself counts it."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from bench.core.arrays import Array
from bench.core.schema import FrozenModel
from bench.inputs.session import ERRORS_ONLY, model_error

RUNS = 30
_UNTIMED_RUNS = 5
_KERNEL = "_kernel_time"
# What int8 adds and what it leaves: conversions, and everything that is no int8 kernel.
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
_INT8 = (
    "QLinear",
    "QGemm",
    "NhwcQLinear",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantize",
    "MatMulNBits",
)


class OperatorTime(FrozenModel):
    """One operator of the graph that really runs.

    Attributes:
        name: the node.
        op_type: its type after fusion.
        median_us: time of its kernel, microseconds a run.
        share: of the sum over all operators.
    """

    name: str
    op_type: str
    median_us: float
    share: float

    @property
    def is_int8(self) -> bool:
        """Whether it is an int8 kernel."""
        return self.op_type.startswith(_INT8)

    @property
    def is_conversion(self) -> bool:
        """Whether it only changes between float and int8."""
        return self.op_type in _CONVERSIONS


def operator_times(path: Path, feeds: Mapping[str, Array], *, threads: int = 1) -> tuple[OperatorTime, ...]:
    """Profile a model, the costliest operator first.

    Profiling costs some microseconds an operator and run: shares are right, sums are too high.

    Args:
        path: the model.
        feeds: one batch, input name -> array.
        threads: of the session.

    Raises:
        ModelError: it cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(_UNTIMED_RUNS + RUNS):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise model_error(path, error) from error
    return _summed(events)


def blamed(times: Sequence[OperatorTime], count: int = 5) -> tuple[OperatorTime, ...]:
    """The operators that keep an int8 model from being fast: the costliest that are no int8 kernels."""
    return tuple(time for time in times if not time.is_int8)[:count]


def _summed(events: Sequence[Mapping[str, object]]) -> tuple[OperatorTime, ...]:
    durations: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, arguments = str(event.get("name")), event.get("args")
        if event.get("cat") == "Node" and name.endswith(_KERNEL) and isinstance(arguments, Mapping):
            key = name.removesuffix(_KERNEL), str(arguments["op_name"])
            durations.setdefault(key, []).append(float(str(event["dur"])))
    medians = {key: statistics.median(values[_UNTIMED_RUNS:]) for key, values in durations.items()}
    total = sum(medians.values()) or 1.0
    found = (
        OperatorTime(name=name, op_type=op_type, median_us=median, share=median / total)
        for (name, op_type), median in medians.items()
    )
    return tuple(sorted(found, key=lambda time: -time.median_us))
