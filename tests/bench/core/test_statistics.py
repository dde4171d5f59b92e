"""Statistics compared with scipy and with full enumeration, and checked for their error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from bench.core.statistics import (
    mcnemar_p,
    minimum_count,
    proportion_interval,
    rank_sum_interval,
    signed_rank_interval,
    tango_interval,
)

# Sums of these values are exact in binary, so rounding cannot cause ties.
VALUES = st.integers(-(2**20), 2**20).map(lambda n: n / 1024 + 1 / 4096)
ALPHAS = st.sampled_from([0.0025, 0.01, 0.05, 0.1, 0.2])


@given(st.lists(VALUES, min_size=1, max_size=14, unique_by=abs), ALPHAS)
def test_signed_rank_bound_excludes_zero_exactly_when_wilcoxon_rejects(scores, alpha):
    interval = signed_rank_interval(scores, alpha)
    greater = stats.wilcoxon(scores, alternative="greater", method="exact").pvalue
    less = stats.wilcoxon(scores, alternative="less", method="exact").pvalue
    assert (interval.lower > 0) == (greater <= alpha * (1 + 1e-9))
    assert (interval.upper < 0) == (less <= alpha * (1 + 1e-9))


@pytest.mark.parametrize("alpha", [0.0025, 0.01, 0.05, 0.25])
@pytest.mark.parametrize("n", [4, 9, 11])
def test_signed_rank_error_stays_below_alpha_over_all_sign_patterns(n, alpha):
    magnitudes = 1.7 ** np.arange(n)
    wrong = sum(
        signed_rank_interval(magnitudes * signs, alpha).lower > 0
        for signs in itertools.product((-1, 1), repeat=n)
    )
    assert wrong / 2**n <= alpha
    # The bound also rejects as soon as the number of samples allows it.
    exact = stats.wilcoxon(magnitudes, alternative="greater", method="exact").pvalue
    assert (wrong > 0) == (exact <= alpha)


def test_signed_rank_estimate_is_the_median_of_walsh_averages():
    scores = [0.3, -0.1, 0.7, 0.2]
    walsh = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(scores, 2)]
    assert signed_rank_interval(scores, 0.1).estimate == pytest.approx(np.median(walsh))


@pytest.mark.parametrize(("n", "bounded"), [(8, False), (9, True)])
def test_a_quarter_of_a_percent_needs_nine_pairs(n, bounded):
    interval = signed_rank_interval(list(range(1, n + 1)), 0.01 / 4)
    assert math.isfinite(interval.lower) is bounded
    assert math.isfinite(interval.upper) is bounded


def test_one_outlier_moves_a_signed_rank_interval_little():
    calm = [0.001 * k for k in range(-7, 8)]
    wild = signed_rank_interval([*calm[:-1], 0.55], 0.01)
    assert wild.upper <= max(calm)


@given(
    st.lists(VALUES, min_size=1, max_size=7, unique=True),
    st.lists(VALUES, min_size=1, max_size=7, unique=True),
    ALPHAS,
)
def test_rank_sum_bound_excludes_zero_exactly_when_mann_whitney_rejects(first, second, alpha):
    assume(not set(first) & set(second))
    interval = rank_sum_interval(first, second, alpha)
    greater = stats.mannwhitneyu(first, second, alternative="greater", method="exact").pvalue
    less = stats.mannwhitneyu(first, second, alternative="less", method="exact").pvalue
    assert (interval.lower > 0) == (greater <= alpha * (1 + 1e-9))
    assert (interval.upper < 0) == (less <= alpha * (1 + 1e-9))


@pytest.mark.parametrize(("m", "n"), [(3, 4), (5, 5), (2, 7)])
@pytest.mark.parametrize("alpha", [0.004, 0.01, 0.1])
def test_rank_sum_error_stays_below_alpha_over_all_orders(m, n, alpha):
    values = 1.7 ** np.arange(m + n)
    orders = list(itertools.combinations(range(m + n), m))
    wrong = sum(
        rank_sum_interval(values[list(chosen)], np.delete(values, chosen), alpha).lower > 0
        for chosen in orders
    )
    assert wrong / len(orders) <= alpha
    assert (wrong > 0) == (1 / len(orders) <= alpha)


@given(st.lists(VALUES, min_size=2, max_size=12), st.lists(VALUES, min_size=2, max_size=12), VALUES)
def test_rank_sum_follows_a_shift_and_changes_sign_with_a_swap(first, second, shift):
    plain = rank_sum_interval(first, second, 0.1)
    moved = rank_sum_interval([value + shift for value in first], second, 0.1)
    swapped = rank_sum_interval(second, first, 0.1)
    assert moved.estimate == pytest.approx(plain.estimate + shift, abs=1e-9)
    assert moved.lower == pytest.approx(plain.lower + shift, abs=1e-9)
    assert (swapped.estimate, swapped.lower, swapped.upper) == pytest.approx(
        (-plain.estimate, -plain.upper, -plain.lower)
    )


@pytest.mark.parametrize("interval", [rank_sum_interval, signed_rank_interval])
def test_an_interval_without_samples_is_refused(interval):
    arguments = ([], [1.0], 0.1) if interval is rank_sum_interval else ([], 0.1)
    with pytest.raises(ValueError, match="no s"):
        interval(*arguments)


def brute_tango(lost, gained, count, alpha):
    """Tango's interval by numerical likelihood and root finding, without the closed form."""

    def score(difference):
        def negative_log_likelihood(p_lost):
            p_gained = p_lost + difference
            terms = ((gained, p_gained), (lost, p_lost), (count - gained - lost, 1 - p_gained - p_lost))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

        low, high = max(0.0, -difference), (1 - difference) / 2
        p_lost = optimize.minimize_scalar(
            negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
        ).x
        variance = count * (2 * p_lost + difference - difference**2)
        return (gained - lost - count * difference) / math.sqrt(variance)

    critical = stats.norm.ppf(1 - alpha)
    estimate, edge = (gained - lost) / count, 1 - 1e-9
    lower = optimize.brentq(lambda d: score(d) - critical, -edge, estimate - 1e-9)
    upper = optimize.brentq(lambda d: score(d) + critical, estimate + 1e-9, edge)
    return lower, upper


@pytest.mark.parametrize(
    ("lost", "gained", "count"), [(5, 7, 1000), (12, 3, 100), (0, 9, 50), (1, 0, 44), (20, 20, 60)]
)
@pytest.mark.parametrize("alpha", [0.025, 0.05])
def test_tango_is_the_root_of_the_score(lost, gained, count, alpha):
    interval = tango_interval(lost, gained, count, alpha)
    assert (interval.lower, interval.upper) == pytest.approx(
        brute_tango(lost, gained, count, alpha), abs=2e-5
    )


def test_tango_without_discordant_samples_has_a_closed_form():
    # Without discordant samples the score is n d^2 = z^2 |d| (1 - |d|), whose root is z^2 / (n + z^2).
    z_squared = stats.norm.ppf(0.95) ** 2
    interval = tango_interval(0, 0, 500, 0.05)
    assert interval.upper == pytest.approx(z_squared / (500 + z_squared), rel=1e-6)
    assert interval.lower == pytest.approx(-interval.upper)


DISCORDANT = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n)).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), st.integers(0, n - pair[0]), st.just(n))
    )
)


@given(DISCORDANT)
def test_tango_contains_its_estimate_and_mirrors_under_a_swap(counts):
    lost, gained, count = counts
    interval = tango_interval(lost, gained, count, 0.05)
    mirrored = tango_interval(gained, lost, count, 0.05)
    assert -1 <= interval.lower <= interval.estimate <= interval.upper <= 1
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-interval.upper, -interval.lower), abs=1e-9)


@given(DISCORDANT)
def test_tango_is_wider_for_a_smaller_error(counts):
    loose, tight = tango_interval(*counts, 0.1), tango_interval(*counts, 0.01)
    assert tight.lower <= loose.lower
    assert tight.upper >= loose.upper


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.3)])
def test_tango_error_is_near_its_level_over_all_outcomes(p_lost, p_gained):
    count, alpha, truth = 40, 0.05, p_gained - p_lost
    wrong = 0.0
    for lost in range(count + 1):
        for gained in range(count + 1 - lost):
            probability = stats.multinomial.pmf(
                [lost, gained, count - lost - gained], count, [p_lost, p_gained, 1 - p_lost - p_gained]
            )
            if probability > 1e-7 and tango_interval(lost, gained, count, alpha).lower > truth:
                wrong += probability
    assert wrong < alpha + 0.02


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_tango_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match=r"counts must be|more discordant"):
        tango_interval(*counts, 0.05)


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_is_the_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p(lost, gained) == pytest.approx(expected)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), ALPHAS)
def test_proportion_interval_is_clopper_pearson(counts, alpha):
    successes, count = counts
    interval = proportion_interval(successes, count, alpha)
    lower = stats.beta.ppf(alpha, successes, count - successes + 1) if successes else 0.0
    upper = stats.beta.ppf(1 - alpha, successes + 1, count - successes) if successes < count else 1.0
    assert (interval.lower, interval.upper) == pytest.approx((lower, upper), abs=1e-9)
    assert interval.estimate == successes / count


@pytest.mark.parametrize(("successes", "count"), [(1, 0), (0, 0), (-1, 3), (4, 3)])
def test_proportion_interval_refuses_impossible_counts(successes, count):
    with pytest.raises(ValueError, match="between 0 and the count"):
        proportion_interval(successes, count, 0.05)


@pytest.mark.parametrize(("quantile", "count"), [(0.9, 44), (0.95, 90), (0.99, 459), (0.999, 4603)])
def test_minimum_count_of_a_percentile(quantile, count):
    assert minimum_count(quantile) == count
    # The largest of `count` samples bounds the quantile at 99 %; the largest of one sample less does not.
    assert 1 - quantile**count >= 0.99 > 1 - quantile ** (count - 1)
