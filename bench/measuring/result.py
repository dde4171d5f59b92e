"""What a measurement leaves behind: raw samples, from which every figure can be computed again."""

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
# 2: what the verdict was judged by, and its repeat; memory by phases; the host's state in every round;
#    how near timed outputs come to those that accuracy rests on; sample names. All may be absent.
# 3: the kind of CPU that a model was made for, where the host is of another. May be absent.
SCHEMA_VERSION: Final = 3
MAX_RESULT_BYTES = 512 * 2**20
_LOOKED_AT = 64  # bytes that tell JSON from other files
# Bounds of reported percentiles. Five processes, as `bench` starts, allow no smaller error.
REPORT_ALPHA = 0.05

Versioned = TypeVar("Versioned", bound=FrozenModel)


class MemoryReading(FrozenModel):
    """Memory of a process at one moment, in bytes; None where the system does not tell.

    `pss_bytes` counts pages shared with others in part, `private_bytes` those of this process alone
    (proc(5), smaps_rollup).
    """

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    private_bytes: int | None = None


class Round(FrozenModel):
    """One round of a block: the order in which the models took their turns, and the host before it."""

    order: tuple[int, ...]
    state: HostState


# What a clock or a file system can give; a file that was tampered with must not overflow the arithmetic.
Nanoseconds = Annotated[int, Field(ge=0, le=2**62)]
Bytes = Annotated[int, Field(ge=1, le=2**62)]
ClassIndex = Annotated[int, Field(ge=0, le=2**62)]


class Run(FrozenModel):
    """One fresh process. Times in nanoseconds, memory in bytes; memory is None where unreadable.

    `rounds_ns` holds the timed samples, burst by burst; `warmup_ns` what was run and not counted;
    `session_ns` the processor's time for creating the session.

    Attributes:
        memory: phase ("import", "session", "first_run", "steady") -> what the process took then.
        switches: per round, how often the system took the core away (involuntary context switches).
        outputs_sqnr_db: how near the outputs of the timed process come to those that accuracy was
            computed from, on the timed feeds; None where no accuracy was measured.
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
        """All timed samples of the process, in order."""
        return np.concatenate([np.asarray(r, dtype=np.int64) for r in self.rounds_ns])


class LatencySummary(FrozenModel):
    """Percentiles in nanoseconds; None where there are too few samples for one to mean anything.

    `bounds` gives one-sided 95 % bounds, percentile -> (lower, upper), of those that have any.
    """

    p50: float
    p90: float | None
    p99: float | None
    count: int
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)


def latency_summary(groups: Sequence[npt.NDArray[np.int64]]) -> LatencySummary:
    """Percentiles of samples in ns that came in groups, one a process."""
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
        predictions: predicted class of each evaluation sample, in order.
        labels: the classes they should be, or None without labels.
        changed: whether the file was replaced while it was measured.
        made_for: the kind of CPU that the model was made for, where the host is of another: then its times
            and its memory here are not those that it ships with. None where they are.
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
        """Median over processes of every phase's memory; phases and fields that none tells are absent."""
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
        """Median over processes of the processor's time to create the session."""
        return int(np.median([run.session_ns for run in self.runs]))

    def first_run_ns(self) -> int:
        """Median over processes of the first inference."""
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
        """Share of evaluation samples classified correctly; None without labels."""
        correct = self.correct()
        return None if correct is None else float(correct.mean())


class Settings(FrozenModel):
    """How the measurement was made; results with different settings are not compared."""

    threads: int
    arena: bool
    rounds: int
    burst_target_ns: int
    untimed_per_burst: int
    seed: int
    cores: tuple[int, ...] | None


class DataSource(FrozenModel):
    """Where the feeds came from; `synthetic` feeds say nothing of accuracy."""

    path: str | None
    sha256: str | None
    samples: int
    synthetic: bool
    ids: tuple[str, ...] | None = None


class Result(FrozenModel):
    """Several models measured side by side on one host.

    Attributes:
        blocks: the rounds of every block, in order.
        stopped: why the measurement is but a part of what was planned; None where it is whole.
        criteria: what the verdict was judged by; None where nothing was judged.
        repeat: the independent measurement that a FAIL was confirmed by, or was not.
        certificate: what was known of this host's error rates when the verdict was given.
        warnings: what makes this host a poor one to measure on; for the caller, and kept in no file.
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
        """Every reading of the host, in order."""
        return [turn.state for block in self.blocks for turn in block]


def check_result_place(path: Path, inputs: Iterable[Path | None]) -> None:
    """Make sure, before long work, that a result can be written to `path` and replaces only a result.

    Raises:
        StorageError, UsageError: as `bench.core.files.check_writable`; or another file is there.
    """
    check_writable(path, inputs)
    if path.is_file():
        with path.open("rb") as stream:
            beginning = stream.read(_LOOKED_AT)
        if beginning.strip() and not beginning.lstrip().startswith(b"{"):
            raise UsageError(path, "is there and is not a result", "choose another --out")


def write_result(path: AnyPath, result: FrozenModel) -> None:
    """Write a result, of whatever scenario, as JSON with all its raw samples.

    Args:
        path: the file; it is whole or absent at every instant.
        result: what `measure`, `measure_scenario`, or a judgement gave.

    Raises:
        StorageError: it cannot be written.

    Example:
        >>> import bench
        >>> bench.write_result("result.json", bench.measure("model.onnx", blocks=1))
    """
    write_text(Path(path), result.model_dump_json(indent=1, by_alias=True) + "\n")


def read_result(path: AnyPath) -> Result:
    """Read a result of models side by side, as it was measured.

    Args:
        path: a file that `write_result` or `--out` wrote, by this version or an earlier one.

    Raises:
        ResultError: the file is missing, damaged, or of a schema that this version does not know.

    Example:
        >>> import bench
        >>> bench.write_result("result.json", bench.measure("model.onnx", blocks=2))
        >>> len(bench.read_result("result.json").models[0].runs)
        2
    """
    return read_versioned(Path(path), Result, f"schemas 1 to {SCHEMA_VERSION}")


def read_versioned(path: Path, kind: type[Versioned], known: str) -> Versioned:
    """Read a file that has a `schema_version`; `known` says which this version reads.

    Raises:
        ResultError: the file is missing, damaged, or of a schema that this version does not know.
    """
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise ResultError(path, f"is larger than {MAX_RESULT_BYTES} bytes", "check the path")
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
    """The median of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return int(np.median(known)) if known else None
