"""The fallback search: the fewest and cheapest layers to leave in float to meet an accuracy budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from exporter.graphs.index import GraphIndex
from exporter.quantization.repair.score import noise
from exporter.recipes import FallbackConfig
from exporter.results import FallbackCandidate, Score

# Activations after a layer. They are quantized if the layer is quantized.
_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu"}
# These operators only move values and do not round.
_MOVEMENT = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
# A cost below this fraction of the whole model's time is smaller than the measurement noise.
LEAST_COST_SHARE = 0.02


@dataclass(frozen=True)
class Fallback:
    """The result of a search.

    Attributes:
        exclude: the layers to leave in float, in graph order.
        score: the score of the model with these layers in float.
        met: whether the score is within the budget; if not, it is the best score found.
        tried: the number of configurations scored.
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
    """Choose layers by measured scores and costs. The search is deterministic for given costs.

    1. If the budget is met with all layers in int8, no layer is left in float.
    2. Otherwise, candidates are added in the order of noise reduction per cost, highest first, until the
       budget is met. A candidate that would exceed `max_layers` is skipped. A candidate without gain does
       not stop the search.
    3. Then each chosen layer is quantized again, starting with the last one added. It stays quantized if
       the budget is still met.

    Args:
        candidates: sets of layers that can stay in float.
        score: returns the score of the model with given layers in float.
        config: the budget.
        order: all layers, in graph order.
        int8_ns: time of the model with all layers in int8. Lower costs than `LEAST_COST_SHARE` of it are
            raised to this value.
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
    """Whether a score is within the budget."""
    return score.drop <= config.max_drop and (
        config.min_sqnr_db is None or score.sqnr_db >= config.min_sqnr_db
    )


def rounding_layers(model: onnx.ModelProto, quantized: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Map each quantized node to the nodes quantized with it: the node itself and activations after it.

    Args:
        model: the float model; every node has a unique name.
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
    """For each tensor between layers, all layers that write or read it, in graph order; each set once.

    A tensor is rounded if any of these layers is quantized. It gains nothing to leave only the producing
    layer in float while another layer reads the tensor in int8. In EfficientNet-Lite0, two fifths of the
    noise of rounded activations arise at the first convolution's output. To remove this noise, both the
    first and the next convolution must stay in float.

    Args:
        model: the float model.
        layers: the result of `rounding_layers`.
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
