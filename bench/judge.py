"""Verdicts. The only place that decides; everything else measures or shows.

One rule for every metric: PASS when the confidence bound lies inside the budget, FAIL when the opposite
bound lies outside, INCONCLUSIVE when the data allow neither. Both errors are bounded so: letting a
breach through, and blocking an innocent release.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bench.policy import Budgets, log_budget
from bench.result import ModelResult, Run
from bench.schema import FrozenModel
from bench.stats import (
    Interval,
    mcnemar_p,
    proportion_interval,
    rank_sum_interval,
    signed_rank_interval,
    tango_interval,
)

LATENCY_ALPHA = 0.01
MEMORY_ALPHA = 0.01
ACCURACY_ALPHA = 0.05
# Peak memory moves by whole pages and by the allocator's arenas: nobody ships or holds back a model for
# a mebibyte, so no memory budget is tighter than this.
MEMORY_SLACK_BYTES = 1 << 20
# The logarithm of a ratio and that of its budget differ in the last digits where both are equal: 1020
# bytes must not breach "2 % more than 1000 bytes".
ROUNDING = 1e-12


class Verdict(enum.StrEnum):
    """The outcome of a gate, from best to worst."""

    PASS = "PASS"  # noqa: S105
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
    INVALID = "INVALID"

    @property
    def exit_code(self) -> int:
        """What the process answers to the shell."""
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}[self.value]


class Metric(FrozenModel):
    """One judged comparison. Either `ratio` (candidate / baseline) or `difference` is given.

    `lower` and `upper` are one-sided bounds on the same scale; None stands for "no bound". `verdict` is
    None where the policy sets no budget.
    """

    ratio: float | None = None
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    budget: float | None = None
    verdict: Verdict | None = None
    reason: str = ""


def joint_verdict(verdicts: Iterable[Verdict | None]) -> Verdict:
    """The worst of the verdicts. A gate that judged nothing is INVALID: it must not let anything by."""
    order = list(Verdict)
    given = [verdict for verdict in verdicts if verdict is not None]
    return max(given, key=order.index) if given else Verdict.INVALID


def judge_pair(
    baseline: ModelResult, candidate: ModelResult, budgets: Budgets, *, looks: int = 1
) -> dict[str, Metric]:
    """Judge a candidate against a baseline that was measured beside it.

    Args:
        baseline, candidate: their runs are paired by index: same block, same rounds.
        budgets: how much worse the candidate may be.
        looks: how many times the data are looked at at most; the error is shared among them.
    """
    alpha = LATENCY_ALPHA / looks
    metrics = {}
    for name, quantile, budget in (
        ("latency_p50", 0.5, budgets.latency_p50),
        ("latency_p90", 0.9, budgets.latency_p90),
    ):
        scores = pair_scores(baseline.runs, candidate.runs, quantile)
        metrics[name] = _ratio_metric(signed_rank_interval(scores, alpha), budget)
    memory = judge_memory(baseline.runs, candidate.runs, budgets.peak_rss)
    if memory is not None:
        metrics["peak_rss"] = memory
    exact = math.log(candidate.size_bytes / baseline.size_bytes)
    metrics["size"] = _ratio_metric(Interval(exact, exact, exact), budgets.size)
    accuracy = judge_accuracy(baseline, candidate, budgets.accuracy)
    if accuracy is not None:
        metrics["accuracy"] = accuracy
    elif budgets.accuracy is not None:
        metrics["accuracy"] = Metric(
            budget=budgets.accuracy,
            verdict=Verdict.INVALID,
            reason="no labelled evaluation data, nothing was measured",
        )
    return metrics


def pair_scores(baseline: Sequence[Run], candidate: Sequence[Run], quantile: float) -> list[float]:
    """One score per pair of processes: the median over rounds of log(candidate / baseline).

    Within a round both models ran within milliseconds of each other, so that drift of the machine falls
    out of the ratio; the median over rounds ignores the rounds that a neighbour disturbed.
    """
    return [
        float(
            np.median(
                [
                    math.log(np.quantile(after, quantile) / np.quantile(before, quantile))
                    for before, after in zip(one.rounds_ns, other.rounds_ns, strict=True)
                ]
            )
        )
        for one, other in zip(baseline, candidate, strict=True)
    ]


def judge_memory(baseline: Sequence[Run], candidate: Sequence[Run], budget: float | None) -> Metric | None:
    """Peak memory by ranks of whole processes; None where the host cannot tell it."""
    before = [run.peak_rss_bytes for run in baseline if run.peak_rss_bytes is not None]
    after = [run.peak_rss_bytes for run in candidate if run.peak_rss_bytes is not None]
    if not before or not after:
        if budget is None:
            return None
        return Metric(budget=budget, verdict=Verdict.INVALID, reason="this host does not tell peak memory")
    interval = rank_sum_interval(
        [math.log(value) for value in after], [math.log(value) for value in before], MEMORY_ALPHA
    )
    if budget is not None:
        budget = max(budget, MEMORY_SLACK_BYTES / float(np.median(before))) if budget >= 0 else budget
    return _ratio_metric(interval, budget)


def judge_accuracy(baseline: ModelResult, candidate: ModelResult, budget: float | None) -> Metric | None:
    """Non-inferiority on the same samples; None where there are no labels."""
    if baseline.predictions is None or candidate.predictions is None:
        return None
    before, after = baseline.correct(), candidate.correct()
    if before is None or after is None:
        return None
    only_baseline = int(np.sum(before & ~after))
    only_candidate = int(np.sum(after & ~before))
    interval = tango_interval(only_baseline, only_candidate, len(before), ACCURACY_ALPHA)
    flips = int(np.sum(np.asarray(baseline.predictions) != np.asarray(candidate.predictions)))
    counts = f"lost {only_baseline}, gained {only_candidate}, {flips} flips of {len(before)}"
    counts += f", McNemar p {mcnemar_p(only_baseline, only_candidate):.2g}"
    verdict = None
    if budget is not None:
        if interval.lower > -budget:
            verdict = Verdict.PASS
        elif interval.upper < -budget:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.INCONCLUSIVE
            counts += "; more evaluation samples would tell"
    return Metric(
        difference=interval.estimate,
        lower=interval.lower,
        upper=interval.upper,
        budget=budget,
        verdict=verdict,
        reason=counts,
    )


def judge_min_accuracy(candidate: ModelResult, floor: float) -> Metric:
    """An absolute accuracy: the bound of the observed share has to reach it, not just the share."""
    correct = candidate.correct()
    if correct is None:
        return Metric(budget=floor, verdict=Verdict.INVALID, reason="no labelled evaluation data")
    interval = proportion_interval(int(correct.sum()), len(correct), ACCURACY_ALPHA)
    if interval.lower >= floor:
        verdict = Verdict.PASS
    elif interval.upper < floor:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.INCONCLUSIVE
    return Metric(
        difference=interval.estimate - floor,
        lower=interval.lower - floor,
        upper=interval.upper - floor,
        budget=0.0,
        verdict=verdict,
        reason=f"{interval.estimate:.2%} of {len(correct)} samples, {floor:.2%} wanted",
    )


def reasons(metrics: Mapping[str, Metric]) -> list[str]:
    """One sentence per metric that did not pass."""
    return [
        f"{name} {metric.verdict}: {metric.reason}"
        for name, metric in metrics.items()
        if metric.verdict not in (None, Verdict.PASS)
    ]


def _ratio_metric(interval: Interval, budget: float | None) -> Metric:
    """Judge a log ratio and give it back as a ratio."""
    verdict, reason = None, ""
    ratio = math.exp(interval.estimate)
    if budget is not None:
        margin = log_budget(budget) + ROUNDING
        if interval.upper <= margin:
            verdict = Verdict.PASS
        elif interval.lower > margin:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.INCONCLUSIVE
        allowed = 1 + budget
        reason = f"{ratio:.3f} x the baseline, {allowed:.3f} x allowed"
    return Metric(
        ratio=ratio,
        lower=_finite(interval.lower),
        upper=_finite(interval.upper),
        budget=budget,
        verdict=verdict,
        reason=reason,
    )


def _finite(log_ratio: float) -> float | None:
    return math.exp(log_ratio) if math.isfinite(log_ratio) else None
