"""The fallback search: the fewest and cheapest layers to leave in float so that a budget holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx

from bench.parity import EXACT_SQNR_DB
from exporter.recipe import FallbackConfig
from exporter.repair.score import Score

# Behind a layer these only cut or bend its output, and are quantized or not as it is.
_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu"}
# They move values and round nothing.
_MOVEMENT = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
# A cost below this share of the whole model's time is lost in the noise of the measurement.
LEAST_COST_SHARE = 0.02


@dataclass(frozen=True)
class Candidate:
    """A layer that could stay in float.

    Attributes:
        layer: its name.
        sqnr_db: of the model's output when only this layer is quantized.
        cost_ns: time per run that leaving it in float costs.
    """

    layer: str
    sqnr_db: float
    cost_ns: float

    @property
    def noise(self) -> float:
        """Noise energy as a share of the signal's."""
        return 0.0 if self.sqnr_db >= EXACT_SQNR_DB else float(10 ** (-self.sqnr_db / 10))


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
    candidates: Sequence[Candidate],
    score: Callable[[tuple[str, ...]], Score],
    config: FallbackConfig,
    *,
    int8_ns: float,
) -> Fallback:
    """Choose layers by measured outcomes; deterministic but for the costs.

    1. Nothing is left in float if the budget holds so.
    2. Candidates are added by noise per cost, most first, until the budget holds or there are
       `max_layers`. A tensor is freed only when all layers that touch it are: a single step may gain
       nothing, and the search goes on.
    3. Then each is quantized again, the costliest first, and stays so if the budget still holds.

    Args:
        candidates: in graph order.
        score: of the model with some layers in float.
        config: the budget.
        int8_ns: time of the model with nothing in float; `LEAST_COST_SHARE` of it is the least cost.
    """
    order = [candidate.layer for candidate in candidates]
    tried: dict[tuple[str, ...], Score] = {}

    def scored(layers: Sequence[str]) -> Score:
        key = tuple(sorted(layers, key=order.index))
        if key not in tried:
            tried[key] = score(key)
        return tried[key]

    least = max(LEAST_COST_SHARE * int8_ns, 1.0)
    ranked = sorted(candidates, key=lambda c: (-c.noise / max(c.cost_ns, least), order.index(c.layer)))
    chosen: list[str] = []
    for candidate in ranked[: config.max_layers]:
        if within(scored(chosen), config):
            break
        chosen.append(candidate.layer)
    if not within(scored(chosen), config):
        best = min(tried, key=lambda key: (tried[key].drop, -tried[key].sqnr_db, len(key)))
        return Fallback(best, tried[best], met=False, tried=len(tried))
    costs = {candidate.layer: candidate.cost_ns for candidate in candidates}
    for layer in sorted(chosen, key=lambda name: (-costs[name], order.index(name))):
        fewer = [name for name in chosen if name != layer]
        if within(scored(fewer), config):
            chosen = fewer
    exclude = tuple(sorted(chosen, key=order.index))
    return Fallback(exclude, tried[exclude], met=True, tried=len(tried))


def within(score: Score, config: FallbackConfig) -> bool:
    """Whether a score lies within the budget."""
    return score.drop <= config.max_drop and (
        config.min_sqnr_db is None or score.sqnr_db >= config.min_sqnr_db
    )


def rounding_layers(model: onnx.ModelProto, quantized: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Nodes that are quantized -> the nodes quantized with them (themselves, and activations behind).

    Args:
        model: the float model; every node has a name of its own.
        quantized: names of the nodes that run in int8; see `exporter.placement`.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {
        node.name: (
            node.name,
            *(r.name for r in readers.get(node.output[0], []) if r.op_type in _ACTIVATIONS),
        )
        for node in model.graph.node
        if node.name in quantized and node.op_type not in _ACTIVATIONS | _MOVEMENT
    }
