"""How many parameters are zero, of how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ZeroCounts:
    """Pruned parameters of a network.

    Attributes:
        zeros: parameters that pruning holds at zero.
        eligible_parameters: parameters of the tensors that were pruned, zero or not.
        parameters: all parameters of the network; shared ones count once.
    """

    zeros: int
    eligible_parameters: int
    parameters: int

    @property
    def zero_share(self) -> float:
        """Zeros among all parameters: what a person means by a sparse network."""
        return self.zeros / self.parameters if self.parameters else 0.0

    @property
    def sparsity(self) -> float:
        """Zeros among the eligible parameters: what the target of `prune` counts."""
        return self.zeros / self.eligible_parameters if self.eligible_parameters else 0.0

    def as_json(self) -> dict[str, int | float]:
        """Shares and counts by name, the share of all parameters first."""
        return {"zero_share": self.zero_share, "sparsity": self.sparsity, **asdict(self)}


def count_zeros(module: nn.Module, masks: Mapping[str, Tensor]) -> ZeroCounts:
    """Count what masks (parameter name -> bool, False where pruned) hold at zero."""
    return ZeroCounts(
        zeros=sum(int((~mask).sum()) for mask in masks.values()),
        eligible_parameters=sum(mask.numel() for mask in masks.values()),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
