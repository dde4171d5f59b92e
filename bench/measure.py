"""Measuring models side by side.

A *block* starts one fresh process per model, all idle but one at any time, and lets them take turns in
short bursts whose order is drawn anew each round. What drifts more slowly than a round (clock, heat,
neighbours) touches all models alike, and what differs from process to process (address layout, core)
is drawn again with every block. One block gives one score per pair of models.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.evaluation import EvaluationSet, read_evaluation, write_evaluation
from bench.files import model_sha256, model_size, sha256_of
from bench.host import available_cores, fingerprint
from bench.process import DEFAULT_TIMEOUT_S, WorkerHandle, worker_group
from bench.progress import SILENT, Progress
from bench.result import DataSource, ModelResult, Result, Run, Settings

TIMED_FEEDS = 16
WARM_LIMIT_NS = 1_000_000_000
MIN_BURST, MAX_BURST = 3, 200

WorkerGroup = Callable[[int, float], AbstractContextManager[Sequence[WorkerHandle]]]


@dataclass(frozen=True)
class MeasureConfig:
    """How to measure.

    Attributes:
        threads: intra-op threads of each session.
        arena: whether ONNX Runtime's memory arena is on, as it is by default.
        rounds: bursts per model and block.
        burst_target_ns: how long a burst should take: long against the clock's resolution, short
            against the drift of the machine.
        untimed_per_burst: inferences before each burst that are thrown away, to refill the caches.
        seed: of the order in which models take turns.
        pin: keep all processes on the same `threads` cores, where the system allows it.
        timeout_s: how long a worker may take for one request.
    """

    threads: int = 1
    arena: bool = True
    rounds: int = 16
    burst_target_ns: int = 10_000_000
    untimed_per_burst: int = 5
    seed: int = 0
    pin: bool = True
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass
class Session:
    """A measurement in progress: add blocks until there are enough, then take the result.

    Use as a context manager; the small file of feeds that the timed processes read lives as long.
    """

    models: Sequence[Path]
    evaluation: Path | None
    config: MeasureConfig = field(default_factory=MeasureConfig)
    progress: Progress = SILENT
    workers: WorkerGroup = worker_group
    _runs: list[list[Run]] = field(init=False)
    _answers: list[dict[str, Any]] = field(init=False, default_factory=list)
    _bursts: list[int] = field(init=False, default_factory=list)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._runs = [[] for _ in self.models]
        self._order = random.Random(self.config.seed)
        self._started = _now()

    def __enter__(self) -> Session:
        self._feeds: Path | None = None
        self._samples = 1
        if self.evaluation is not None:
            sample = read_evaluation(self.evaluation, rows=TIMED_FEEDS)
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeproof-")))
                self._feeds = folder / "feeds.npz"
                write_evaluation(self._feeds, EvaluationSet(sample.feeds, None, None))
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @property
    def cores(self) -> tuple[int, ...] | None:
        """The cores that all workers share, or None if they are not pinned.

        The last ones: interrupts and other programs tend to sit on the first.
        """
        cores = available_cores()
        if not self.config.pin or cores is None or len(cores) < self.config.threads:
            return None
        return cores[-self.config.threads :]

    def predict(self) -> None:
        """Classify the evaluation set with every model, each in a process of its own."""
        if self.evaluation is None:
            return
        with self.progress.task("accuracy", len(self.models)) as task:
            for model in self.models:
                with self.workers(1, self.config.timeout_s) as (worker,):
                    self._open(worker, model, cores=None)
                    self._answers.append(worker.ask("predict", evaluation=str(self.evaluation)))
                task.advance(note=model.name)

    def add_blocks(self, count: int) -> None:
        """Measure `count` more blocks."""
        with self.progress.task("latency and memory", count) as task:
            for _ in range(count):
                self._add_block()
                task.advance()

    def result(self) -> Result:
        """What was measured so far."""
        models = []
        for index, path in enumerate(self.models):
            answer = self._answers[index] if self._answers else {}
            labels = answer.get("labels")
            models.append(
                ModelResult(
                    path=str(path),
                    sha256=model_sha256(path),
                    size_bytes=model_size(path),
                    runs=tuple(self._runs[index]),
                    predictions=tuple(answer["predictions"]) if answer else None,
                    labels=None if labels is None else tuple(labels),
                )
            )
        config = self.config
        return Result(
            tool_version=tool_version(),
            started_utc=self._started,
            ended_utc=_now(),
            host=fingerprint(),
            settings=Settings(
                threads=config.threads,
                arena=config.arena,
                rounds=config.rounds,
                burst_target_ns=config.burst_target_ns,
                untimed_per_burst=config.untimed_per_burst,
                seed=config.seed,
                cores=self.cores,
            ),
            data=DataSource(
                path=None if self.evaluation is None else str(self.evaluation),
                sha256=None if self.evaluation is None else sha256_of(self.evaluation),
                samples=self._samples,
                synthetic=self.evaluation is None,
            ),
            models=tuple(models),
        )

    def _add_block(self) -> None:
        with self.workers(len(self.models), self.config.timeout_s) as workers:
            opened = [
                self._open(worker, model, self.cores)
                for worker, model in zip(workers, self.models, strict=True)
            ]
            first = [worker.ask("first") for worker in workers]
            self._samples = first[0]["samples"]
            warmups = [worker.ask("warm", limit_ns=WARM_LIMIT_NS)["ns"] for worker in workers]
            if not self._bursts:
                self._bursts = [self._burst_length(times) for times in warmups]
            rounds: list[list[tuple[int, ...]]] = [[] for _ in workers]
            turn = list(range(len(workers)))
            for _ in range(self.config.rounds):
                self._order.shuffle(turn)
                for index in turn:
                    answer = workers[index].ask(
                        "burst",
                        count=self._bursts[index],
                        untimed=self.config.untimed_per_burst,
                    )
                    rounds[index].append(tuple(answer["ns"]))
            for index, worker in enumerate(workers):
                self._runs[index].append(
                    Run(
                        session_ns=opened[index]["session_ns"],
                        first_run_ns=first[index]["first_run_ns"],
                        import_rss_bytes=opened[index]["import_rss_bytes"],
                        peak_rss_bytes=worker.ask("memory")["peak_rss_bytes"],
                        warmup_ns=tuple(warmups[index]),
                        rounds_ns=tuple(rounds[index]),
                    )
                )

    def _open(self, worker: WorkerHandle, model: Path, cores: tuple[int, ...] | None) -> dict[str, Any]:
        return worker.ask(
            "open",
            model=str(model),
            feeds=None if self._feeds is None else str(self._feeds),
            threads=self.config.threads,
            arena=self.config.arena,
            cores=None if cores is None else list(cores),
        )

    def _burst_length(self, warmup_ns: Sequence[int]) -> int:
        """Inferences that fill a burst; set once, so that all blocks are alike."""
        tail = sorted(warmup_ns[-10:])
        typical = tail[len(tail) // 2]
        return max(MIN_BURST, min(MAX_BURST, self.config.burst_target_ns // max(typical, 1)))


def tool_version() -> str:
    """The version of edgeproof."""
    try:
        return version("edgeproof")
    except PackageNotFoundError:
        return "unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
