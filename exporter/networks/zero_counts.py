"""Count the zero parameters of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from exporter.results import Zeros


def count_zeros(module: nn.Module, masks: Mapping[str, Tensor]) -> Zeros:
    """Count the weights that masks (parameter name -> bool, False for pruned weights) set to zero."""
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    eligible = sum(mask.numel() for mask in masks.values())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Zeros(
        zero_share=zeros / parameters if parameters else 0.0,
        sparsity=zeros / eligible if eligible else 0.0,
        zeros=zeros,
        eligible_parameters=eligible,
        parameters=parameters,
    )
