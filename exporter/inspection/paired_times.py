"""CPU time of models that take turns in one process.

Wall time of two models on a busy machine depends on the scheduler. The CPU time of the calling thread does
not: with a load of 15 on 2 cores, ratios of CPU times stay within 2 %. With one intra-op thread, ONNX
Runtime runs all work in the calling thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime

from bench.core.arrays import Array
from bench.inputs.session import RuntimeOptions, open_session
from exporter.graphs.inference import open_model, session_options

SECONDS = 4.0
# Fewer than 8 blocks cannot bound a ratio at 99 %; more than 45 do not make the bounds much narrower.
MIN_BLOCKS, MAX_BLOCKS = 9, 45
# A burst is long enough that reading the clock (1 us) does not count.
BURST_NS = 2_000_000
MAX_BURST = 200
# Before a burst, one run fills the caches that another model has emptied. That takes less than 1 ms, which
# does not count in a run as long as this.
LONG_RUN_NS = 50_000_000

Clock = Callable[[], int]
TimedModel = onnx.ModelProto | Path


class Timer(Protocol):
    """Times models against each other."""

    def __call__(
        self, models: Sequence[TimedModel], feeds: Mapping[str, Array], *, seconds: float = SECONDS
    ) -> Array:
        """The CPU time of a run in each block, in ns.

        Args:
            models: models or their files; all take the same feeds.
            feeds: inputs of one run.
            seconds: time after which no block begins, unless there are fewer than `MIN_BLOCKS`.

        Returns:
            float64 [blocks, models].
        """


def cpu_times(
    models: Sequence[TimedModel],
    feeds: Mapping[str, Array],
    *,
    seconds: float = SECONDS,
    clock: Clock = time.thread_time_ns,
    now: Callable[[], float] = time.monotonic,
) -> Array:
    """Time models in blocks: in each block, each model runs one burst, in random order (see `Timer`).

    The mean of a burst is the score of its model in the block. A temporary slowdown of the machine affects
    all models of a block.
    """
    sessions = [_open(model) for model in models]
    given = dict(feeds)
    counts = [_burst_length(session, given, clock) for session in sessions]
    order, shuffled = list(range(len(sessions))), random.Random(0)
    blocks: list[list[float]] = []
    end = now() + seconds
    while len(blocks) < MIN_BLOCKS or (len(blocks) < MAX_BLOCKS and now() < end):
        shuffled.shuffle(order)
        block = [0.0] * len(sessions)
        for index in order:
            block[index] = _burst(sessions[index], given, counts[index], clock)
        blocks.append(block)
    return np.array(blocks)


def _open(model: TimedModel) -> onnxruntime.InferenceSession:
    if isinstance(model, Path):
        return open_session(model, RuntimeOptions(threads=1))
    return open_model(model, session_options(1))


def _burst_length(session: onnxruntime.InferenceSession, feeds: dict[str, Array], clock: Clock) -> int:
    """Runs in a burst, 0 if a run is long; the first run allocates memory and is not counted."""
    session.run(None, feeds)
    took = _burst(session, feeds, 0, clock)
    return 0 if took >= LONG_RUN_NS else int(min(MAX_BURST, max(1, BURST_NS // max(took, 1))))


def _burst(
    session: onnxruntime.InferenceSession, feeds: dict[str, Array], count: int, clock: Clock
) -> float:
    """The mean time of `count` runs after one that fills the caches, or of one long run if `count` is 0."""
    if count:
        session.run(None, feeds)
    runs = max(count, 1)
    start = clock()
    for _ in range(runs):
        session.run(None, feeds)
    return (clock() - start) / runs
