"""Mixup: training on weighted sums of two samples and of their labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from exporter.errors import StageError


def mixup(
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    *,
    classes: int,
    alpha: float,
    generator: np.random.Generator,
    place: str,
) -> tuple[dict[str, Tensor], Tensor]:
    """Mix a batch with a shuffled copy of itself: share * x + (1 - share) * x', share ~ Beta(alpha, alpha).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), with one share for the whole batch as
    in the authors' code.

    Args:
        inputs: named tensors [N, ...].
        labels: int64 [N].
        classes: C.
        alpha: of the Beta distribution; small values mix little.
        generator: draws share and order.
        place: what to name in errors.

    Returns:
        Inputs of the same shapes, and labels as float [N, C] that sum to one.

    Raises:
        StageError: an input is of integers, which have no sums.
    """
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(labels)))
    for name, tensor in inputs.items():
        if not tensor.is_floating_point():
            raise StageError(f"{place}.mixup", f"input {name!r} is of integers", "set mixup = 0")
    hot = functional.one_hot(labels, classes).float()
    mixed = {name: share * tensor + (1 - share) * tensor[order] for name, tensor in inputs.items()}
    return mixed, share * hot + (1 - share) * hot[order]
