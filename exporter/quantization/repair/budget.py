"""Leave layers in float until the accuracy loss of int8 is within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from bench.core.progress import Progress
from exporter.errors import ExportError
from exporter.graphs.layers import with_constants_of
from exporter.quantization.int8 import take_shortcuts
from exporter.quantization.repair.fallback import (
    Fallback,
    layers_of_tensors,
    rounding_layers,
    search,
    within,
)
from exporter.quantization.repair.score import Judge
from exporter.quantization.repair.timing import float_costs
from exporter.quantization.repair.trial import Repaired
from exporter.recipes import FallbackConfig
from exporter.results import FallbackCandidate, FallbackReport, Score

# The number of candidates whose cost is measured is this times the number of layers that may stay in float.
TIMED_PER_LAYER = 3


@dataclass(frozen=True)
class _Mixed:
    """Int8 models of a repaired network with some layers in float."""

    repaired: Repaired
    judge: Judge

    def float_model(self, exclude: tuple[str, ...]) -> onnx.ModelProto:
        """The repaired model with the original weights in excluded layers.

        Weights that a repair changed for int8 are wrong in float.
        """
        return with_constants_of(self.repaired.model, self.repaired.models.reference, exclude)

    def int8_model(self, exclude: tuple[str, ...]) -> onnx.ModelProto:
        return self.repaired.models.make(self.float_model(exclude), exclude)

    def shipped_model(self, exclude: tuple[str, ...]) -> onnx.ModelProto:
        model = self.int8_model(exclude)
        take_shortcuts(model, self.repaired.models.settings.target)
        return model

    def score(self, exclude: tuple[str, ...]) -> Score:
        return self.judge.score(self.int8_model(exclude)) if exclude else self.repaired.score


def meet_budget(
    repaired: Repaired, judge: Judge, config: FallbackConfig, progress: Progress
) -> tuple[onnx.ModelProto, FallbackReport]:
    """Search for layers to leave in float so that the budget is met.

    Args:
        repaired: the repaired float model, and the means to convert it to int8.
        judge: scores models on held-out samples.
        config: the budget.
        progress: receives the progress.

    Returns:
        The float model, with the original weights in the layers left in float, and the report.

    Raises:
        ExportError: no configuration meets the budget.
    """
    before, mixed = repaired.score, _Mixed(repaired, judge)
    if within(before, config):
        return repaired.model, _report(Fallback((), before, met=True, tried=1), before, ())
    placement = repaired.models.plan(repaired.model).options.placement
    layers = rounding_layers(repaired.model, placement.nodes)
    int8_ns, candidates = _candidates(mixed, layers, config, progress)
    with progress.task("fallback", 2 * config.max_layers) as task:

        def score(exclude: tuple[str, ...]) -> Score:
            task.advance()
            return mixed.score(exclude)

        found = search(candidates, score, config, order=tuple(layers), int8_ns=int8_ns)
    if not found.met:
        raise ExportError("quantize.fallback", *_unmet(found, config))
    return mixed.float_model(found.exclude), _report(found, before, candidates)


def _candidates(
    mixed: _Mixed, layers: Mapping[str, tuple[str, ...]], config: FallbackConfig, progress: Progress
) -> tuple[float, tuple[FallbackCandidate, ...]]:
    """The int8 model's time in ns, and the sets of layers that reduce the noise most, with their costs."""
    sets = [(layer,) for layer in layers] + layers_of_tensors(mixed.repaired.model, layers)
    scores: dict[tuple[str, ...], float] = {}
    sets = [together for together in sets if len(together) <= config.max_layers]
    with progress.task("sensitivity", len(sets)) as task:
        for together in sets:
            scores[together] = mixed.score(together).sqnr_db
            task.advance()
    best = sorted(scores, key=lambda together: -scores[together])[: TIMED_PER_LAYER * config.max_layers]
    int8_ns, costs = _costs(mixed, best, progress)
    return int8_ns, tuple(
        FallbackCandidate(layers=together, sqnr_db=scores[together], cost_ns=costs[together])
        for together in best
    )


def _costs(
    mixed: _Mixed, sets: Sequence[tuple[str, ...]], progress: Progress
) -> tuple[float, dict[tuple[str, ...], float]]:
    """The int8 model's time in ns, and the additional time of each set of layers in float."""
    size = mixed.repaired.models.settings.fixed_batch or 1
    feeds = {name: np.ascontiguousarray(array[:size]) for name, array in mixed.judge.inputs.items()}
    with progress.task("cost in float", len(sets)) as task:

        def variants() -> Iterator[tuple[tuple[str, ...], onnx.ModelProto]]:
            for together in sets:
                yield together, mixed.shipped_model(together)
                task.advance()

        return float_costs(mixed.shipped_model(()), variants(), feeds)


def _report(found: Fallback, before: Score, candidates: tuple[FallbackCandidate, ...]) -> FallbackReport:
    return FallbackReport(
        exclude=found.exclude, tried=found.tried, before=before, after=found.score, candidates=candidates
    )


def _unmet(found: Fallback, config: FallbackConfig) -> tuple[str, str]:
    """The cause and fix of the error for a budget that no configuration meets."""
    wanted = f"the budget allows {config.max_drop:.2%}"
    if config.min_sqnr_db is not None:
        wanted += f" and requires {config.min_sqnr_db:.1f} dB"
    kept = ", ".join(found.exclude) or "nothing"
    return (
        f"no configuration meets the budget: the best of {found.tried}, with {kept} in float, loses "
        f"{found.score.drop:.2%} at {found.score.sqnr_db:.1f} dB; {wanted}",
        f"raise max_drop, or max_layers (now {config.max_layers}), or add repairs",
    )
