"""What every stage is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from bench.progress import Progress
from exporter.data import Splits
from exporter.network import Network
from exporter.recipe import DataConfig, TeacherConfig

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a stage may ask of the build beside its network and data.

    Attributes:
        name: of the stage, for messages.
        seed: of the recipe.
        progress: where to tell how far it is.
        fresh_module: makes the recipe's network anew, with random weights.
        teacher: finds the network of an earlier stage by name, or builds another one.
        load_data: calls another data factory.
    """

    name: str
    seed: int
    progress: Progress
    fresh_module: Callable[[], nn.Module]
    teacher: Callable[[str | TeacherConfig], nn.Module]
    load_data: Callable[[DataConfig, str], Splits]


class StageFunction(Protocol):
    """The signature of a stage. `config` is the stage's own class from `exporter.recipe`."""

    def __call__(
        self, network: Network, config: Any, data: Splits, context: Context
    ) -> tuple[Network, Metrics]:
        """Run the stage."""
