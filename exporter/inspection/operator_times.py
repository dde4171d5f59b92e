"""The time of each operator of a model, from ONNX Runtime's profile."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from bench.core.arrays import Array
from bench.core.schema import FrozenModel
from bench.inputs.session import FATAL_ONLY, model_error

# Medians of 30 runs are stable. Of a slow model, the fewest runs have to do.
RUNS, FEWEST_RUNS, SECONDS = 30, 5, 2.0
_UNTIMED_RUNS, _UNTIMED_SECONDS = 5, 0.2
_KERNEL = "_kernel_time"
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
# Operator types with one of these prefixes are int8 kernels.
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
    """The time of one operator of the optimized graph.

    Attributes:
        name: name of the node.
        op_type: type of the operator after fusion.
        median_us: median time of the kernel in a run, in microseconds.
        share: the median as a fraction of the sum over all operators.
    """

    name: str
    op_type: str
    median_us: float
    share: float

    @property
    def is_int8(self) -> bool:
        """Whether the operator is an int8 kernel."""
        return self.op_type.startswith(_INT8)

    @property
    def is_conversion(self) -> bool:
        """Whether the operator only converts between float and int8."""
        return self.op_type in _CONVERSIONS


def operator_times(path: Path, feeds: Mapping[str, Array], *, threads: int = 1) -> tuple[OperatorTime, ...]:
    """Profile a model and return its operators, the slowest first.

    Profiling adds some microseconds for each operator and run: the shares are accurate, the sums are too
    high.

    Args:
        path: the model.
        feeds: one batch, input name -> array.
        threads: number of threads of the session.

    Raises:
        ModelError: the model cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = FATAL_ONLY
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            untimed = _repeat(session, feeds, 1, _UNTIMED_RUNS, _UNTIMED_SECONDS)
            _repeat(session, feeds, FEWEST_RUNS, RUNS, SECONDS)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
            raise model_error(path, error) from error
    return _summed(events, untimed)


def blamed(times: Sequence[OperatorTime], count: int = 5) -> tuple[OperatorTime, ...]:
    """The slowest operators of an int8 model that are not int8 kernels."""
    return tuple(one for one in times if not one.is_int8)[:count]


def _repeat(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, Array],
    fewest: int,
    most: int,
    seconds: float,
) -> int:
    """Run a model again and again until the time is over; return the number of runs."""
    end, runs = time.monotonic() + seconds, 0
    while runs < fewest or (runs < most and time.monotonic() < end):
        session.run(None, dict(feeds))
        runs += 1
    return runs


def _summed(events: Sequence[Mapping[str, object]], untimed: int) -> tuple[OperatorTime, ...]:
    durations: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, arguments = str(event.get("name")), event.get("args")
        if event.get("cat") == "Node" and name.endswith(_KERNEL) and isinstance(arguments, Mapping):
            key = name.removesuffix(_KERNEL), str(arguments["op_name"])
            durations.setdefault(key, []).append(float(str(event["dur"])))
    medians = {key: statistics.median(values[untimed:]) for key, values in durations.items()}
    total = sum(medians.values()) or 1.0
    found = (
        OperatorTime(name=name, op_type=op_type, median_us=median, share=median / total)
        for (name, op_type), median in medians.items()
    )
    return tuple(sorted(found, key=lambda one: -one.median_us))
