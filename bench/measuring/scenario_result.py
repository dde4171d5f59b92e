"""The result of a scenario: raw samples under every load, from which every figure can be computed again."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.core.errors import ResultError
from bench.core.files import AnyPath
from bench.core.schema import FrozenModel
from bench.inputs.host import HostFingerprint
from bench.measuring.host_state import HostState
from bench.measuring.result import (
    MAX_RESULT_BYTES,
    Bytes,
    DataSource,
    LatencySummary,
    Nanoseconds,
    latency_summary,
    median_known,
    read_versioned,
)
from bench.measuring.scenario import Scenario

# History of the format. A reader refuses a version it does not know.
# 1: one scenario; models in the order given; processes, loads, bursts of raw nanoseconds.
SCENARIO_SCHEMA_VERSION: Final = 1
# Length of the first and last part of a sustained run, which are compared. Shorter runs use halves.
WINDOW_NS = 60_000_000_000


class LoadPeriod(FrozenModel):
    """A period under one load in one process.

    Only a sustained run has several pieces; the period of any other scenario is one piece.

    Attributes:
        load: number of concurrent streams, or of samples in a batch.
        samples_ns: time of each inference, [streams][any]; in a sustained run [pieces][any].
        elapsed_ns: wall-clock time of each piece, including pauses between inferences.
        states: state of the host before each piece and after the last one.
    """

    load: int = Field(ge=1, le=1_000_000)
    samples_ns: tuple[Annotated[tuple[Nanoseconds, ...], Field(min_length=1)], ...] = Field(min_length=1)
    elapsed_ns: tuple[Annotated[int, Field(ge=1, le=2**62)], ...] = Field(min_length=1)
    states: tuple[HostState, ...] = ()

    def all_ns(self) -> npt.NDArray[np.int64]:
        """The times of all inferences of the period."""
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in self.samples_ns])


class LoadedProcess(FrozenModel):
    """A fresh process: its periods in the order of their runs, and its peak memory over all of them."""

    periods: tuple[LoadPeriod, ...] = Field(min_length=1, alias="spells")
    peak_rss_bytes: Bytes | None = None


class ScenarioModel(FrozenModel):
    """One model's part of a scenario's result."""

    path: str
    sha256: str
    size_bytes: Bytes
    processes: tuple[LoadedProcess, ...]

    def loads(self) -> list[int]:
        """All loads in ascending order."""
        return sorted({period.load for process in self.processes for period in process.periods})

    def periods(self, load: int) -> list[LoadPeriod]:
        """The periods under a load, one per process."""
        return [period for process in self.processes for period in process.periods if period.load == load]

    def peak_rss_bytes(self) -> int | None:
        """Median over processes of the peak resident memory of a process under all its loads."""
        return median_known([process.peak_rss_bytes for process in self.processes])

    def latency(self, load: int) -> LatencySummary:
        """Percentiles of latency under a load."""
        return latency_summary([period.all_ns() for period in self.periods(load)])

    def throughput_per_s(self, load: int, scenario: Scenario) -> float:
        """Samples per second under a load: the median over processes of (samples / elapsed time)."""
        each = load if scenario is Scenario.OFFLINE else 1
        return float(
            np.median([each * len(p.all_ns()) * 1e9 / sum(p.elapsed_ns) for p in self.periods(load)])
        )


class Drift(FrozenModel):
    """Change of latency between the first and the last part of a sustained run.

    Attributes:
        window_ns: length of each part: one minute, or half of a run shorter than two minutes.
        first, last: percentiles of latency in the first and the last part.
        p50_ratio: median latency of the last part / median latency of the first part.
    """

    window_ns: int
    first: LatencySummary
    last: LatencySummary
    p50_ratio: float


class ScenarioResult(FrozenModel):
    """Several models under one scenario, measured together on one host.

    Attributes:
        duration_s: planned duration of each period.
        stopped: why the measurement was stopped early; None if it is complete.
        warnings: reasons why measurements on this host are less reliable; not written to files.
    """

    schema_version: Literal[1] = SCENARIO_SCHEMA_VERSION
    scenario: Literal[Scenario.MULTI_STREAM, Scenario.OFFLINE, Scenario.SUSTAINED]
    tool_version: str
    started_utc: str
    ended_utc: str
    host: HostFingerprint
    threads: int
    arena: bool
    cores: tuple[int, ...] | None
    duration_s: float
    data: DataSource
    models: tuple[ScenarioModel, ...] = Field(min_length=1)
    stopped: str | None = None
    warnings: tuple[str, ...] = Field((), exclude=True)

    @model_validator(mode="after")
    def _whole_or_said_so(self) -> Self:
        if self.stopped is None and not all(model.processes for model in self.models):
            raise ValueError("a model was not measured, but `stopped` does not state why")
        return self


def drift(period: LoadPeriod) -> Drift:
    """Compare the latency at the beginning of a sustained run with that at its end."""
    ends = list(accumulate(period.elapsed_ns))
    window = min(WINDOW_NS, ends[-1] // 2)
    starts = [end - length for end, length in zip(ends, period.elapsed_ns, strict=True)]

    def within(low: int, high: int) -> LatencySummary:
        chosen = [
            np.asarray(part, dtype=np.int64)
            for part, start, end in zip(period.samples_ns, starts, ends, strict=True)
            if low <= (start + end) // 2 <= high
        ]
        return latency_summary([np.concatenate(chosen or [period.all_ns()])])

    first, last = within(0, window), within(ends[-1] - window, ends[-1])
    return Drift(
        window_ns=window, first=first, last=last, p50_ratio=last.p50 / first.p50 if first.p50 else 1.0
    )


class _Head(BaseModel):
    """The field that identifies the result of a scenario. Parsing it alone creates no other objects."""

    scenario: object


def holds_scenario(path: Path) -> bool:
    """Whether a file seems to be the result of a scenario: a JSON object with the key `scenario`."""
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            return False
        _Head.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return False
    return True


def read_scenario(path: AnyPath) -> ScenarioResult:
    """Read the result of a scenario.

    Args:
        path: a file written by `write_result` or `--out`, with this version or an earlier one.

    Raises:
        ResultError: the file is missing or damaged, contradicts itself, or has a schema that is unknown to
            this version.

    Examples:
        >>> import bench
        >>> load = bench.ScenarioConfig(bench.Scenario.OFFLINE, batches=(4,), duration_s=0.1, processes=1)
        >>> bench.write_result("result.json", bench.measure_scenario("model.onnx", config=load))
        >>> bench.read_scenario("result.json").models[0].loads()
        [4]
    """
    path = Path(path)
    result = read_versioned(path, ScenarioResult, f"schema {SCENARIO_SCHEMA_VERSION}")
    for model in result.models:
        for process in model.processes:
            for period in process.periods:
                _check(path, period, sustained=result.scenario is Scenario.SUSTAINED)
    return result


def _check(path: Path, period: LoadPeriod, *, sustained: bool) -> None:
    """Refuse latencies of 0, because throughput divides by them, and pieces without their elapsed times."""
    if not period.all_ns().all():
        raise ResultError(path, "contains a latency of 0 ns", "measure again, or restore the file")
    pieces = len(period.samples_ns) if sustained else 1
    if len(period.elapsed_ns) != pieces:
        raise ResultError(
            path,
            f"contains {len(period.elapsed_ns)} elapsed times for {pieces} pieces",
            "measure again, or restore the file",
        )
