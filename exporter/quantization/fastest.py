"""Time an int8 model against float on this CPU, and return slow regions to float.

Whether int8 is faster depends on shapes, kernels and conversions that no rule predicts. Measured with ONNX
Runtime 1.32 on x86-64 with AVX2 without VNNI, one thread: an int8 AveragePool of 3 x 3 takes 20 times its
float time, and a first convolution of 3 channels alone 1.8 times.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError, ModelError
from bench.core.paired_ratio import ratio_interval
from bench.core.statistics import Interval
from bench.inputs.host import fingerprint, other_target
from bench.judging.pays import judge_speed
from exporter.errors import ExportError, SlowerError
from exporter.graphs.onnx_files import read_model
from exporter.inspection.audit import audit
from exporter.inspection.operator_times import OperatorTime, operator_times
from exporter.inspection.paired_times import Timer, cpu_times
from exporter.options import Goal
from exporter.quantization.attempts import Attempt, leaving
from exporter.quantization.kept_times import Decision, TimeStore, times_key
from exporter.quantization.slow_regions import SlowNodes, has_int8_products, slow_candidates
from exporter.results import Speed

# Below this time of the float model, the fixed cost of conversions (2 to 5 us each) decides. Such networks
# are quantized for their size.
TINY_MS = 0.05
# Limits of the search for regions that are faster in float.
MOST_ROUNDS, MOST_SECONDS = 5, 60.0


class Profiler(Protocol):
    """Profiles a model."""

    def __call__(self, path: Path, feeds: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """The time of each operator of the optimized graph."""


@dataclass(frozen=True)
class Stopwatch:
    """How models are timed and profiled; tests replace it."""

    times: Timer
    profile: Profiler


# Looked up when a model is quantized.
HOST = Stopwatch(cpu_times, operator_times)


@dataclass(frozen=True)
class Race:
    """How to compare the int8 model with float.

    Attributes:
        rival: the float model that int8 must beat.
        goal: `speed` returns slow regions to float, and refuses a model that is slower than float; `size`
            does neither.
        folder: folder in which times are stored; None stores nothing.
    """

    rival: Path
    goal: Goal = "speed"
    folder: Path | None = None


def raced(attempt: Attempt, race: Race) -> tuple[Attempt, dict[str, object]]:
    """Return regions to float that are slower in int8, and time the model against float.

    Args:
        attempt: the int8 model.
        race: the float model to be faster than, and the goal.

    Returns:
        The model to write, and the fields of `Int8Model` with the verdict; no fields if the model is for
        another kind of CPU.

    Raises:
        SlowerError: int8 is proven to be slower than float, and the goal is speed.
    """
    target = attempt.settings.target.name
    if other_target(target, fingerprint()) is not None:
        return attempt, {}
    feeds = next(iter(attempt.attempts.samples.batches(attempt.settings.fixed_batch or 1)))
    times = TimeStore(race.folder)
    key = times_key(race.rival, attempt.path, feeds, race.goal)
    before = attempt.settings.reasons
    if (known := times.find(key)) is not None:
        if known.in_float:
            attempt = attempt.attempts(leaving(attempt.settings, dict(known.in_float)))
        speed = known.speed
    else:
        blocks = None
        if race.goal == "speed":  # weights that return to float make the file larger
            attempt, blocks = _without_slow_regions(attempt, race.rival, feeds)
        speed = _speed(HOST.times([race.rival, attempt.path], feeds) if blocks is None else blocks)
        moved = {name: why for name, why in attempt.settings.reasons.items() if name not in before}
        times.keep(key, Decision(in_float=moved, speed=speed))
    in_float = {**_floats(attempt.path, feeds, target), **attempt.settings.reasons}
    return attempt, _verdict(speed, race.goal, in_float)


def _without_slow_regions(
    best: Attempt, rival: Path, feeds: Mapping[str, Array]
) -> tuple[Attempt, Array | None]:
    """Return regions to float while the whole model is proven to get faster.

    Each round times a few candidates together with the model so far, and keeps the fastest of those whose
    99 % interval is below 1. A model without any product in int8 is no candidate: its verdict is `float`.

    Returns:
        The model, and its times and the rival's in the last round, [blocks, rival and model]. They are None
        if the last round changed the model: its times then look better than they are, because the fastest
        of several was chosen by them.
    """
    attempts, end = best.attempts, time.monotonic() + MOST_SECONDS
    float_times = HOST.profile(attempts.float_file(), feeds)
    for _ in range(MOST_ROUNDS):
        if time.monotonic() > end:
            break
        int8_times = HOST.profile(best.path, feeds)
        found = slow_candidates(attempts.model, read_model(best.path), float_times, int8_times)
        others = [other for one in found if (other := _in_float(best, one)) is not None]
        if not others:
            break
        attempts.progress.say(f"timing {len(others)} models with nodes in float that took longer in int8")
        blocks = HOST.times([rival, best.path, *(other.path for other in others)], feeds)
        ratios = [ratio_interval(column, blocks[:, 1]) for column in blocks.T[2:]]
        faster = [(ratio.estimate, n) for n, ratio in enumerate(ratios) if ratio.upper < 1]
        if not faster:
            return best, blocks[:, :2]
        best = others[min(faster)[1]]
    return best, None


def _in_float(best: Attempt, candidate: SlowNodes) -> Attempt | None:
    """The model with a candidate in float; None if no product is left in int8."""
    settings = leaving(best.settings, _reasons(candidate))
    if settings.exclude == best.settings.exclude:
        return None
    try:
        other = best.attempts(settings)
    except ExportError:
        return None
    return other if has_int8_products(read_model(other.path)) else None


def _reasons(candidate: SlowNodes) -> dict[str, str]:
    return {
        name: f"int8 took {ratio:.2f} x its float time on this CPU"
        for name, ratio in candidate.ratios.items()
    }


def _speed(blocks: Array) -> Speed:
    """The speed of a model from its times in turns with float, [blocks, float and int8], in ns."""
    ratio = ratio_interval(blocks[:, 1], blocks[:, 0])
    float_ms, quantized_ms = (float(ns) / 1e6 for ns in np.median(blocks, axis=0))
    return Speed(
        ratio=ratio.estimate,
        lower=ratio.lower,
        upper=ratio.upper,
        float_ms=float_ms,
        quantized_ms=quantized_ms,
        blocks=len(blocks),
    )


def _floats(path: Path, feeds: Mapping[str, Array], target: str) -> dict[str, str]:
    """Operators with multiply-adds that run in float -> reason; empty if they cannot be counted."""
    data = path.with_name("feeds.npz")
    np.savez(data, allow_pickle=False, **feeds)
    try:
        found = audit(path, data, target).float_ops
    except (DataError, ModelError):
        return {}
    return {(one.name or one.op_type).removeprefix("fused "): one.reason for one in found}


def _verdict(speed: Speed, goal: Goal, in_float: Mapping[str, str]) -> dict[str, object]:
    """The fields of `Int8Model` with the verdict.

    Raises:
        SlowerError: int8 is slower, and the goal is speed.
    """
    ratio = Interval(speed.ratio, speed.lower, speed.upper)
    pays = judge_speed(ratio, mixed=bool(in_float))
    if pays == "float" and goal == "speed" and speed.float_ms >= TINY_MS:
        raise SlowerError(
            "int8",
            speed.text(),
            'nothing was written: use the float model, or set the goal to "size" for a smaller file',
        )
    return {"pays": pays, "speed": speed, "in_float": in_float}
