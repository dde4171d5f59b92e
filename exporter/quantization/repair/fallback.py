"""The fallback search: the fewest and cheapest layers to leave in float so that a budget holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from exporter.graphs.index import GraphIndex
from exporter.quantization.repair.score import noise
from exporter.recipes import FallbackConfig
from exporter.results import FallbackCandidate, Score

# After a layer these only cut or bend its output, and are quantized or not as it is.
_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu"}
# They move values and round nothing.
_MOVEMENT = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
# A cost below this share of the whole model's time is lost in the noise of the measurement.
LEAST_COST_SHARE = 0.02


@dataclass(frozen=True)
class Fallback:
    """What a search found.

    Attributes:
        exclude: the layers to leave in float, in graph order.
        score: of the model with them in float.
        met: whether that lies within the budget; if not, it is the best that was tried.
        tried: how many configurations were scored.
    """

    exclude: tuple[str, ...]
    score: Score
    met: bool
    tried: int


def search(
    candidates: Sequence[FallbackCandidate],
    score: Callable[[tuple[str, ...]], Score],
    config: FallbackConfig,
    *,
    order: Sequence[str],
    int8_ns: float,
) -> Fallback:
    """Choose layers by measured outcomes; deterministic but for the costs.

    1. Nothing is left in float if the budget holds so.
    2. Candidates are added by the noise that they take off per cost, most first, until the budget holds;
       one with which there would be more than `max_layers` is passed over. A candidate may gain nothing:
       the search goes on.
    3. Then each layer is quantized again, the one added last first, and stays so if the budget still holds.

    Args:
        candidates: what could stay in float.
        score: of the model with some layers in float.
        config: the budget.
        order: all layers, in graph order.
        int8_ns: time of the model with nothing in float; `LEAST_COST_SHARE` of it is the least cost.
    """
    place = {layer: index for index, layer in enumerate(order)}
    tried: dict[tuple[str, ...], Score] = {}

    def scored(layers: Collection[str]) -> Score:
        key = tuple(sorted(layers, key=place.__getitem__))
        if key not in tried:
            tried[key] = score(key)
        return tried[key]

    least = max(LEAST_COST_SHARE * int8_ns, 1.0)
    all_noise = noise(scored(()).sqnr_db)

    def rank(candidate: FallbackCandidate) -> tuple[float, int, list[int]]:
        gain = all_noise - noise(candidate.sqnr_db)
        return (
            -gain / max(candidate.cost_ns, least),
            len(candidate.layers),
            [place[n] for n in candidate.layers],
        )

    chosen: list[str] = []
    for candidate in sorted(candidates, key=rank):
        if within(scored(chosen), config):
            break
        more = [layer for layer in candidate.layers if layer not in chosen]
        if len(chosen) + len(more) <= config.max_layers:
            chosen += more
    if not within(scored(chosen), config):
        best = min(tried, key=lambda key: (tried[key].drop, -tried[key].sqnr_db, len(key)))
        return Fallback(best, tried[best], met=False, tried=len(tried))
    for layer in reversed(tuple(chosen)):
        fewer = [name for name in chosen if name != layer]
        if within(scored(fewer), config):
            chosen = fewer
    exclude = tuple(sorted(chosen, key=place.__getitem__))
    return Fallback(exclude, tried[exclude], met=True, tried=len(tried))


def within(score: Score, config: FallbackConfig) -> bool:
    """Whether a score lies within the budget."""
    return score.drop <= config.max_drop and (
        config.min_sqnr_db is None or score.sqnr_db >= config.min_sqnr_db
    )


def rounding_layers(model: onnx.ModelProto, quantized: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Nodes that are quantized -> the nodes quantized with them (themselves, and activations after them).

    Args:
        model: the float model; every node has a name of its own.
        quantized: names of the nodes that run in int8; see `exporter.quantization.placement`.
    """
    index = GraphIndex.of(model.graph)
    return {
        node.name: (
            node.name,
            *(r.name for r in index.readers(node.output[0]) if r.op_type in _ACTIVATIONS),
        )
        for node in model.graph.node
        if node.name in quantized and node.op_type not in _ACTIVATIONS | _MOVEMENT
    }


def layers_of_tensors(
    model: onnx.ModelProto, layers: Mapping[str, Collection[str]]
) -> list[tuple[str, ...]]:
    """For each tensor between layers, all layers that touch it, in graph order; each set once.

    A tensor is rounded as long as one of them is quantized: leaving in float the layer that makes it gains
    nothing while another reads it in int8. Two fifths of the noise that rounding EfficientNet-Lite0's
    activations makes arise at its first convolution's output, which that one and the next free together.

    Args:
        model: the float model.
        layers: as `rounding_layers` gives them.
    """
    index = GraphIndex.of(model.graph)
    place = {layer: index for index, layer in enumerate(layers)}
    found: dict[tuple[str, ...], None] = {}
    for node in model.graph.node:
        if node.name not in layers:
            continue
        touching, tensors = {node.name}, list(node.output)
        while tensors:
            for reader in index.readers(tensors.pop()):
                if reader.name in layers:
                    touching.add(reader.name)
                elif reader.op_type in _ACTIVATIONS | _MOVEMENT:
                    tensors.extend(reader.output)
        if len(touching) > 1:
            found[tuple(sorted(touching, key=place.__getitem__))] = None
    return list(found)
