"""Quantize, time the result against float on this CPU, and return slow regions to float.

Whether int8 is faster depends on shapes, kernels and conversions that no rule predicts. Measured with ONNX
Runtime 1.32 on x86-64 with AVX2 without VNNI, one thread: an int8 AveragePool of 3 x 3 takes 20 times its
float time, and a first convolution of 3 channels alone 1.8 times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError, ModelError
from bench.core.paired_ratio import ratio_interval
from bench.core.progress import Progress
from bench.core.statistics import Interval
from bench.inputs.host import fingerprint, other_target
from bench.judging.pays import judge_speed
from exporter.errors import ExportError, SlowerError
from exporter.graphs.edits import copy_of
from exporter.graphs.names import name_nodes
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.onnx_files import is_large, read_model, save_large, write_checked
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.audit import audit
from exporter.inspection.operator_times import OperatorTime, operator_times
from exporter.inspection.paired_times import Timer, cpu_times
from exporter.options import Goal
from exporter.quantization.calibration import RangeStore
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.kept_times import Decision, TimeStore, times_key
from exporter.quantization.output import Accept, accept_all
from exporter.quantization.slow_regions import SlowNodes, has_int8_products, slow_candidates
from exporter.results import Int8Model, Speed
from exporter.sources.splits import Samples

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
        goal: `speed` refuses to write a model that is slower than float; `size` writes it.
        folder: folder in which times are stored; None stores nothing.
    """

    rival: Path
    goal: Goal = "speed"
    folder: Path | None = None


@dataclass(frozen=True)
class _Made:
    """A quantized model in a temporary folder."""

    path: Path
    model: Int8Model
    in_float: Mapping[str, str]


def quantize_fastest(
    model: onnx.ModelProto,
    destination: Path,
    samples: Samples,
    settings: Int8Settings,
    *,
    race: Race,
    progress: Progress,
    store: RangeStore | None = None,
    reference: onnx.ModelProto | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
    accept: Accept = accept_all,
) -> Int8Model:
    """Quantize a float model so that the result is not slower than float on this CPU.

    The arguments are those of `quantize_model`, and `race`. Models for another kind of CPU are not timed.

    Raises:
        SlowerError: int8 is proven to be slower than float, and the goal is speed; nothing is written.
        DataError, ExportError: as `quantize_model`.
    """
    if other_target(settings.target.name, fingerprint()) is not None:
        return quantize_model(
            model,
            destination,
            samples,
            settings,
            progress=progress,
            store=store,
            reference=reference,
            trained_qparams=trained_qparams,
            accept=accept,
        )
    model, settings = _named(model, settings)
    with TemporaryDirectory(prefix="edgeproof-") as name:
        folder = Path(name)
        ranges = store or RangeStore(folder, "samples")

        def quantized(in_float: Mapping[str, str]) -> _Made:
            """Quantize with more nodes in float; all ranges are collected only once."""
            path = folder / f"{len(list(folder.iterdir()))}-{destination.name}"
            made = quantize_model(
                model,
                path,
                samples,
                replace(
                    settings,
                    exclude=(*settings.exclude, *in_float),
                    reasons={**settings.reasons, **in_float},
                ),
                progress=progress,
                store=ranges,
                reference=reference,
                trained_qparams=trained_qparams,
                accept=accept,
            )
            return _Made(path, made, in_float)

        made = quantized({})
        feeds = next(iter(samples.batches(settings.fixed_batch or 1)))
        times = TimeStore(race.folder)
        key = times_key(race.rival, made.path, feeds)
        if (known := times.find(key)) is not None:
            made = quantized(known.in_float) if known.in_float else made
            speed = known.speed
        else:
            float_path = _saved(model, folder / "float.onnx")
            made = _without_slow_regions(float_path, made, quantized, feeds, progress)
            speed = _raced(race.rival, made.path, feeds)
            times.keep(key, Decision(in_float=dict(made.in_float), speed=speed))
        found = _judged(made, speed, race.goal, _floats(made.path, feeds, settings.target.name))
        write_checked(read_model(made.path), destination)
        return found


def _named(model: onnx.ModelProto, settings: Int8Settings) -> tuple[onnx.ModelProto, Int8Settings]:
    """A copy whose nodes all have names, and the settings with the names of excluded nodes."""
    copy = copy_of(model)
    name_nodes(copy)
    return copy, replace(settings, exclude=named_nodes(model, settings.exclude))


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    if is_large(model):
        save_large(model, path)
    else:
        onnx.save(model, path)
    return path


def _without_slow_regions(
    float_path: Path,
    made: _Made,
    quantized: Callable[[Mapping[str, str]], _Made],
    feeds: Mapping[str, Array],
    progress: Progress,
) -> _Made:
    """Return regions to float while the whole model is proven to get faster.

    Each round times a few candidates together with the model so far, and keeps the fastest of those whose
    99 % interval is below 1. A model without any product in int8 is no candidate: its verdict is `float`.
    """
    end = time.monotonic() + MOST_SECONDS
    network = onnx.load(float_path)
    float_times = HOST.profile(float_path, feeds)
    for _ in range(MOST_ROUNDS):
        if time.monotonic() > end:
            break
        found = slow_candidates(network, read_model(made.path), float_times, HOST.profile(made.path, feeds))
        others = [other for one in found if (other := _in_int8(quantized, made, one)) is not None]
        if not others:
            break
        progress.say(f"timing {len(others)} models with nodes in float that took longer in int8")
        blocks = HOST.times([made.path, *(other.path for other in others)], feeds)
        ratios = [ratio_interval(column, blocks[:, 0]) for column in blocks.T[1:]]
        faster = [(ratio.estimate, n) for n, ratio in enumerate(ratios) if ratio.upper < 1]
        if not faster:
            break
        made = others[min(faster)[1]]
    return made


def _in_int8(
    quantized: Callable[[Mapping[str, str]], _Made], made: _Made, candidate: SlowNodes
) -> _Made | None:
    """The model with a candidate in float; None if no product is left in int8."""
    in_float = {**_reasons(candidate), **made.in_float}
    if in_float.keys() == made.in_float.keys():
        return None
    try:
        other = quantized(in_float)
    except ExportError:
        return None
    return other if has_int8_products(read_model(other.path)) else None


def _reasons(candidate: SlowNodes) -> dict[str, str]:
    return {
        name: f"int8 took {ratio:.2f} x its float time on this CPU"
        for name, ratio in candidate.ratios.items()
    }


def _raced(rival: Path, made: Path, feeds: Mapping[str, Array]) -> Speed:
    blocks = HOST.times([rival, made], feeds)
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


def _judged(made: _Made, speed: Speed, goal: Goal, floats: Mapping[str, str]) -> Int8Model:
    """The model with its verdict.

    Raises:
        SlowerError: int8 is slower, and the goal is speed.
    """
    in_float = {**floats, **made.in_float}
    ratio = Interval(speed.ratio, speed.lower, speed.upper)
    pays = judge_speed(ratio, mixed=bool(in_float))
    if pays == "float" and goal == "speed":
        raise SlowerError(
            "int8",
            speed.text(),
            'nothing was written: use the float model, or set the goal to "size" for a smaller file',
        )
    return made.model.model_copy(update={"pays": pays, "speed": speed, "in_float": in_float})
