"""The verdict on the speed of a quantized model."""

from __future__ import annotations

import pytest

from bench.core.statistics import Interval
from bench.judging.pays import judge_speed


@pytest.mark.parametrize(
    ("bounds", "mixed", "verdict"),
    [
        ((0.5, 0.6), False, "int8"),
        ((0.5, 0.6), True, "mixed"),
        ((0.9, 1.2), False, "int8"),  # unclear
        ((1.0, 1.2), True, "mixed"),
        ((1.01, 1.2), False, "float"),
        ((1.01, 1.2), True, "float"),
    ],
)
def test_only_a_proven_loss_is_float(bounds, mixed, verdict):
    assert judge_speed(Interval(sum(bounds) / 2, *bounds), mixed=mixed) == verdict
