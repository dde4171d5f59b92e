"""Compare the costs of a network before and after: latency, bytes, multiply-adds and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from exporter.results import Costs
from exporter.training.shrinking.layer_costs import count_macs, count_parameters
from exporter.training.shrinking.meter import Exported, Measured, Meter


@dataclass(frozen=True)
class Goal:
    """A target: `latency_ms`, or a fraction of the first network's cost, for example `macs_ratio`.

    `float_latency_ratio` is a fraction of the first network's latency in float.
    """

    name: str
    limit: float

    @property
    def quantity(self) -> str:
        """The cost that the goal limits: `latency`, `macs`, `params` or `size`."""
        return self.name.removeprefix("float_").partition("_")[0]

    @property
    def needs_float(self) -> bool:
        """Whether the first network must also be measured in float."""
        return self.name.startswith("float_")

    def reached(self, before: Costs, after: Costs) -> float:
        """The network's cost, in the unit of the goal's limit."""
        if self.name == "latency_ms":
            return after.latency_ms
        if self.needs_float:
            assert before.float_latency_ms is not None
            return after.latency_ms / before.float_latency_ms
        return after.of(self.quantity) / before.of(self.quantity)


class CostComparison:
    """Compares networks with the first network; both are timed in turns.

    Args:
        meter: measures networks on this CPU.
        module: the first network.
        inputs: two samples.
        in_float: whether the first network is also timed in float.
    """

    def __init__(
        self,
        meter: Meter[Exported],
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        *,
        in_float: bool = False,
    ) -> None:
        first = meter.export(module)
        floats = [meter.export_float(module)] if in_float else []

        def measure(other: nn.Module) -> list[Measured]:
            return meter.measure([first, meter.export(other), *floats])

        self._measure, self._inputs = measure, inputs
        self._counts = self._count(module)

    def compare(self, module: nn.Module) -> tuple[Costs, Costs]:
        """The costs of the first network, and the costs of the given network."""
        before, after, *floats = self._measure(module)
        float_ms = floats[0].latency_ms if floats else None
        return _costs(before, self._counts, float_ms), _costs(after, self._count(module), None)

    def reached(self, goal: Goal, module: nn.Module) -> float:
        """The network's cost, in the unit of the goal's limit."""
        if goal.quantity in self._counts:  # counts need no measurement
            return self._count(module)[goal.quantity] / self._counts[goal.quantity]
        return goal.reached(*self.compare(module))

    def _count(self, module: nn.Module) -> dict[str, int]:
        return {"macs": count_macs(module, self._inputs), "params": count_parameters(module)}


def _costs(measured: Measured, counts: Mapping[str, int], float_ms: float | None) -> Costs:
    return Costs(
        latency_ms=measured.latency_ms,
        size_bytes=measured.size_bytes,
        macs=counts["macs"],
        params=counts["params"],
        float_latency_ms=float_ms,
    )
