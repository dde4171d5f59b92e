"""Measure models side by side.

A *block* starts one fresh process per model. The processes take turns in short bursts, in a new random
order each round; only one of them runs at any time. Influences that change more slowly than a round (clock,
temperature, other load) affect all models alike. Influences that differ between processes (address layout,
core) are drawn again in every block. One block gives one score per pair of models.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from bench.core.errors import MeasurementError, UsageError
from bench.core.files import AnyPath, model_sha256, model_size, path_text, sha256_of
from bench.core.interrupt import check_interrupt
from bench.core.progress import SILENT, Progress
from bench.core.schema import FrozenModel
from bench.core.version import tool_version
from bench.inputs.artifact import subject, warn_of_targets
from bench.inputs.evaluation import EvaluationSet, read_evaluation, write_evaluation
from bench.inputs.host import HostFingerprint, available_cores, fingerprint, other_target, stated_target
from bench.measuring.host_state import HostState, read_state
from bench.measuring.protocol import (
    Burst,
    BurstTimes,
    Check,
    First,
    FirstRun,
    Memory,
    Open,
    Opened,
    PeakMemory,
    Predict,
    Predicted,
    Warm,
)
from bench.measuring.result import DataSource, MemoryReading, ModelResult, Result, Round, Run, Settings
from bench.measuring.scenario import DEFAULT_BLOCKS
from bench.measuring.worker_process import DEFAULT_TIMEOUT_S, WorkerHandle, worker_group

TIMED_FEEDS = 16
WARM_LIMIT_NS = 1_000_000_000
MIN_BURST, MAX_BURST = 3, 200
# Slow models get fewer rounds, so a block lasts about 4 s, but enough rounds for a stable median.
BLOCK_TARGET_NS, MIN_ROUNDS = 4_000_000_000, 16
INTERRUPTED = "interrupted"
# Result files contain this text, and the gate compares it: another text would change old verdicts.
TIME_LIMIT = "the time limit came first"
OTHER_HOST = "the host changed during the measurement"

Partial = TypeVar("Partial", bound=FrozenModel)
Item = TypeVar("Item")
WorkerGroup = Callable[[int, float], AbstractContextManager[Sequence[WorkerHandle]]]


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of a measurement.

    Attributes:
        threads: number of intra-op threads of each session.
        arena: whether ONNX Runtime's memory arena is on, which is ONNX Runtime's default.
        rounds: maximum number of bursts per model and block.
        burst_target_ns: target duration of a burst: long compared with the clock's resolution, short
            compared with the drift of the machine. Many short bursts are better than few long ones: on two
            cores shared with other work, the scores of pairs had a spread of 1.8 % with 64 bursts of 3 ms,
            but of 4.8 % with 16 bursts of 10 ms.
        untimed_per_burst: number of untimed inferences before each burst, to refill the caches.
        seed: seed of the random order in which models take turns.
        pin: pin all processes to the same `threads` cores, if the system allows it.
        timeout_s: maximum time that a worker may take for one request.
        time_limit_s: maximum time for adding blocks; a block that would exceed it is not started.
    """

    threads: int = 1
    arena: bool = True
    rounds: int = 64
    burst_target_ns: int = 3_000_000
    untimed_per_burst: int = 2
    seed: int = 0
    pin: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(name, f"{getattr(self, name)} is too few", "use at least 1")


DEFAULT_CONFIG = MeasureConfig()


class Interrupted(KeyboardInterrupt, Generic[Partial]):
    """Ctrl-C was pressed. `result` holds the complete part of the measurement, marked as stopped early."""

    def __init__(self, result: Partial) -> None:
        super().__init__()
        self.result = result


@dataclass
class Measurement:
    """A measurement in progress: add blocks until there are enough, then call `result`.

    Use it as a context manager, which also removes the small file of feeds for the timed processes.

    Attributes:
        models: the .onnx files to measure.
        evaluation: the evaluation set; None for random feeds.
        config: settings of the measurement.
        progress: receives progress reports.
        workers: starts the measured processes.
        clock: monotonic clock in seconds.
        state: reads the state of the host.
        host: reads the host's fingerprint.
        targets: the kind of CPU that each model was made for; by default as stated in the files.
        warnings: warnings to copy into the result.
    """

    models: Sequence[Path]
    evaluation: Path | None
    config: MeasureConfig = field(default_factory=MeasureConfig)
    progress: Progress = SILENT
    workers: WorkerGroup = worker_group
    clock: Callable[[], float] = time.monotonic
    state: Callable[[Sequence[int] | None], HostState] = read_state
    host: Callable[[], HostFingerprint] = fingerprint
    targets: Sequence[str | None] | None = None
    warnings: tuple[str, ...] = ()
    _runs: list[list[Run]] = field(init=False)
    _predicted: list[Predicted] = field(init=False, default_factory=list)
    _bursts: dict[int, int] = field(init=False, default_factory=dict)
    _rounds: int = field(init=False, default=0)
    _blocks: list[tuple[Round, ...]] = field(init=False, default_factory=list)
    _stopped: str | None = field(init=False, default=None)
    _blocks_begun: float = field(init=False, default=0.0)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._runs = [[] for _ in self.models]
        self._order = random.Random(self.config.seed)
        self._starts = self._orders()
        self._started = utc_now()
        self._begun = self.clock()
        self._host = self.host()

    def __enter__(self) -> Measurement:
        self._hashes = [model_sha256(path) for path in self.models]
        targets = self.targets or [stated_target(path) for path in self.models]
        self._made_for = [other_target(target, self._host) for target in targets]
        self._feeds: Path | None = None
        self._samples = 1
        if self.evaluation is not None:
            with ExitStack() as stack:
                self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeproof-")))
                self._feeds = write_timed_feeds(self.evaluation, self._folder)
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @property
    def cores(self) -> tuple[int, ...] | None:
        """The cores that all workers are pinned to, or None if they are not pinned.

        These are the last cores, because interrupts and other programs tend to use the first ones.
        """
        cores = available_cores()
        if not self.config.pin or cores is None or len(cores) < self.config.threads:
            return None
        return cores[-self.config.threads :]

    def predict(self) -> None:
        """Classify the evaluation set with every model, each in a separate process."""
        if self.evaluation is None:
            return
        with self._recording_stop(), self.progress.task("accuracy", len(self.models)) as task:
            for index, model in enumerate(self.models):
                # A model for another kind of CPU must predict the same as on its target, where sums do not
                # saturate.
                exact = self._made_for[index] is not None
                with self.workers(1, self.config.timeout_s) as (worker,):
                    worker.ask(replace(self._opening(model, cores=None), exact_sums=exact))
                    request = Predict(str(self.evaluation), outputs=str(self._outputs(index)))
                    self._predicted.append(worker.ask(request))
                task.advance(note=model.name)

    def add_blocks(self, count: int) -> None:
        """Measure `count` more blocks, or as many as the time limit allows.

        Raises:
            Interrupted: Ctrl-C was pressed. The exception holds the complete blocks.
            MeasurementError: a worker died or hung. `result()` still returns the complete blocks.
        """
        with self._recording_stop(), self.progress.task("latency and memory", count) as task:
            for _ in range(count):
                check_interrupt()
                if self._out_of_time():
                    self._stopped = TIME_LIMIT
                    return
                self._add_block()
                task.advance()

    @property
    def stopped(self) -> str | None:
        """The reason why no more blocks can be added, or None."""
        return self._stopped

    def _out_of_time(self) -> bool:
        limit, done = self.config.time_limit_s, len(self._blocks)
        if limit is None:
            return False
        now = self.clock()
        if not done:
            self._blocks_begun = now  # the predictions before say nothing about the length of a block
        next_s = (now - self._blocks_begun) / done if done else 0.0
        return now - self._begun + next_s > limit

    @contextmanager
    def _recording_stop(self) -> Iterator[None]:
        """Record in the result why the measurement ended too early."""
        try:
            yield
        except KeyboardInterrupt:
            self._stopped = INTERRUPTED
            raise Interrupted(self.result()) from None
        except MeasurementError as error:
            self._stopped = str(error)
            raise

    def result(self) -> Result:
        """The result of all blocks measured so far."""
        if self._stopped is None and self.host() != self._host:
            self._stopped = OTHER_HOST  # for example a virtual machine moved, or a library was updated
        models = []
        for index, path in enumerate(self.models):
            predicted = self._predicted[index] if len(self._predicted) == len(self.models) else None
            models.append(
                ModelResult(
                    path=path_text(path),
                    sha256=self._hashes[index],
                    changed=model_sha256(path) != self._hashes[index],
                    size_bytes=model_size(path),
                    runs=tuple(self._runs[index]),
                    predictions=None if predicted is None else tuple(predicted.predictions),
                    labels=None if predicted is None else _tuple(predicted.labels),
                    made_for=self._made_for[index],
                )
            )
        config = self.config
        return Result(
            tool_version=tool_version(),
            started_utc=self._started,
            ended_utc=utc_now(),
            host=self._host,
            settings=Settings(
                threads=config.threads,
                arena=config.arena,
                rounds=config.rounds,
                burst_target_ns=config.burst_target_ns,
                untimed_per_burst=config.untimed_per_burst,
                seed=config.seed,
                cores=self.cores,
            ),
            data=data_source(self.evaluation, self._samples, self._ids()),
            models=tuple(models),
            blocks=tuple(self._blocks),
            stopped=self._stopped,
            warnings=self.warnings,
        )

    def _add_block(self) -> None:
        with self.workers(len(self.models), self.config.timeout_s) as started:
            # A process keeps the memory pages that it gets at its start, and these depend on the order of
            # starts: if one session was created after the other, the second one stayed 1.5 to 4 % faster
            # (2 cores of a virtual machine). So all sessions are created at the same time, from the same
            # free pages, in a random order.
            workers = dict(zip(next(self._starts), started, strict=True))
            openings = {k: self._opening(self.models[k], self.cores) for k in workers}
            for k, worker in workers.items():
                worker.begin(openings[k])
            opened = {k: worker.finish(openings[k]) for k, worker in workers.items()}
            first = {k: worker.ask(First()) for k, worker in workers.items()}
            self._samples = first[0].samples
            warmups = {k: worker.ask(Warm(limit_ns=WARM_LIMIT_NS)).ns for k, worker in workers.items()}
            if not self._bursts:
                self._plan_bursts(warmups)
            rounds, bursts = self._take_turns(workers)
            runs = {
                k: run_of(
                    opened[k],
                    first[k],
                    warmup_ns=warmups[k],
                    bursts=bursts[k],
                    memory=worker.ask(Memory()),
                    outputs_sqnr_db=self._check(worker, k),
                )
                for k, worker in workers.items()
            }
        # A block is added only when all its models are measured, so no block is incomplete.
        self._blocks.append(tuple(rounds))
        for k, run in runs.items():
            self._runs[k].append(run)

    def _orders(self) -> Iterator[tuple[int, ...]]:
        """Random orders of the models, each followed by its reverse.

        The first model in a round has an advantage (measured: 1.5 % with bursts of 3 ms). The reverse
        orders balance it, instead of leaving it to chance.
        """
        order = list(range(len(self.models)))
        while True:
            self._order.shuffle(order)
            yield tuple(order)
            yield tuple(reversed(order))

    def _take_turns(
        self, workers: Mapping[int, WorkerHandle]
    ) -> tuple[list[Round], dict[int, list[BurstTimes]]]:
        """Run all rounds of a block; returns the rounds, and the bursts of each worker in their order."""
        rounds: list[Round] = []
        bursts: dict[int, list[BurstTimes]] = {k: [] for k in workers}
        for turn in islice(self._orders(), self._rounds):
            check_interrupt()
            rounds.append(Round(order=turn, state=self.state(self.cores)))
            for k in turn:
                request = Burst(self._bursts[k], untimed=self.config.untimed_per_burst)
                bursts[k].append(workers[k].ask(request))
        return rounds, bursts

    def _check(self, worker: WorkerHandle, index: int) -> float | None:
        """SQNR of the outputs for the timed feeds, against the outputs from which accuracy was computed.

        Call it after all measurements of the process, because it uses memory. None if accuracy was not
        measured, or if the model was made for another kind of CPU.
        """
        if not self._predicted or self._made_for[index] is not None:
            return None
        return worker.ask(Check(outputs=str(self._outputs(index)))).sqnr_db

    def _outputs(self, index: int) -> Path:
        return self._folder / f"outputs-{index}.npz"

    def _ids(self) -> tuple[str, ...] | None:
        return _tuple(self._predicted[0].ids) if self._predicted else None

    def _opening(self, model: Path, cores: tuple[int, ...] | None) -> Open:
        return opening(
            model, self._feeds, threads=self.config.threads, arena=self.config.arena, cores=cores
        )

    def _plan_bursts(self, warmups_ns: Mapping[int, Sequence[int]]) -> None:
        """Choose the inferences per burst and the rounds per block, once, so all blocks are alike."""
        config, round_ns = self.config, 0
        for k, times in warmups_ns.items():
            tail = sorted(times[-10:])
            typical = max(tail[len(tail) // 2], 1)
            self._bursts[k] = max(MIN_BURST, min(MAX_BURST, config.burst_target_ns // typical))
            round_ns += (self._bursts[k] + config.untimed_per_burst) * typical
        self._rounds = min(config.rounds, max(MIN_ROUNDS, BLOCK_TARGET_NS // round_ns))


def measure(
    *models: AnyPath,
    data: AnyPath | None = None,
    blocks: int = DEFAULT_BLOCKS,
    config: MeasureConfig = DEFAULT_CONFIG,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Result:
    """Measure latency, memory, size and accuracy of models, side by side.

    Args:
        models: artifact folders or .onnx files. The float model of an artifact is measured, too.
        data: labelled samples in an `.npz`; by default the artifact's samples, or random feeds if there is
            no artifact.
        blocks: number of fresh processes per model.
        config: settings of the measurement.
        progress: receives progress reports; `SILENT` shows none.
        workers: starts the measured processes.

    Raises:
        UsageError: no model is named, or one does not exist.
        ArtifactError: a folder is not a complete artifact.
        ModelError: a model cannot be loaded or run on this host.
        DataError: the samples do not fit the models.
        MeasurementError: a process died or hung.
        Interrupted: Ctrl-C was pressed. The exception holds the complete blocks.

    Examples:
        >>> import bench
        >>> result = bench.measure("model.onnx", data="evaluation.npz", blocks=2)
        >>> result.models[0].latency().p50 > 0  # nanoseconds
        True
        >>> result.models[0].accuracy()
        0.9
    """
    if blocks < 1:
        raise UsageError("blocks", f"{blocks} is too few", "use at least 1")
    paths, evaluation, warnings = resolve(models, data, progress)
    with Measurement(paths, evaluation, config, progress, workers, warnings=warnings) as measurement:
        measurement.predict()
        measurement.add_blocks(blocks)
        return measurement.result()


def resolve(
    models: Sequence[AnyPath], data: AnyPath | None, progress: Progress
) -> tuple[list[Path], Path | None, tuple[str, ...]]:
    """Find the files to measure and their evaluation set, and warn of models made for another kind of CPU.

    Returns:
        The .onnx files, the evaluation set or None, and the warnings.

    Raises:
        UsageError, ArtifactError, ModelError: as in `bench.inputs.artifact.subject`, and if no model is
            named.
    """
    if not models:
        raise UsageError("models", "no model is named", "pass an artifact folder or an .onnx file")
    subjects = [subject(place, data) for place in models]
    paths = [p for found in subjects for p in (found.model, found.float_twin) if p is not None]
    evaluation = next((found.evaluation for found in subjects if found.evaluation is not None), None)
    return paths, evaluation, warn_of_targets(subjects, progress)


def opening(
    model: Path, feeds: Path | None, *, threads: int, arena: bool, cores: Sequence[int] | None
) -> Open:
    """The request to open a model."""
    return Open(
        model=str(model),
        feeds=None if feeds is None else str(feeds),
        threads=threads,
        arena=arena,
        cores=cores,
    )


def run_of(
    opened: Opened,
    first: FirstRun,
    *,
    warmup_ns: Sequence[int],
    bursts: Sequence[BurstTimes],
    memory: PeakMemory,
    outputs_sqnr_db: float | None,
) -> Run:
    """Combine all replies of one process into a run."""
    phases = {
        "import": opened.imported,
        "session": opened.created,
        "first_run": first.memory,
        "steady": memory.steady,
    }
    return Run(
        session_ns=opened.session_ns,
        first_run_ns=first.first_run_ns,
        import_rss_bytes=opened.import_rss_bytes,
        peak_rss_bytes=memory.peak_rss_bytes,
        memory={name: MemoryReading(**vars(use)) for name, use in phases.items()},
        warmup_ns=tuple(warmup_ns),
        rounds_ns=tuple(tuple(burst.ns) for burst in bursts),
        switches=tuple(burst.switches for burst in bursts),
        outputs_sqnr_db=outputs_sqnr_db,
    )


def data_source(evaluation: Path | None, samples: int, ids: tuple[str, ...] | None = None) -> DataSource:
    """The origin of a measurement's feeds: a file, or random feeds generated from the input signature."""
    return DataSource(
        path=None if evaluation is None else path_text(evaluation),
        sha256=None if evaluation is None else sha256_of(evaluation),
        samples=samples,
        synthetic=evaluation is None,
        ids=ids,
    )


def write_timed_feeds(evaluation: Path, folder: Path) -> Path:
    """Write the first `TIMED_FEEDS` samples of an evaluation set, without labels, for the timed processes.

    Raises:
        DataError: the evaluation set cannot be read.
    """
    sample = read_evaluation(evaluation, rows=TIMED_FEEDS)
    path = folder / "feeds.npz"
    write_evaluation(path, EvaluationSet(sample.feeds, None, None))
    return path


def _tuple(values: Sequence[Item] | None) -> tuple[Item, ...] | None:
    return None if values is None else tuple(values)


def utc_now() -> str:
    """The present time in UTC to the second, in ISO 8601 format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
