"""Measure the distance between the calibration samples and the samples that accuracy is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.arrays import Array

# Measured distances on photographs: 0.03 to 0.14 between two draws of 12, and up to 0.04 between two draws
# of 64. The same pictures with another normalisation are 0.3 or more apart; handwritten digits 0.7.
FAR = 0.2
_TIMES_OWN = 3.0
_SAMPLES = 64
_VALUES_A_SAMPLE = 4096


@dataclass(frozen=True)
class Drift:
    """The distance between the calibration and evaluation values of one input.

    Attributes:
        name: name of the model's input.
        distance: greatest difference between the two distribution functions, 0 to 1.
        own: the same difference between two halves of the calibration samples, which shows the effect of
            chance.
    """

    name: str
    distance: float
    own: float

    @property
    def is_far(self) -> bool:
        """Whether the calibration ranges are probably wrong for the evaluation samples."""
        return self.distance > FAR and self.distance > _TIMES_OWN * self.own


def drifts(calibration: Mapping[str, Array], evaluation: Mapping[str, Array]) -> tuple[Drift, ...]:
    """Compare the values of each input by the two-sample Kolmogorov-Smirnov distance.

    Args:
        calibration, evaluation: input name -> array [N, ...]. Up to 64 evenly spaced samples of each are
            compared, with up to about 4,096 values of each sample.
    """
    return tuple(
        Drift(
            name,
            _distance(_values(array), _values(evaluation[name])),
            _distance(_values(array[::2]), _values(array[1::2])),
        )
        for name, array in calibration.items()
        if name in evaluation
    )


def _values(array: Array) -> Array:
    """The sorted values of a selection of samples."""
    if not array.size:
        return np.zeros(0, np.float32)
    chosen = array[:: max(1, len(array) // _SAMPLES)][:_SAMPLES]
    flat = chosen.reshape(len(chosen), -1)
    step = max(1, flat.shape[1] // _VALUES_A_SAMPLE)
    return np.sort(flat[:, ::step], axis=None)


def _distance(one: Array, other: Array) -> float:
    if not one.size or not other.size:
        return 0.0
    points = np.concatenate([one, other])
    shares = [np.searchsorted(values, points, side="right") / values.size for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())
