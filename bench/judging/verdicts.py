"""Verdicts. Only this module decides them; all other code measures or displays.

The same rule holds for every metric: PASS if the confidence bound is within the budget, FAIL if the
opposite bound is outside, INCONCLUSIVE if the data allow neither. This bounds the probability of both
errors: passing a candidate that exceeds the budget, and failing a candidate that is within it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import Field

from bench.core.policy import Budgets, log_budget
from bench.core.schema import FrozenModel
from bench.core.statistics import (
    Interval,
    mcnemar_p,
    minimum_count,
    planned_count,
    proportion_interval,
    quantile_interval,
    rank_sum_interval,
    robust_spread,
    sample_size_difference,
    signed_rank_interval,
    tango_interval,
)
from bench.inputs.host import host_target
from bench.measuring.host_state import throttled
from bench.measuring.result import ModelResult, Result, Run

LATENCY_ALPHA = 0.01
MEMORY_ALPHA = 0.01
ACCURACY_ALPHA = 0.05
# Peak memory changes in steps of whole pages and allocator arenas. A mebibyte should not decide about a
# release, so no memory budget is tighter than this.
MEMORY_SLACK_BYTES = 1 << 20
# The exact rank sum test of m and n processes takes m * n * (m + n) operations, and peaks hardly differ
# between processes. So at most this number of processes is compared.
MEMORY_PROCESSES = 60
# If a ratio is exactly equal to its budget, their computed logarithms may still differ in the last digits.
# 1020 bytes must not exceed "2 % more than 1000 bytes".
ROUNDING = 1e-12
# Timed outputs are computed sample by sample, outputs for accuracy in batches. Sums are rounded
# differently, which changes some values by one 8-bit level. A different model, or a kernel with a race
# condition, has an SQNR far below this.
OUTPUTS_MIN_SQNR_DB = 25.0
# Key in `Metric.details`: the number of pairs expected to decide an inconclusive metric.
PAIRS_WANTED = "pairs_wanted"
# Metrics that vary between measurements. The others are exact, so a repeat cannot change them.
TIMED = ("latency_p50", "latency_p90", "latency_p99", "peak_rss")


class Verdict(enum.StrEnum):
    """The outcome of a gate, from best to worst."""

    PASS = "PASS"  # noqa: S105
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
    INVALID = "INVALID"

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this verdict."""
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}[self.value]


class Metric(FrozenModel):
    """One judged comparison: `ratio` (candidate / baseline), `difference`, or an absolute `value`.

    Attributes:
        ratio, difference, value: the estimate. Exactly one is set, unless the metric could not be measured.
        unit: unit of `value`: "ms", or "share" of the samples.
        lower, upper: one-sided bounds on the same scale as the estimate; None if there is no bound.
        budget: the budget that the estimate is judged by.
        verdict: None if the policy sets no budget.
        reason: the figures that led to the verdict, in words.
        details: the counts that the metric is computed from, by name.
        not_measured_on: the kind of CPU that the model was made for, if the host has another kind. The
            metric then has no estimate.
    """

    ratio: float | None = None
    difference: float | None = None
    value: float | None = None
    unit: str | None = None
    lower: float | None = None
    upper: float | None = None
    budget: float | None = None
    verdict: Verdict | None = None
    reason: str = ""
    details: dict[str, float] = Field(default_factory=dict)
    not_measured_on: str | None = None


class Flip(FrozenModel):
    """A prediction that changed.

    Attributes:
        sample: name of the sample.
        label: true class of the sample; None without labels.
        baseline, candidate: the classes that the two models predict.
    """

    sample: str
    label: int | None
    baseline: int
    candidate: int


def joint_verdict(verdicts: Iterable[Verdict | None]) -> Verdict:
    """The worst of the verdicts; INVALID if nothing was judged, so the release does not pass."""
    order = list(Verdict)
    given = [verdict for verdict in verdicts if verdict is not None]
    return max(given, key=order.index) if given else Verdict.INVALID


def judge_pair(
    baseline: ModelResult, candidate: ModelResult, budgets: Budgets, *, looks: int = 1
) -> dict[str, Metric]:
    """Judge a candidate against a baseline that was measured in the same blocks.

    Args:
        baseline, candidate: results of both models. Runs with the same index are a pair: they were measured
            in the same block and the same rounds.
        budgets: how much worse the candidate may be.
        looks: the maximum number of looks at the data; the error probability is shared among them.
    """
    alpha = LATENCY_ALPHA / looks
    metrics = {}
    for name, quantile, budget in (
        ("latency_p50", 0.5, budgets.latency_p50),
        ("latency_p90", 0.9, budgets.latency_p90),
    ):
        scores = pair_scores(baseline.runs, candidate.runs, quantile)
        metric = _ratio_metric(signed_rank_interval(scores, alpha), budget)
        metrics[name] = _with_plan(metric, scores, alpha)
    memory = judge_memory(baseline.runs, candidate.runs, budgets.peak_rss, looks=looks)
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
            reason="accuracy was not measured, because there are no labelled evaluation samples",
        )
    agreement = judge_agreement(baseline, candidate, budgets.agreement)
    if agreement is not None:
        metrics["agreement"] = agreement
    return metrics


def pair_scores(baseline: Sequence[Run], candidate: Sequence[Run], quantile: float) -> list[float]:
    """One score per pair of processes: the median over rounds of log(candidate / baseline).

    Within a round, both models run within milliseconds of each other, so drift of the machine cancels in
    the ratio. The median over rounds ignores the few rounds that other processes disturb.
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


def judge_memory(
    baseline: Sequence[Run], candidate: Sequence[Run], budget: float | None, *, looks: int = 1
) -> Metric | None:
    """Judge peak memory with a rank sum test over processes.

    Returns None if the host does not report peak memory and there is no budget for it.
    """
    before, after = (
        [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None][:MEMORY_PROCESSES]
        for runs in (baseline, candidate)
    )
    if not before or not after:
        if budget is None:
            return None
        return Metric(
            budget=budget, verdict=Verdict.INVALID, reason="this host does not report peak memory"
        )
    interval = rank_sum_interval(
        [math.log(value) for value in after], [math.log(value) for value in before], MEMORY_ALPHA / looks
    )
    if budget is not None:
        budget = memory_budget(budget, float(np.median(before)))
    return _ratio_metric(interval, budget)


def memory_budget(budget: float, baseline_bytes: float) -> float:
    """A relative memory budget, widened to at least `MEMORY_SLACK_BYTES`.

    Negative budgets, which require the candidate to use less memory, stay unchanged.
    """
    return max(budget, MEMORY_SLACK_BYTES / baseline_bytes) if budget >= 0 else budget


def judge_ratio(interval: Interval, budget: float) -> Verdict:
    """Apply the rule that all relative metrics share, on the scale of log ratios."""
    margin = log_budget(budget) + ROUNDING
    if interval.upper <= margin:
        return Verdict.PASS
    return Verdict.FAIL if interval.lower > margin else Verdict.INCONCLUSIVE


def judge_accuracy(baseline: ModelResult, candidate: ModelResult, budget: float | None) -> Metric | None:
    """Judge whether accuracy is non-inferior on the same samples; None without predictions or labels."""
    if baseline.predictions is None or candidate.predictions is None:
        return None
    before, after = baseline.correct(), candidate.correct()
    if before is None or after is None:
        return None
    only_baseline = int(np.sum(before & ~after))
    only_candidate = int(np.sum(after & ~before))
    interval = tango_interval(only_baseline, only_candidate, len(before), ACCURACY_ALPHA)
    flips = int(np.sum(np.asarray(baseline.predictions) != np.asarray(candidate.predictions)))
    p = mcnemar_p(only_baseline, only_candidate)
    counts = f"lost {only_baseline}, gained {only_candidate}, {flips} flips of {len(before)}"
    counts += f", McNemar p {p:.2g}"
    verdict = None
    if budget is not None:
        if interval.lower > -budget:
            verdict = Verdict.PASS
        elif interval.upper < -budget:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.INCONCLUSIVE
            counts += f"; {_samples_wanted(only_baseline + only_candidate, len(before), budget)}"
    return Metric(
        difference=interval.estimate,
        lower=interval.lower,
        upper=interval.upper,
        budget=budget,
        verdict=verdict,
        reason=counts,
        details={
            "lost": only_baseline,
            "gained": only_candidate,
            "flips": flips,
            "samples": len(before),
            "mcnemar_p": p,
        },
    )


def judge_agreement(baseline: ModelResult, candidate: ModelResult, floor: float | None) -> Metric | None:
    """Judge the fraction of samples for which both models predict the same class.

    Returns None if there are no predictions and no budget for agreement.
    """
    if baseline.predictions is None or candidate.predictions is None:
        if floor is None:
            return None
        return Metric(
            budget=floor,
            verdict=Verdict.INVALID,
            reason="agreement was not measured, because there are no evaluation samples",
        )
    same = np.equal(baseline.predictions, candidate.predictions)
    interval = proportion_interval(int(same.sum()), len(same), ACCURACY_ALPHA)
    return Metric(
        value=interval.estimate,
        unit="share",
        lower=interval.lower,
        upper=interval.upper,
        budget=floor,
        verdict=None if floor is None else _floor_verdict(interval, floor),
        reason=f"{int(same.sum())} of {len(same)} predictions are the same",
    )


def judge_max_p99(candidate: ModelResult, max_p99_ms: float, *, looks: int = 1) -> Metric:
    """Judge the 99th percentile of latency by its bound, against an absolute limit.

    There is no relative budget for it: the ratio of two tail percentiles varies too much.
    """
    groups = [run.samples_ns() / 1e6 for run in candidate.runs]
    count = sum(len(group) for group in groups)
    interval = quantile_interval(groups, 0.99, LATENCY_ALPHA / looks)
    if interval.upper <= max_p99_ms:
        verdict = Verdict.PASS
    elif interval.lower > max_p99_ms:
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.INCONCLUSIVE
    reason = f"{interval.estimate:.3g} ms, {max_p99_ms:.3g} ms allowed, {count} samples"
    if count < (needed := minimum_count(0.99, 1 - LATENCY_ALPHA / looks)):
        reason += f", but at least {needed} are needed"
    return Metric(
        value=interval.estimate,
        unit="ms",
        lower=interval.lower if math.isfinite(interval.lower) else None,
        upper=interval.upper if math.isfinite(interval.upper) else None,
        budget=max_p99_ms,
        verdict=verdict,
        reason=reason,
    )


def flips_of(baseline: ModelResult, candidate: ModelResult, ids: Sequence[str] | None) -> tuple[Flip, ...]:
    """Every sample whose prediction changed, with its name or, without names, its index."""
    if baseline.predictions is None or candidate.predictions is None:
        return ()
    labels = candidate.labels
    return tuple(
        Flip(
            sample=str(index) if ids is None else ids[index],
            label=None if labels is None else labels[index],
            baseline=before,
            candidate=after,
        )
        for index, (before, after) in enumerate(
            zip(baseline.predictions, candidate.predictions, strict=True)
        )
        if before != after
    )


def same_files(result: Result) -> list[str]:
    """A reason for INVALID if the candidate is compared with itself; not called with `--same`."""
    *others, candidate = result.models
    if any(other.sha256 == candidate.sha256 for other in others):
        return ["baseline and candidate are the same file: add --same if this is intended"]
    return []


def doubts(result: Result) -> list[str]:
    """Reasons why a measurement must not be judged, whatever its figures are; empty if it can be judged."""
    found = [f"{model.path} changed while it was measured" for model in result.models if model.changed]
    if not all(
        model.runs and all(len(run.samples_ns()) and run.samples_ns().min() > 0 for run in model.runs)
        for model in result.models
    ):
        found.append("nothing was measured")
    for model in result.models:
        near = [run.outputs_sqnr_db for run in model.runs if run.outputs_sqnr_db is not None]
        if near and min(near) < OUTPUTS_MIN_SQNR_DB:
            found.append(
                f"{model.path}: its outputs while timed differ from the outputs for accuracy "
                f"(SQNR {min(near):.1f} dB, at least {OUTPUTS_MIN_SQNR_DB:.0f} dB expected)"
            )
    if throttled(result.states()):
        found.append(
            "the host reduced its clock because of heat or power: cool it, or set a lower fixed clock"
        )
    return found


def confirmed(first: Mapping[str, Metric], second: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics of a measurement, after every FAIL of a timed metric is checked by an independent repeat.

    A FAIL that the repeat does not confirm becomes INCONCLUSIVE. Memory layout and other processes cause
    false alarms that do not recur in the next run. The repeat can withdraw a FAIL, but never adds one.

    Size and predictions are exact: their FAIL needs no repeat.

    Args:
        first: metrics of the first measurement.
        second: metrics of the repeat.
    """
    return {
        name: _confirmed(metric, second.get(name)) if name in TIMED else metric
        for name, metric in first.items()
    }


def _confirmed(first: Metric, second: Metric | None) -> Metric:
    if first.verdict is not Verdict.FAIL:
        return first
    if second is None:
        reason = f"{first.reason}; it failed, but there was no time for a repeat to confirm it"
        return first.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": reason})
    seen = change(second)
    if second.verdict is Verdict.FAIL:
        return first.model_copy(
            update={"reason": f"{first.reason}; an independent repeat confirms it ({seen})"}
        )
    return first.model_copy(
        update={
            "verdict": Verdict.INCONCLUSIVE,
            "reason": f"{first.reason}; it failed, but an independent repeat ({seen}) does not confirm it",
        }
    )


def change(metric: Metric) -> str:
    """A metric's estimate, in words."""
    if metric.ratio is not None:
        return f"{metric.ratio:.3f} x"
    if metric.difference is not None:
        return f"{metric.difference * 100:+.2f} points"
    return "nothing" if metric.value is None else f"{metric.value:.4g} {metric.unit}"


def judge_min_accuracy(candidate: ModelResult, floor: float) -> Metric:
    """Judge accuracy against an absolute floor, which the lower confidence bound must reach to PASS."""
    correct = candidate.correct()
    if correct is None:
        return Metric(
            budget=floor,
            verdict=Verdict.INVALID,
            reason="accuracy was not measured, because there are no labelled evaluation samples",
        )
    interval = proportion_interval(int(correct.sum()), len(correct), ACCURACY_ALPHA)
    return Metric(
        difference=interval.estimate - floor,
        lower=interval.lower - floor,
        upper=interval.upper - floor,
        budget=0.0,
        verdict=_floor_verdict(interval, floor),
        reason=f"{interval.estimate:.2%} of {len(correct)} samples correct, {floor:.2%} required",
    )


def not_measured(metrics: Mapping[str, Metric], models: Sequence[ModelResult]) -> dict[str, Metric]:
    """Remove times and memory if one of `models` was made for another kind of CPU.

    Such a metric is INCONCLUSIVE if it has a budget: times on this CPU can neither meet nor exceed it.
    """
    made_for = next((model.made_for for model in reversed(models) if model.made_for is not None), None)
    if made_for is None:
        return dict(metrics)
    return {
        name: Metric(
            unit=metric.unit,
            budget=metric.budget,
            verdict=None if metric.budget is None else Verdict.INCONCLUSIVE,
            reason=f"not measured on {made_for}",
            not_measured_on=made_for,
        )
        if name in TIMED
        else metric
        for name, metric in metrics.items()
    }


def made_for_others(result: Result) -> list[str]:
    """Reasons why no release can pass on this host: models made for another kind of CPU."""
    here = host_target(result.host)
    return [
        f"{model.path} was made for {model.made_for}, this CPU is {here}: its latency and memory are not "
        f"measured on {model.made_for}"
        for model in result.models
        if model.made_for is not None
    ]


def reasons(metrics: Mapping[str, Metric]) -> list[str]:
    """One sentence for each metric that did not pass.

    Metrics that were not measured are left out: `made_for_others` reports them once for each model.
    """
    return [
        f"{name} {metric.verdict}: {metric.reason}"
        for name, metric in metrics.items()
        if metric.verdict not in (None, Verdict.PASS) and metric.not_measured_on is None
    ]


def _ratio_metric(interval: Interval, budget: float | None) -> Metric:
    """Judge an interval of log ratios and convert it to ratios."""
    verdict, reason = None, ""
    ratio = math.exp(interval.estimate)
    if budget is not None:
        verdict = judge_ratio(interval, budget)
        allowed = 1 + budget
        reason = f"{ratio:.3f} x the baseline, at most {allowed:.3f} x allowed"
    return Metric(
        ratio=ratio,
        lower=_finite(interval.lower),
        upper=_finite(interval.upper),
        budget=budget,
        verdict=verdict,
        reason=reason,
    )


def _floor_verdict(interval: Interval, floor: float) -> Verdict:
    if interval.lower >= floor:
        return Verdict.PASS
    return Verdict.FAIL if interval.upper < floor else Verdict.INCONCLUSIVE


def _with_plan(metric: Metric, scores: Sequence[float], alpha: float) -> Metric:
    """Add to an inconclusive metric how many pairs are expected to decide it."""
    if metric.verdict is not Verdict.INCONCLUSIVE or metric.ratio is None or metric.budget is None:
        return metric
    margin = abs(math.log(metric.ratio) - log_budget(metric.budget))
    if len(scores) < 2:  # one score has no spread
        return metric
    spread = robust_spread(scores)
    if spread == 0.0 or margin < spread / 30:  # the plan would need more than 9000 pairs
        advice = "the change is too close to the budget: no feasible number of pairs would give a verdict"
        return metric.model_copy(update={"reason": f"{metric.reason}; {advice}"})
    wanted = max(planned_count(spread, margin, alpha), len(scores) + 1)
    return metric.model_copy(
        update={
            "reason": f"{metric.reason}; about {wanted} pairs would give a verdict",
            "details": {**metric.details, PAIRS_WANTED: wanted},
        }
    )


def _samples_wanted(discordant: int, count: int, budget: float) -> str:
    """A hint on how many evaluation samples would give a verdict.

    The number is planned from the observed fraction of discordant samples, assuming at least one discordant
    sample.
    """
    if budget <= 0.0:
        return "no number of samples can exclude every loss"
    spread = math.sqrt(max(discordant, 1) / count)
    wanted = max(
        planned_count(spread, budget, ACCURACY_ALPHA), sample_size_difference(budget, ACCURACY_ALPHA)
    )
    return (
        f"about {wanted} evaluation samples would give a verdict"
        if wanted > count
        else "more evaluation samples would give a verdict"
    )


def _finite(log_ratio: float) -> float | None:
    return math.exp(log_ratio) if math.isfinite(log_ratio) else None
