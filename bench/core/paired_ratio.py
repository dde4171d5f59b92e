"""The ratio of two times that were measured in pairs, with bounds."""

from __future__ import annotations

import math

import numpy as np

from bench.core.arrays import Array
from bench.core.statistics import Interval, signed_rank_interval

CONFIDENCE = 0.99


def ratio_interval(candidate: Array, baseline: Array, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the ratio candidate / baseline from paired times, with a two-sided interval.

    The logarithms of the pairs' ratios are compared by ranks (Hodges-Lehmann estimate and the interval of
    Wilcoxon's signed-rank test; Hollander, Wolfe & Chicken, "Nonparametric Statistical Methods", 3rd ed.,
    section 3.2-3.3). The estimate tolerates up to 29 % arbitrary outliers. The order within a pair is
    random, so the logarithms are symmetric about the true value even if the first of a pair is slower. At
    99 %, the bounds need 8 pairs; with fewer they are 0 and infinite.

    Args:
        candidate: times of the candidate, [n], each above zero.
        baseline: times of the baseline in the same blocks, [n], each above zero.
        confidence: probability that the interval contains the ratio.
    """
    logs = np.log(np.asarray(candidate, np.float64)) - np.log(np.asarray(baseline, np.float64))
    found = signed_rank_interval(logs.tolist(), (1 - confidence) / 2)
    return Interval(math.exp(found.estimate), math.exp(found.lower), math.exp(found.upper))
