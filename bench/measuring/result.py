"""The result of a measurement: raw samples, from which every figure can be computed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from bench.core.errors import ResultError, UsageError
from bench.core.files import AnyPath, check_writable, write_text
from bench.core.policy import Criteria
from bench.core.schema import FrozenModel, explain_validation
from bench.core.statistics import minimum_count, quantile_interval
from bench.inputs.host import HostFingerprint
from bench.measuring.host_state import HostState

# History of the format. A reader refuses a version it does not know.
# 1 (0.1.0): models side by side, their runs paired by index, raw nanoseconds per round.
# 2: criteria and repeat of the verdict; memory by phases; the host's state in every round; SQNR of timed
#    outputs against those that accuracy is computed from; sample names. All may be absent.
# 3: the kind of CPU that a model was made for, if the host has another kind. May be absent.
SCHEMA_VERSION: Final = 3
MAX_RESULT_BYTES = 512 * 2**20
_LOOKED_AT = 64  # bytes at the start of a file that show whether it is JSON
# Error probability of the bounds of reported percentiles. The five processes that `bench` starts by default
# are too few for a smaller probability.
REPORT_ALPHA = 0.05

Versioned = TypeVar("Versioned", bound=FrozenModel)


class MemoryReading(FrozenModel):
    """Memory of a process at one moment, in bytes; None if the system does not report it.

    Attributes:
        rss_bytes: resident memory.
        pss_bytes: proportional memory: each shared page counts as a fraction (proc(5), smaps_rollup).
        private_bytes: pages that only this process uses (proc(5), smaps_rollup).
    """

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    private_bytes: int | None = None


class Round(FrozenModel):
    """One round of a block: the order in which the models took turns, and the host's state before it."""

    order: tuple[int, ...]
    state: HostState


# Ranges of real times and sizes. Values in a manipulated file must not overflow the arithmetic.
Nanoseconds = Annotated[int, Field(ge=0, le=2**62)]
Bytes = Annotated[int, Field(ge=1, le=2**62)]
ClassIndex = Annotated[int, Field(ge=0, le=2**62)]


class Run(FrozenModel):
    """The measurements of one fresh process. Memory is None if it cannot be read.

    Attributes:
        session_ns: CPU time used to create the session, in nanoseconds.
        first_run_ns: time of the first inference, in nanoseconds.
        warmup_ns: times of the warmup inferences, in nanoseconds.
        rounds_ns: times of the timed inferences of each burst, in nanoseconds.
        import_rss_bytes: resident memory just before the session was created.
        peak_rss_bytes: peak resident memory.
        memory: phase ("import", "session", "first_run", "steady") -> memory of the process in that phase.
        switches: number of involuntary context switches in each round.
        outputs_sqnr_db: SQNR of the process's outputs for the timed feeds, against the outputs from which
            accuracy was computed; None if no accuracy was measured.
    """

    session_ns: Nanoseconds
    first_run_ns: Nanoseconds
    warmup_ns: tuple[Nanoseconds, ...]
    rounds_ns: tuple[Annotated[tuple[Nanoseconds, ...], Field(min_length=1)], ...] = Field(min_length=1)
    import_rss_bytes: Bytes | None
    peak_rss_bytes: Bytes | None
    memory: dict[str, MemoryReading] = Field(default_factory=dict)
    switches: tuple[int, ...] | None = None
    outputs_sqnr_db: float | None = None

    def samples_ns(self) -> npt.NDArray[np.int64]:
        """The times of all timed inferences of the process, in order."""
        return np.concatenate([np.asarray(r, dtype=np.int64) for r in self.rounds_ns])


class LatencySummary(FrozenModel):
    """Percentiles of latency in nanoseconds.

    Attributes:
        p50, p90, p99: the percentiles; None if there are too few samples to estimate one.
        count: number of samples.
        bounds: percentile -> (lower, upper) one-sided 95 % bounds; absent if there are too few samples.
    """

    p50: float
    p90: float | None
    p99: float | None
    count: int
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)


def latency_summary(groups: Sequence[npt.NDArray[np.int64]]) -> LatencySummary:
    """Percentiles over all samples.

    Args:
        groups: the samples of each process, in ns.
    """
    samples = np.concatenate(groups)
    found: dict[str, float | None] = {}
    bounds = {}
    for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        enough = len(samples) >= minimum_count(quantile)
        found[name] = float(np.quantile(samples, quantile)) if enough else None
        interval = quantile_interval(groups, quantile, REPORT_ALPHA)
        if enough and np.isfinite([interval.lower, interval.upper]).all():
            bounds[name] = (interval.lower, interval.upper)
    return LatencySummary(
        p50=float(np.median(samples)),
        p90=found["p90"],
        p99=found["p99"],
        count=len(samples),
        bounds=bounds,
    )


class ModelResult(FrozenModel):
    """One model's part of a result.

    Attributes:
        path: path of the .onnx file.
        sha256: hash of the file and its external weights.
        size_bytes: size of the file and its external weights.
        runs: the measurements of each process.
        predictions: predicted class of each evaluation sample, in order.
        labels: true class of each evaluation sample; None without labels.
        changed: whether the file changed while it was measured.
        made_for: the kind of CPU that the model was made for, if the host has another kind. Its times and
            memory on this host then do not apply to that CPU. None if the model was made for the host's
            kind of CPU, or for every kind.
    """

    path: str
    sha256: str
    size_bytes: Bytes
    runs: tuple[Run, ...]
    predictions: tuple[ClassIndex, ...] | None = None
    labels: tuple[ClassIndex, ...] | None = None
    changed: bool = False
    made_for: str | None = None

    def latency(self) -> LatencySummary:
        """Percentiles over the samples of all processes."""
        return latency_summary([run.samples_ns() for run in self.runs])

    def memory_phases(self) -> dict[str, MemoryReading]:
        """Median over processes of the memory in each phase.

        A phase that no process reports is absent; a field that no process reports is None.
        """
        names = dict.fromkeys(name for run in self.runs for name in run.memory)
        return {
            name: MemoryReading(
                **{
                    field: median_known(
                        [getattr(r.memory[name], field) for r in self.runs if name in r.memory]
                    )
                    for field in MemoryReading.model_fields
                }
            )
            for name in names
        }

    def peak_rss_bytes(self) -> int | None:
        """Median over processes of the peak resident memory."""
        return median_known([run.peak_rss_bytes for run in self.runs])

    def session_ns(self) -> int:
        """Median over processes of the CPU time to create the session."""
        return int(np.median([run.session_ns for run in self.runs]))

    def first_run_ns(self) -> int:
        """Median over processes of the time of the first inference."""
        return int(np.median([run.first_run_ns for run in self.runs]))

    def throughput_per_s(self) -> float:
        """Inferences per second of one stream: the inverse of the mean latency."""
        samples = np.concatenate([run.samples_ns() for run in self.runs])
        return 1e9 / float(samples.mean())

    def correct(self) -> npt.NDArray[np.bool_] | None:
        """Whether each evaluation sample is classified correctly; None without labels."""
        if self.predictions is None or self.labels is None:
            return None
        return np.equal(self.predictions, self.labels)

    def accuracy(self) -> float | None:
        """Fraction of evaluation samples classified correctly; None without labels."""
        correct = self.correct()
        return None if correct is None else float(correct.mean())


class Settings(FrozenModel):
    """Settings of the measurement; results with different settings are not compared."""

    threads: int
    arena: bool
    rounds: int
    burst_target_ns: int
    untimed_per_burst: int
    seed: int
    cores: tuple[int, ...] | None


class DataSource(FrozenModel):
    """Origin of the feeds. Random (`synthetic`) feeds allow no statement about accuracy."""

    path: str | None
    sha256: str | None
    samples: int
    synthetic: bool
    ids: tuple[str, ...] | None = None


class Result(FrozenModel):
    """Several models measured side by side on one host.

    Attributes:
        blocks: the rounds of every block, in order.
        stopped: why the measurement was stopped early; None if it is complete.
        criteria: the criteria of the verdict; None if the models were only measured, not judged.
        repeat: the independent repeat of the measurement after a FAIL; None without a repeat.
        certificate: the host's error rates at the time of the verdict, in one line.
        warnings: reasons why measurements on this host are less reliable; not written to files.
    """

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    tool_version: str
    started_utc: str
    ended_utc: str
    host: HostFingerprint
    settings: Settings
    data: DataSource
    models: tuple[ModelResult, ...]
    blocks: tuple[tuple[Round, ...], ...] = ()
    stopped: str | None = None
    criteria: Criteria | None = None
    repeat: Result | None = None
    certificate: str = ""
    warnings: tuple[str, ...] = Field((), exclude=True)

    def states(self) -> list[HostState]:
        """All readings of the host's state, in order."""
        return [turn.state for block in self.blocks for turn in block]


def check_result_place(path: Path, inputs: Iterable[Path | None]) -> None:
    """Check before long work that a result can be written to `path` without replacing another kind of file.

    Raises:
        StorageError, UsageError: as in `bench.core.files.check_writable`.
        UsageError: `path` is an existing file that is not a result.
    """
    check_writable(path, inputs)
    if path.is_file():
        with path.open("rb") as stream:
            beginning = stream.read(_LOOKED_AT)
        if beginning.strip() and not beginning.lstrip().startswith(b"{"):
            raise UsageError(path, "exists and is not a result file", "choose another --out")


def write_result(path: AnyPath, result: FrozenModel) -> None:
    """Write the result of any scenario as JSON, with all its raw samples.

    Args:
        path: the file to write. It is written atomically, so it is never incomplete.
        result: the result of `measure` or `measure_scenario`, or the `result` of a judgement.

    Raises:
        StorageError: the file cannot be written.

    Examples:
        >>> import bench
        >>> bench.write_result("result.json", bench.measure("model.onnx", blocks=1))
    """
    write_text(Path(path), result.model_dump_json(indent=1, by_alias=True) + "\n")


def read_result(path: AnyPath) -> Result:
    """Read the result of a measurement of models side by side.

    Args:
        path: a file written by `write_result` or `--out`, with this version or an earlier one.

    Raises:
        ResultError: the file is missing or damaged, or its schema is unknown to this version.

    Examples:
        >>> import bench
        >>> bench.write_result("result.json", bench.measure("model.onnx", blocks=2))
        >>> len(bench.read_result("result.json").models[0].runs)
        2
    """
    return read_versioned(Path(path), Result, f"schemas 1 to {SCHEMA_VERSION}")


def read_versioned(path: Path, kind: type[Versioned], known: str) -> Versioned:
    """Read a file that has a `schema_version`.

    Args:
        path: the file.
        kind: the class of the file's content.
        known: the schemas that this version reads, in words, for the error message.

    Raises:
        ResultError: the file is missing or damaged, or its schema is unknown to this version.
    """
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise ResultError(
                path, f"is larger than {MAX_RESULT_BYTES} bytes", "check that the path names a result file"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(path, f"cannot be read ({error.strerror})", "check the path") from error
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        place, cause, fix = explain_validation(error, kind)
        if place == "schema_version":
            fix = f"this version reads {known}; install a newer edgeproof"
        raise ResultError(f"{path}: {place}", cause, fix) from error


def median_known(values: list[int | None]) -> int | None:
    """The median of the values that are not None; None if all values are None."""
    known = [value for value in values if value is not None]
    return int(np.median(known)) if known else None
