"""Statistical methods for the verdicts; exact for small samples.

No function assumes normally distributed or independent iterations: one process (or one pair of processes)
yields one score, and scores are compared by ranks. Timings of consecutive iterations share caches, clock
frequency and other load on the host. Treated as independent, they "prove" differences between identical
files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from bench.core.arrays import Array


@dataclass(frozen=True)
class Interval:
    """A point estimate with two one-sided bounds; a bound is infinite if the samples are too few for it."""

    estimate: float
    lower: float
    upper: float


def signed_rank_interval(scores: Sequence[float], alpha: float) -> Interval:
    """Hodges-Lehmann estimate of the centre of symmetry, with one-sided (1 - alpha) bounds.

    The estimate is the median of the n(n+1)/2 Walsh averages (x_i + x_j) / 2. The bounds are order
    statistics of the same averages, selected by the exact null distribution of Wilcoxon's signed-rank
    statistic (Hollander, Wolfe & Chicken, "Nonparametric Statistical Methods", 3rd ed., section 3.2-3.3).

    Args:
        scores: one score per pair of processes, [n].
        alpha: allowed error on each side.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("no scores")
    rows, columns = np.triu_indices(len(values))
    averages = np.sort((values[rows] + values[columns]) / 2)
    skipped = _largest_tail(_signed_rank_null(len(values)), alpha)
    return _interval_from_ordered(averages, skipped)


def rank_sum_interval(candidate: Sequence[float], baseline: Sequence[float], alpha: float) -> Interval:
    """Hodges-Lehmann estimate of the shift candidate - baseline, with one-sided (1 - alpha) bounds.

    The bounds are order statistics of all pairwise differences, selected by the exact null distribution of
    the Mann-Whitney statistic (Hollander, Wolfe & Chicken, section 4.2-4.3).

    Args:
        candidate: one score per process of the candidate, [m].
        baseline: one score per process of the baseline, [n].
        alpha: allowed error on each side.
    """
    first = np.asarray(candidate, dtype=np.float64)
    second = np.asarray(baseline, dtype=np.float64)
    if not len(first) or not len(second):
        raise ValueError("no samples")
    differences = np.sort((first[:, None] - second[None, :]).ravel())
    skipped = _largest_tail(_rank_sum_null(len(first), len(second)), alpha)
    return _interval_from_ordered(differences, skipped)


def tango_interval(only_baseline: int, only_candidate: int, count: int, alpha: float) -> Interval:
    """Score interval for the difference of two paired proportions, candidate minus baseline.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired
    sample design", Statistics in Medicine 17 (1998). It keeps its confidence level with few or no
    discordant samples; the Wald interval does not.

    Args:
        only_baseline: number of samples that only the baseline predicts correctly.
        only_candidate: number of samples that only the candidate predicts correctly.
        count: number of all samples.
        alpha: allowed error on each side.
    """
    if count <= 0 or min(only_baseline, only_candidate) < 0:
        raise ValueError("counts must be positive")
    if only_baseline + only_candidate > count:
        raise ValueError("more discordant samples than samples")
    estimate = (only_candidate - only_baseline) / count
    critical = NormalDist().inv_cdf(1 - alpha)

    def score(difference: float) -> float:
        return _tango_score(only_candidate, only_baseline, count, difference)

    # The score decreases as the hypothesised difference increases; it is zero at the estimate.
    lower = _bisect(lambda d: score(d) - critical, -1.0, estimate)
    upper = _bisect(lambda d: score(d) + critical, estimate, 1.0)
    return Interval(estimate, lower, upper)


def mcnemar_p(only_baseline: int, only_candidate: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    It is a binomial test for an even split of the discordant samples.

    Args:
        only_baseline: number of samples that only the baseline predicts correctly.
        only_candidate: number of samples that only the candidate predicts correctly.
    """
    discordant = only_baseline + only_candidate
    tail = sum(math.comb(discordant, k) for k in range(min(only_baseline, only_candidate) + 1))
    return min(1.0, float(2 * tail / 2**discordant))


def proportion_interval(successes: int, count: int, alpha: float) -> Interval:
    """Clopper-Pearson interval of a proportion, with an error of at most alpha on each side."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError("successes must be between 0 and the count, and the count positive")
    lower = (
        0.0
        if successes == 0
        else _bisect(lambda p: alpha - (1 - _binomial_cdf(successes - 1, count, p)), 0.0, 1.0)
    )
    upper = (
        1.0
        if successes == count
        else _bisect(lambda p: _binomial_cdf(successes, count, p) - alpha, 0.0, 1.0)
    )
    return Interval(successes / count, lower, upper)


def quantile_interval(groups: Sequence[Array], quantile: float, alpha: float) -> Interval:
    """One-sided (1 - alpha) bounds of a percentile, from samples in one group per process.

    For independent samples, order statistics of all samples bound the percentile (David & Nagaraja, "Order
    Statistics", 3rd ed., section 7.1). The samples of one process are not independent. The bounds are
    therefore widened to include the sign-test bounds of the groups' own percentiles (one value per
    process). A bound is infinite if samples or processes are too few. A bound needs 44 samples for p90 at
    1 % and 459 for p99; it needs 7 processes at 1 % and 5 at 5 %.

    Args:
        groups: samples of each process, [processes][any].
        quantile: the percentile as a fraction between 0 and 1.
        alpha: allowed error on each side.
    """
    samples = np.sort(np.concatenate([np.asarray(group, dtype=np.float64) for group in groups]))
    own = np.sort([float(np.quantile(group, quantile)) for group in groups])
    pooled, processes = _order_bounds(samples, quantile, alpha), _order_bounds(own, 0.5, alpha)
    return Interval(
        float(np.quantile(samples, quantile)),
        min(pooled[0], processes[0]),
        max(pooled[1], processes[1]),
    )


def sample_size_share(floor: float, alpha: float) -> int:
    """Smallest number of samples that can prove a proportion of at least `floor`, if all samples are hits.

    With n hits of n samples, the lower Clopper-Pearson bound is alpha**(1/n).
    """
    if floor >= 1.0:
        raise ValueError("no number of samples proves a proportion of one")
    return 1 if floor <= 0.0 else math.ceil(math.log(alpha) / math.log(floor))


def sample_size_difference(budget: float, alpha: float) -> int:
    """Smallest number of samples that can exclude a loss of `budget`, if no sample is discordant.

    Without discordant samples, Tango's bound is -z**2 / (n + z**2) for any accuracy of the models.
    """
    if budget <= 0.0:
        raise ValueError("no number of samples excludes every loss")
    squared = NormalDist().inv_cdf(1 - alpha) ** 2
    return math.floor(squared * (1 / budget - 1)) + 1


def planned_count(spread: float, margin: float, alpha: float, power: float = 0.8) -> int:
    """Number of scores needed to place a bound at `margin` from the centre.

    The scores have the standard deviation `spread`.

    n = ((z_(1-alpha) + z_power) * spread / margin)**2, the normal approximation. It serves only to plan the
    number of pairs, not to judge.
    """
    normal = NormalDist()
    return math.ceil(((normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) * spread / margin) ** 2)


def robust_spread(scores: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation, which is robust against a few outliers."""
    values = np.asarray(scores, dtype=np.float64)
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def minimum_count(quantile: float, confidence: float = 0.99) -> int:
    """Smallest number of samples whose maximum is an upper bound of a percentile.

    The largest of n samples is above the quantile with probability 1 - quantile**n: at 99 % confidence,
    p90 needs 44 samples and p99 needs 459.
    """
    return math.ceil(math.log(1 - confidence) / math.log(quantile))


def _order_bounds(ordered: Array, quantile: float, alpha: float) -> tuple[float, float]:
    """Order statistics that bound a quantile from below and above, each with an error of at most alpha."""
    n = len(ordered)
    upper = _smallest_above(n, quantile, alpha)
    lower = _smallest_above(n, 1 - quantile, alpha)
    return (
        -math.inf if lower is None else float(ordered[n - lower]),
        math.inf if upper is None else float(ordered[upper - 1]),
    )


@lru_cache(maxsize=1024)
def _smallest_above(n: int, quantile: float, alpha: float) -> int | None:
    """Smallest r with P(Bin(n, quantile) <= r - 1) >= 1 - alpha, or None if there is none.

    The r-th smallest of n samples is then an upper bound of the quantile.
    """
    k = np.arange(n)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_ways = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    below = np.cumsum(np.exp(log_ways + k * math.log(quantile) + (n - k) * math.log1p(-quantile)))
    rank = int(np.searchsorted(below, 1 - alpha * (1 + 1e-12))) + 1
    return rank if rank <= n else None


def _interval_from_ordered(ordered: Array, skipped: int | None) -> Interval:
    estimate = float(np.median(ordered))
    if skipped is None:
        return Interval(estimate, -math.inf, math.inf)
    return Interval(estimate, float(ordered[skipped]), float(ordered[-1 - skipped]))


def _largest_tail(null: Array, alpha: float) -> int | None:
    """Largest k with P(statistic <= k) <= alpha under the null hypothesis, or None if there is none.

    Let D_(1) <= D_(2) <= ... be the sorted averages or differences. The centre is below D_(k+1) exactly
    if the statistic, counted from below, is at most k.
    """
    below = int(np.searchsorted(np.cumsum(null), alpha * (1 + 1e-12), side="right"))
    return below - 1 if below else None


@lru_cache(maxsize=256)
def _signed_rank_null(n: int) -> Array:
    """Probability of each value of the signed-rank statistic, 0 to n(n+1)/2.

    Under the null hypothesis, each rank is part of the sum with probability 1/2.
    """
    null = np.zeros(n * (n + 1) // 2 + 1)
    null[0] = 1.0
    for rank in range(1, n + 1):
        null[rank:] = null[rank:] + null[:-rank]
        null /= 2
    return null


@lru_cache(maxsize=256)
def _rank_sum_null(m: int, n: int) -> Array:
    """Probability of each value of the Mann-Whitney statistic, 0 to m * n.

    The counts are the coefficients of the Gaussian binomial, which is multiplied factor by factor.
    """
    size = m * n + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, m + 1):
        for value in range(size - 1, n + i - 1, -1):  # times (1 - q**(n + i))
            counts[value] -= counts[value - n - i]
        for value in range(i, size):  # divided by (1 - q**i)
            counts[value] += counts[value - i]
    return np.array([count / math.comb(m + n, m) for count in counts])


def _tango_score(gained: int, lost: int, count: int, difference: float) -> float:
    """Tango's score statistic of `(gained - lost) / count` against a hypothesised `difference`."""
    # The restricted maximum-likelihood estimate of the smaller discordant probability is the larger
    # root of a quadratic: Tango (1998), equation (5).
    a = 2.0 * count
    b = -gained - lost + (2 * count - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * q + difference * (1 - difference))
    numerator = gained - lost - count * difference
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def _bisect(monotone: Callable[[float], float], low: float, high: float) -> float:
    """Root of a monotone function on [low, high]; without a change of sign, the end nearer to zero."""
    at_low, at_high = monotone(low), monotone(high)
    if (at_low > 0) == (at_high > 0):
        return low if abs(at_low) < abs(at_high) else high
    for _ in range(100):
        middle = (low + high) / 2
        if (monotone(middle) > 0) == (at_low > 0):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _binomial_cdf(k: int, n: int, p: float) -> float:
    if p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 1.0 if k >= n else 0.0
    log_p, log_q = math.log(p), math.log1p(-p)
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q
        for i in range(k + 1)
    )
    return min(1.0, math.fsum(math.exp(value) for value in logs))
