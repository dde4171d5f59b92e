"""Mixup: train on weighted sums of two samples and of their labels."""

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

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018). The whole batch has the same share, as
    in the authors' code.

    Args:
        inputs: named tensors [N, ...].
        labels: class indices, int64 [N].
        classes: number of classes, C.
        alpha: parameter of the Beta distribution; small values mix little.
        generator: draws the share and the order.
        place: the stage or key that error messages name.

    Returns:
        Inputs of the same shapes, and labels as float [N, C]; each row sums to one.

    Raises:
        StageError: an input holds integers, which cannot be mixed.
    """
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(labels)))
    for name, tensor in inputs.items():
        if not tensor.is_floating_point():
            raise StageError(
                f"{place}.mixup",
                f"input {name!r} has integers ({tensor.dtype}), which cannot be mixed",
                "set mixup = 0",
            )
    hot = functional.one_hot(labels, classes).float()
    mixed = {name: share * tensor + (1 - share) * tensor[order] for name, tensor in inputs.items()}
    return mixed, share * hot + (1 - share) * hot[order]
