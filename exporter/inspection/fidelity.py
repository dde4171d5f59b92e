"""Measure how close the outputs of an int8 model are to those of the float model."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.metrics.parity import EXACT_SQNR_DB, decibels, sqnr_lower_db
from exporter.graphs.index import GraphIndex
from exporter.inspection.padding import real_positions, without_padding
from exporter.inspection.same_outputs import Answer, answers_of, usual_values
from exporter.results import Closeness, Fidelity, LayerError

# Noise of 1 % of the signal. Measured on networks with trained weights: classifiers, sentence encoders and
# text recognition keep at least 98 % of their answers above it, and lose 10 to 70 % of them below 16 dB.
LOW_SQNR_DB = 20.0
# Classes may survive a low SQNR, because only the largest score counts, and they may change at a high one,
# if the scores differ little. With 32 samples, one other class is 97 %.
FEW_CHANGES, MANY_CHANGES = 0.98, 0.9
_CLASSES_RANK = 2
_FIRST_LAYERS = 3


def closeness(answers: Sequence[Answer], made: Path) -> Closeness:
    """Compare the outputs of an int8 model with those of the float model.

    The SQNR leaves out positions of padding, if an input states them.

    Args:
        answers: feeds, and the float model's outputs for them.
        made: the int8 model.

    Raises:
        ModelError: the model cannot be loaded, or fails when it runs.
    """
    found = answers_of(made, [answer.feeds for answer in answers])
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    energies: dict[str, list[Array]] = {}
    for before, after in zip(answers, found, strict=True):
        real, count = real_positions(before.feeds), len(next(iter(before.feeds.values())))
        for name, wanted in before.outputs.items():
            got = after.outputs[name]
            if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray):
                continue
            if wanted.dtype.kind == "f" and wanted.size and wanted.shape == got.shape:
                pairs.setdefault(name, []).append((wanted, got))
                clear = without_padding(wanted, real), without_padding(got, real)
                energies.setdefault(name, []).append(_energies(*clear, count))
    if not pairs:
        return Closeness(sqnr_db=EXACT_SQNR_DB, output="", agreement=None)
    sums = {name: np.concatenate(parts) for name, parts in energies.items()}
    sqnr = {name: decibels(*map(float, each.sum(axis=0))) for name, each in sums.items()}
    worst = min(sqnr, key=lambda name: sqnr[name])
    agreements = [share for each in pairs.values() if (share := _agreement(each)) is not None]
    return Closeness(
        sqnr_db=sqnr[worst],
        sqnr_lower_db=sqnr_lower_db(*sums[worst].T),
        output=worst,
        agreement=min(agreements) if agreements else None,
    )


def fidelity_on(
    found: Closeness, samples: int, float_model: Path, layers: Sequence[LayerError]
) -> Fidelity:
    """The fidelity of an int8 model on samples that did not calibrate it.

    Args:
        found: the closeness of its outputs to float.
        samples: number of samples.
        float_model: the float model that the layers were compared with.
        layers: the error of each rounded tensor, in graph order.
    """
    low = is_low(found)
    graph = GraphIndex.of(onnx.load(float_model, load_external_data=False).graph)
    return Fidelity(
        **found.model_dump(),
        samples=samples,
        held_out=True,
        low=low,
        first_layers=first_bad_layers(layers, graph) if low else (),
    )


def count_samples(answers: Sequence[Answer]) -> int:
    """The number of samples; the first one may be fed once more alone."""
    sizes = [len(next(iter(answer.feeds.values()))) for answer in answers]
    return sum(sizes) - (len(sizes) > 1 and sizes[-1] == 1 < sizes[0])


def is_low(found: Closeness) -> bool:
    """Whether the outputs differ so much that the model may not be useful."""
    if found.agreement is not None and found.agreement < MANY_CHANGES:
        return True
    sqnr = found.sqnr_db if found.sqnr_lower_db is None else found.sqnr_lower_db
    return sqnr < LOW_SQNR_DB and (found.agreement is None or found.agreement < FEW_CHANGES)


def first_bad_layers(layers: Sequence[LayerError], graph: GraphIndex) -> tuple[str, ...]:
    """Names of the layers where the error begins: far from float, and no layer before them is.

    Args:
        layers: the error of each rounded tensor, in graph order.
        graph: the float model.
    """
    bad = {layer.layer: None for layer in layers if layer.sqnr_db < LOW_SQNR_DB}
    nodes = [graph.by_name[name] for name in bad if name in graph.by_name]
    first = [node.name for node in nodes if bad.keys().isdisjoint(one.name for one in before(node, graph))]
    return tuple(first[:_FIRST_LAYERS])


def before(node: onnx.NodeProto, graph: GraphIndex) -> list[onnx.NodeProto]:
    """The nodes whose results a node depends on, without itself, nearest first."""
    found: dict[str, onnx.NodeProto] = {}
    waiting = deque(node.input)
    while waiting:
        maker = graph.maker(waiting.popleft())
        if maker is not None and maker.output[0] not in found:
            found[maker.output[0]] = maker
            waiting.extend(maker.input)
    return list(found.values())


def _energies(wanted: Array, got: Array, count: int) -> Array:
    """Energies of signal and noise of each sample, over values that are finite and usual in both, [N, 2].

    If the outputs of the samples are not along the first axis, all samples together are one.
    """
    separate = wanted.ndim > 0 and len(wanted) == count
    rows = zip(wanted, got, strict=True) if separate else [(wanted, got)]
    found = []
    for one, other in rows:
        x, y = usual_values(one, other)
        found.append((float(x @ x), float((x - y) @ (x - y))))
    return np.array(found)


def _agreement(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Fraction of rows with the same largest value; None if the output does not hold scores of classes."""
    if any(one.ndim != _CLASSES_RANK or one.shape[1] < 2 for one, _ in pairs):
        return None
    return float(
        np.concatenate([one.argmax(axis=1) == other.argmax(axis=1) for one, other in pairs]).mean()
    )


def feeds_of(answers: Sequence[Answer]) -> dict[str, Array]:
    """The feeds of all answers as one array for each input; they must have the same sizes."""
    names: Mapping[str, Array] = answers[0].feeds
    return {name: np.concatenate([answer.feeds[name] for answer in answers]) for name in names}
