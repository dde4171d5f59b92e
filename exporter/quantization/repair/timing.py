"""Measure on this CPU how much time it costs to leave layers in float."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import onnx
import onnxruntime

from bench.core.arrays import Array
from exporter.quantization.repair.score import fast_session

ROUNDS = 15
_BURST = 3
_WARMUP = 2

Clock = Callable[[], int]
Key = TypeVar("Key", bound=Hashable)


def float_costs(
    int8: onnx.ModelProto,
    variants: Iterable[tuple[Key, onnx.ModelProto]],
    feeds: Mapping[str, Array],
    *,
    clock: Clock = time.perf_counter_ns,
) -> tuple[float, dict[Key, float]]:
    """Measure the time of a run of the int8 model and the additional time of each variant, in ns.

    A variant's cost is negative if the variant is faster than the int8 model.

    The int8 model and a variant run in one process on one thread. They take turns in `ROUNDS` rounds of
    short bursts and alternate which one runs first. The time of a burst is the time of its fastest run. The
    cost is the median of the differences, because a temporary slowdown of the machine affects both models.

    Args:
        int8: the int8 model.
        variants: key and model of each variant; only one model is in memory at a time.
        feeds: inputs of one run.
        clock: returns the time in ns.

    Returns:
        The time of the int8 model's fastest run, and the cost of each variant by its key.
    """
    base = fast_session(int8, 1)
    costs: dict[Key, float] = {}
    usual = float("inf")
    for key, model in variants:
        other = fast_session(model, 1)
        for _ in range(_WARMUP):
            base.run(None, dict(feeds))
            other.run(None, dict(feeds))
        differences = []
        for index in range(ROUNDS):
            pair = (base, other) if index % 2 else (other, base)
            times = {session: _fastest(session, feeds, clock) for session in pair}
            differences.append(times[other] - times[base])
            usual = min(usual, times[base])
        costs[key] = statistics.median(differences)
    return usual, costs


def _fastest(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], clock: Clock) -> float:
    fastest = float("inf")
    for _ in range(_BURST):
        start = clock()
        session.run(None, dict(feeds))
        fastest = min(fastest, clock() - start)
    return fastest
