"""Measure the scenarios with other loads than a single stream: several streams, batches, a sustained load.

Every load is applied in fresh processes, in a new random order in each of them. The models take turns
process by process. There are no statistical tests between models; `compare` does that for a single stream.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.core.errors import MeasurementError, UsageError
from bench.core.files import AnyPath, model_sha256, model_size, path_text
from bench.core.interrupt import check_interrupt
from bench.core.progress import SILENT, Progress
from bench.core.version import tool_version
from bench.inputs.host import HostFingerprint, available_cores, fingerprint
from bench.measuring.host_state import HostState, read_state
from bench.measuring.measure import (
    INTERRUPTED,
    WARM_LIMIT_NS,
    Interrupted,
    WorkerGroup,
    data_source,
    opening,
    resolve,
    utc_now,
    write_timed_feeds,
)
from bench.measuring.protocol import Batch, First, Memory, Streams, Warm
from bench.measuring.scenario import DEFAULT_BATCHES, DEFAULT_BLOCKS, Scenario
from bench.measuring.scenario_result import LoadedProcess, LoadPeriod, ScenarioModel, ScenarioResult
from bench.measuring.worker_process import DEFAULT_TIMEOUT_S, WorkerHandle, worker_group

DEFAULT_DURATION_S = {Scenario.MULTI_STREAM: 3.0, Scenario.OFFLINE: 2.0, Scenario.SUSTAINED: 600.0}
# A sustained run is divided into pieces of this length; between them, the host's state is read.
PIECE_NS = 1_000_000_000


@dataclass(frozen=True)
class ScenarioConfig:
    """Settings of a scenario's measurement.

    Attributes:
        scenario: any scenario except the single stream.
        streams: number of concurrent streams; by default one per core. One stream alone is measured, too.
        batches: batch sizes; each is a separate load.
        duration_s: duration of each load in each process.
        processes: number of fresh processes per model; a sustained run always has one.
        threads: number of intra-op threads of each session.
        arena: whether ONNX Runtime's memory arena is on.
        seed: seed of the random order of models and loads.
        timeout_s: maximum time that a worker may take for one request, in addition to the duration of the
            load.
    """

    scenario: Scenario
    streams: int | None = None
    batches: tuple[int, ...] = DEFAULT_BATCHES
    duration_s: float | None = None
    processes: int = DEFAULT_BLOCKS
    threads: int = 1
    arena: bool = True
    seed: int = 0
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.scenario is Scenario.SINGLE_STREAM:
            raise UsageError(
                "scenario", f"{self.scenario} cannot be measured here", "call bench.measure instead"
            )
        for name, value in {
            "streams": self.streams,
            "batches": min(self.batches, default=0),
            "processes": self.processes,
            "threads": self.threads,
        }.items():
            if value is not None and value < 1:
                raise UsageError(name, f"{value} is too few", "use at least 1")
        if self.duration_s is not None and self.duration_s <= 0:
            raise UsageError("duration_s", f"{self.duration_s} is too short", "use a number above 0")

    @property
    def lasts_s(self) -> float:
        """The duration of each load in seconds."""
        return DEFAULT_DURATION_S[self.scenario] if self.duration_s is None else self.duration_s

    @property
    def rounds(self) -> int:
        """The number of processes per model."""
        return 1 if self.scenario is Scenario.SUSTAINED else self.processes

    def loads(self) -> tuple[int, ...]:
        """The loads to apply in each process: numbers of streams, or batch sizes."""
        if self.scenario is Scenario.MULTI_STREAM:
            return tuple(sorted({1, self.streams or len(available_cores() or (0, 1))}))
        return self.batches if self.scenario is Scenario.OFFLINE else (1,)

    def cores(self) -> tuple[int, ...] | None:
        """The cores that a process is pinned to; None if it is not pinned.

        Processes with several streams are not pinned, because the streams need all cores.
        """
        cores = available_cores()
        if self.scenario is Scenario.MULTI_STREAM or cores is None or len(cores) < self.threads:
            return None
        return cores[-self.threads :]


def measure_scenario(
    *models: AnyPath,
    data: AnyPath | None = None,
    config: ScenarioConfig,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
    state: Callable[[Sequence[int] | None], HostState] = read_state,
    host: Callable[[], HostFingerprint] = fingerprint,
) -> ScenarioResult:
    """Measure models with several concurrent streams, with batches, or under a sustained load.

    Args:
        models: artifact folders or .onnx files. The float model of an artifact is measured, too.
        data: samples in an `.npz`; by default the artifact's samples, or random feeds if there is no
            artifact.
        config: the scenario and its settings.
        progress: receives progress reports; `SILENT` shows none.
        workers: starts the measured processes.
        state: reads the state of the host.
        host: reads the host's fingerprint.

    Raises:
        UsageError: no model is named, or one does not exist.
        ArtifactError: a folder is not a complete artifact.
        ModelError: a model cannot be loaded or run on this host.
        DataError: the samples do not fit the models, or a model has a fixed batch of another size.
        MeasurementError: a process died or hung.
        Interrupted: Ctrl-C was pressed. The exception holds the results of the completed processes.

    Examples:
        >>> import bench
        >>> load = bench.ScenarioConfig(bench.Scenario.OFFLINE, batches=(1, 8), duration_s=0.1, processes=1)
        >>> result = bench.measure_scenario("model.onnx", config=load)
        >>> result.models[0].throughput_per_s(8, result.scenario) > 0
        True
    """
    paths, evaluation, warnings = resolve(models, data, progress)
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        feeds = None if evaluation is None else write_timed_feeds(evaluation, Path(folder))
        run = _ScenarioRun(paths, evaluation, feeds, config, workers, state, host(), warnings)
        with progress.task(str(config.scenario), config.rounds * len(paths)) as task:
            try:
                for model in run.turns():
                    check_interrupt()
                    task.advance(note=model.name)
            except KeyboardInterrupt:
                raise Interrupted(run.result(INTERRUPTED)) from None
        return run.result(None)


@dataclass
class _ScenarioRun:
    models: Sequence[Path]
    evaluation: Path | None
    feeds: Path | None
    config: ScenarioConfig
    workers: WorkerGroup
    state: Callable[[Sequence[int] | None], HostState]
    host: HostFingerprint
    warnings: tuple[str, ...]
    found: list[list[LoadedProcess]] = field(init=False)
    samples: int = 1

    def __post_init__(self) -> None:
        self.found = [[] for _ in self.models]
        self.hashes = [model_sha256(path) for path in self.models]
        self.started = utc_now()
        self.random = random.Random(self.config.seed)

    def turns(self) -> Iterator[Path]:
        """Measure process by process; yields the model after each process."""
        for _ in range(self.config.rounds):
            for index in self.random.sample(range(len(self.models)), len(self.models)):
                self.found[index].append(self._process(self.models[index]))
                yield self.models[index]

    def _process(self, model: Path) -> LoadedProcess:
        config = self.config
        cores, loads = config.cores(), list(config.loads())
        self.random.shuffle(loads)
        with self.workers(1, config.timeout_s + config.lasts_s) as (worker,):
            request = opening(model, self.feeds, threads=config.threads, arena=config.arena, cores=cores)
            worker.ask(request)
            self.samples = worker.ask(First()).samples
            worker.ask(Warm(limit_ns=WARM_LIMIT_NS))
            periods = tuple(self._load(worker, load, cores) for load in loads)
            return LoadedProcess(spells=periods, peak_rss_bytes=worker.ask(Memory()).peak_rss_bytes)

    def _load(self, worker: WorkerHandle, load: int, cores: Sequence[int] | None) -> LoadPeriod:
        left = round(self.config.lasts_s * 1e9)
        if self.config.scenario is not Scenario.SUSTAINED:
            before = self.state(cores)
            if self.config.scenario is Scenario.OFFLINE:
                times = worker.ask(Batch(size=load, duration_ns=left)).ns
                samples, elapsed = [times], sum(times)
            else:
                streams = worker.ask(Streams(count=load, duration_ns=left))
                samples, elapsed = list(streams.ns), streams.elapsed_ns
            return load_period(load, samples, [elapsed], [before, self.state(cores)])
        pieces: list[Sequence[int]] = []
        lengths, states = [], [self.state(cores)]
        while left > 0:
            check_interrupt()
            piece = worker.ask(Streams(count=1, duration_ns=min(left, PIECE_NS)))
            pieces += piece.ns
            lengths.append(piece.elapsed_ns)
            states.append(self.state(cores))
            left -= piece.elapsed_ns
        return load_period(load, pieces, lengths, states)

    def result(self, stopped: str | None) -> ScenarioResult:
        """The result of all processes completed so far."""
        config = self.config
        return ScenarioResult(
            scenario=config.scenario,  # type: ignore[arg-type]
            tool_version=tool_version(),
            started_utc=self.started,
            ended_utc=utc_now(),
            host=self.host,
            threads=config.threads,
            arena=config.arena,
            cores=config.cores(),
            duration_s=config.lasts_s,
            data=data_source(self.evaluation, self.samples),
            models=tuple(
                ScenarioModel(
                    path=path_text(path),
                    sha256=self.hashes[index],
                    size_bytes=model_size(path),
                    processes=tuple(self.found[index]),
                )
                for index, path in enumerate(self.models)
            ),
            stopped=stopped,
            warnings=self.warnings,
        )


def load_period(
    load: int, samples: Sequence[Sequence[int]], elapsed: Sequence[int], states: Sequence[HostState]
) -> LoadPeriod:
    """Create a period from the replies of a worker.

    Raises:
        MeasurementError: a stream has no sample.
    """
    if not all(samples):
        raise MeasurementError("worker", "a stream completed no inference", "use a longer --duration")
    return LoadPeriod(
        load=load,
        samples_ns=tuple(tuple(part) for part in samples),
        elapsed_ns=tuple(elapsed),
        states=tuple(states),
    )
