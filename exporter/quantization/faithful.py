"""Compare an int8 model with float on held-out samples, and try remedies if it differs much.

Most losses have one of four causes: ranges stretched by rare values, channels of a transformer that differ
by orders of magnitude, a few layers whose values do not fit in 8 bits (a front end that takes the logarithm
of a spectrum), or depthwise convolutions whose channels differ by orders of magnitude. The remedy for each
is known and costs little, so it is tried at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import onnx

from exporter.errors import ExportError
from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex
from exporter.graphs.onnx_files import is_large
from exporter.inspection.fidelity import (
    before,
    closeness,
    count_samples,
    feeds_of,
    first_bad_layers,
    is_low,
)
from exporter.inspection.layer_errors import layer_errors
from exporter.inspection.same_outputs import Answer
from exporter.quantization.attempts import Attempt, Attempts, leaving
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.smoothed import smoothed
from exporter.results import Closeness, Fidelity, Remedy
from exporter.sources.splits import ArraySamples

# Limits of the search for remedies.
MOST_ROUNDS, MOST_SECONDS = 4, 120.0
# A smaller gain on few samples may not exist on others.
MIN_GAIN_DB = 1.0
# One of 32 samples may change its class by chance.
_SAME_AGREEMENT = 0.035
# The products before the first layer with errors are all tried in float if they are at most this many.
_FEW_PRODUCTS, _FEW_SHARE = 4, 0.2
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Judged:
    """The samples that judge the int8 model.

    Attributes:
        answers: feeds, and the float model's outputs for them.
        held_out: whether the samples are left out of calibration.
    """

    answers: Sequence[Answer]
    held_out: bool


@dataclass(frozen=True)
class _Tried:
    """A quantized model, and how close it is to float."""

    attempt: Attempt
    found: Closeness


@dataclass(frozen=True)
class _Change:
    """A change of the settings that may help."""

    remedy: str
    attempts: Attempts
    settings: Int8Settings
    in_float: tuple[str, ...] = ()


def remedied(attempt: Attempt, judged: Judged, found: Closeness) -> tuple[Attempt, tuple[Remedy, ...]]:
    """Try remedies while the outputs of an int8 model differ much from float.

    Each round tries changes and keeps one: the first that suffices, or the best. Nodes return to float only
    in a round in which no other change helps, because that costs time in every inference.

    Args:
        attempt: the int8 model.
        judged: the samples that judge.
        found: the closeness of the model.

    Returns:
        The model with the remedies that help, and a report of each change.
    """
    best = _Tried(attempt, found)
    if not is_low(best.found):
        return attempt, ()
    say = attempt.attempts.progress.say
    say(f"the int8 model differs much from float ({best.found.text()}): trying remedies")
    end, reports = time.monotonic() + MOST_SECONDS, list[Remedy]()
    smooth = cache(partial(smoothed, attempt.attempts, attempt.settings))
    for _ in range(MOST_ROUNDS):
        tries = _try(_other_values(best, smooth), judged, end)
        if not any(_helps(best.found, one.found) or not is_low(one.found) for _, one in tries):
            tries += _try(_in_float(best, judged), judged, end)
        helpful = [tried for _, tried in tries if _helps(best.found, tried.found)]
        enough = [tried for tried in helpful if not is_low(tried.found)]
        kept = enough[0] if enough else max(helpful, key=lambda one: one.found.sqnr_db, default=None)
        for change, tried in tries:
            reports.append(
                Remedy(
                    remedy=change.remedy,
                    kept=tried is kept,
                    before=best.found,
                    after=tried.found,
                    in_float=change.in_float,
                )
            )
            say(reports[-1].line())
        if kept is None:
            break
        best = kept
        if enough:
            break
    return best.attempt, tuple(reports)


def _try(changes: Iterator[_Change], judged: Judged, end: float) -> list[tuple[_Change, _Tried]]:
    """Try changes until one suffices or the time is over."""
    tries: list[tuple[_Change, _Tried]] = []
    for change in changes:
        if time.monotonic() > end:
            break
        try:
            made = change.attempts(change.settings)
        except ExportError:  # nothing would be left in int8
            continue
        tries.append((change, _Tried(made, closeness(judged.answers, made.path))))
        if not is_low(tries[-1][1].found):
            break  # the changes are sorted by their cost in time
    return tries


def fidelity_of(
    attempt: Attempt, judged: Judged, found: Closeness, remedies: tuple[Remedy, ...]
) -> Fidelity:
    """The fidelity of the model that will be written, and where its error begins if it is low."""
    return Fidelity(
        **found.model_dump(),
        samples=count_samples(judged.answers),
        held_out=judged.held_out,
        low=(low := is_low(found)),
        first_layers=_first_layers(attempt, judged) if low else (),
        remedies=remedies,
    )


def _helps(before: Closeness, after: Closeness) -> bool:
    """Whether a change made the outputs closer to float."""
    fewer = (before.agreement or 0.0) - (after.agreement or 0.0) > _SAME_AGREEMENT
    return after.sqnr_db >= before.sqnr_db + MIN_GAIN_DB and not fewer


def _other_values(best: _Tried, smooth: Callable[[], Attempts | None]) -> Iterator[_Change]:
    """The changes that leave the same nodes in int8.

    Args:
        best: the model so far.
        smooth: smooths the channels of the network.
    """
    settings, attempts = best.attempt.settings, best.attempt.attempts
    if settings.method == "minmax":
        yield _Change("ranges by percentile", attempts, replace(settings, method="percentile"))
    if not attempts.smoothed and (others := smooth()) is not None:
        yield _Change("channels smoothed", others, settings)


def _in_float(best: _Tried, judged: Judged) -> Iterator[_Change]:
    """The changes that return nodes to float, those that cost little time first."""
    settings, attempts = best.attempt.settings, best.attempt.attempts
    graph = GraphIndex.of(attempts.model.graph)
    products = [node for node in graph.nodes if node.op_type in _WEIGHTED]
    most = max(_FEW_PRODUCTS, int(_FEW_SHARE * len(products)))
    first = [graph.by_name[name] for name in _first_layers(best.attempt, judged)]
    sources = [node.name for layer in first for node in _products_before(layer, graph, most)]
    readers = [node.name for layer in first for node in _products_after(layer, graph)]
    depthwise = [node.name for node in products if _is_depthwise(node, graph)]
    reason = f"in 8 bits the model's outputs had an SQNR of {best.found.sqnr_db:.1f} dB against float"
    for text, names in (
        ("float where the error begins", sources),
        ("float where the error begins and after it", [*sources, *readers]),
        ("depthwise convolutions in float", depthwise),
    ):
        new = tuple(dict.fromkeys(name for name in names if name not in settings.exclude))
        if new:
            yield _Change(text, attempts, leaving(settings, dict.fromkeys(new, reason)), new)


def _products_before(layer: onnx.NodeProto, graph: GraphIndex, most: int) -> list[onnx.NodeProto]:
    """The products whose rounded results a layer is computed from: all, or the nearest if they are many.

    A logarithm makes the rounding of small values large, so the layer where the error shows is not the
    layer that has to stay in float.
    """
    found = [node for node in (layer, *before(layer, graph)) if node.op_type in _WEIGHTED]
    return found if len(found) <= most else found[:1]


def _products_after(layer: onnx.NodeProto, graph: GraphIndex) -> Iterator[onnx.NodeProto]:
    """The nearest products that read a layer's result."""
    waiting, seen = [*graph.readers_of(layer)], set[str]()
    while waiting:
        node = waiting.pop()
        if node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type in _WEIGHTED:
            yield node
        else:
            waiting.extend(graph.readers_of(node))


def _is_depthwise(node: onnx.NodeProto, graph: GraphIndex) -> bool:
    weights = graph.constants.get(node.input[1]) if node.op_type == "Conv" and is_standard(node) else None
    return weights is not None and int(attributes_of(node).get("group", 1)) > 1 and weights.dims[1] == 1


def _first_layers(attempt: Attempt, judged: Judged) -> tuple[str, ...]:
    """The layers where the error begins; empty if the models are too large to compare."""
    attempts = attempt.attempts
    if is_large(attempts.model):
        return ()
    size = len(next(iter(judged.answers[0].feeds.values())))
    batch = attempt.settings.fixed_batch or 1  # all tensors of a batch are in memory
    whole = [answer for answer in judged.answers if len(next(iter(answer.feeds.values()))) == size]
    layers = layer_errors(attempts.float_file(), attempt.path, ArraySamples(feeds_of(whole)), batch)
    return first_bad_layers(layers, GraphIndex.of(attempts.model.graph))
