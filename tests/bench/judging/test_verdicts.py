"""Verdicts of every kind of metric."""

from __future__ import annotations

import math

import pytest

from bench.core.policy import Budgets, ReleaseBudgets
from bench.judging.verdicts import (
    MEMORY_SLACK_BYTES,
    Metric,
    Verdict,
    joint_verdict,
    judge_accuracy,
    judge_memory,
    judge_min_accuracy,
    judge_pair,
    pair_scores,
    reasons,
)

PASS, FAIL = Verdict.PASS, Verdict.FAIL
INCONCLUSIVE, INVALID = Verdict.INCONCLUSIVE, Verdict.INVALID


@pytest.fixture
def pair(factory):
    """Two models measured in `len(ratios)` blocks; in each block, the second is slower by its ratio."""

    def make(ratios, **candidate):
        before = [factory.run((100_000, 100_000, 110_000)) for _ in ratios]
        after = [factory.run([int(t * r) for t in (100_000, 100_000, 110_000)]) for r in ratios]
        return factory.model(before), factory.model(after, path="b.onnx", **candidate)

    return make


def spread(centre, blocks=12):
    """Ratios around `centre`, all different."""
    return [centre * (1 + 0.0001 * (k - blocks / 2)) for k in range(blocks)]


@pytest.mark.parametrize(
    ("ratios", "budget", "verdict"),
    [
        (spread(1.0), 0.02, PASS),
        (spread(0.5), -0.4, PASS),
        (spread(1.1), 0.02, FAIL),
        (spread(0.7), -0.4, FAIL),
        (spread(1.02), 0.02, INCONCLUSIVE),
        (spread(1.1, blocks=3), 0.02, INCONCLUSIVE),  # too few blocks for any bound
        (spread(1.1), None, None),
    ],
)
def test_latency_is_judged_by_its_bounds(pair, ratios, budget, verdict):
    baseline, candidate = pair(ratios)
    metric = judge_pair(baseline, candidate, Budgets(latency_p50=budget))["latency_p50"]
    assert metric.verdict is verdict
    assert metric.ratio == pytest.approx(math.sqrt(ratios[0] * ratios[-1]), rel=0.001)
    assert metric.budget == budget


def test_too_few_blocks_have_no_bounds(pair):
    metric = judge_pair(*pair(spread(1.0, blocks=2)), Budgets(latency_p50=0.5))["latency_p50"]
    assert (metric.lower, metric.upper) == (None, None)


def test_one_block_does_not_tell_how_many_would(pair):
    metric = judge_pair(*pair([0.5]), Budgets(latency_p50=0.0))["latency_p50"]
    assert (metric.verdict, metric.reason) == (
        INCONCLUSIVE,
        "0.500 x the baseline, at most 1.000 x allowed",
    )


def test_more_looks_need_more_blocks(pair):
    baseline, candidate = pair(spread(1.0, blocks=8))
    budgets = Budgets(latency_p50=0.02)
    assert judge_pair(baseline, candidate, budgets, looks=1)["latency_p50"].verdict is PASS
    assert judge_pair(baseline, candidate, budgets, looks=4)["latency_p50"].verdict is INCONCLUSIVE


def test_every_metric_is_reported_without_budgets(pair):
    metrics = judge_pair(*pair(spread(1.0)), Budgets())
    assert set(metrics) == {"latency_p50", "latency_p90", "peak_rss", "size"}
    assert joint_verdict(metric.verdict for metric in metrics.values()) is INVALID


@pytest.mark.parametrize(
    ("size", "budget", "verdict"),
    [(1000, 0.0, PASS), (1020, 0.02, PASS), (1021, 0.02, FAIL), (600, -0.4, PASS), (5, None, None)],
)
def test_size_is_compared_exactly(pair, size, budget, verdict):
    metric = judge_pair(*pair(spread(1.0), size=size), Budgets(size=budget))["size"]
    assert metric.verdict is verdict
    assert metric.ratio == metric.lower == metric.upper == pytest.approx(size / 1000)


def test_one_disturbed_round_does_not_change_a_score(factory):
    calm = factory.run((1000, 1000, 1000), rounds=5)
    hit = calm.model_copy(update={"rounds_ns": ((9000,) * 3, *calm.rounds_ns[1:])})
    assert pair_scores([calm], [hit], 0.5) == [0.0]


def test_runs_without_a_partner_are_refused(factory):
    with pytest.raises(ValueError, match="shorter"):
        pair_scores([factory.run()] * 2, [factory.run()], 0.5)


def test_an_accuracy_budget_without_labels_is_invalid(pair):
    metric = judge_pair(*pair(spread(1.0)), ReleaseBudgets())["accuracy"]
    assert metric.verdict is INVALID
    assert "no labelled" in metric.reason


def memory_runs(factory, base, count=10):
    return [factory.run(rss=base + 4096 * k) for k in range(count)]


@pytest.mark.parametrize(
    ("base", "extra", "budget", "verdict"),
    [
        (200 << 20, 0, 0.02, PASS),
        (200 << 20, 40 << 20, 0.02, FAIL),
        (200 << 20, 4 << 20, 0.02, INCONCLUSIVE),
        (10 << 20, MEMORY_SLACK_BYTES // 2, 0.0, PASS),  # under the slack
        (10 << 20, 3 * MEMORY_SLACK_BYTES, 0.0, FAIL),
        (10 << 20, 0, -0.4, FAIL),  # the slack does not relax a negative budget
        (10 << 20, -(5 << 20), -0.4, PASS),
        (10 << 20, 5 << 20, None, None),
    ],
)
def test_memory_is_judged_by_whole_processes_with_slack(factory, base, extra, budget, verdict):
    before, after = memory_runs(factory, base), memory_runs(factory, base + extra)
    assert judge_memory(before, after, budget).verdict is verdict


@pytest.mark.parametrize("silent", ["before", "after"])
def test_unknown_memory_is_invalid_if_it_has_a_budget(factory, silent):
    known, unknown = [factory.run()], [factory.run(rss=None)]
    runs = (unknown, known) if silent == "before" else (known, unknown)
    assert judge_memory(*runs, None) is None
    assert judge_memory(*runs, 0.02).verdict is INVALID


def test_unknown_memory_without_a_budget_is_left_out(factory):
    silent = factory.model([factory.run(rss=None)])
    assert "peak_rss" not in judge_pair(silent, silent, Budgets())


def classified(factory, right, count=1000, *, wrong_first=True, labelled=True):
    """A model that predicts `right` of `count` samples correctly; all samples are of class 0."""
    wrong = [1] * (count - right)
    predictions = [*wrong, *[0] * right] if wrong_first else [*[0] * right, *wrong]
    return factory.model(
        [factory.run()],
        predictions=tuple(predictions),
        labels=(0,) * count if labelled else None,
    )


@pytest.mark.parametrize(
    ("before", "after", "budget", "verdict"),
    [
        (900, 900, 0.01, PASS),
        (900, 840, 0.01, FAIL),
        (900, 890, 0.01, INCONCLUSIVE),
        (900, 905, 0.0, PASS),
        (900, 800, None, None),
    ],
)
def test_accuracy_is_judged_on_the_same_samples(factory, before, after, budget, verdict):
    metric = judge_accuracy(classified(factory, before), classified(factory, after), budget)
    assert metric.verdict is verdict
    assert metric.difference == pytest.approx((after - before) / 1000)
    assert metric.lower < metric.difference < metric.upper
    assert ("evaluation samples would give a verdict" in metric.reason) == (verdict is INCONCLUSIVE)


def test_accuracy_counts_flips_that_cancel_out(factory):
    baseline, candidate = classified(factory, 900), classified(factory, 900, wrong_first=False)
    metric = judge_accuracy(baseline, candidate, 0.01)
    assert metric.reason.startswith("lost 100, gained 100, 200 flips of 1000")
    assert metric.verdict is INCONCLUSIVE


def test_accuracy_needs_predictions_and_labels(factory):
    known = classified(factory, 900)
    assert judge_accuracy(factory.model([factory.run()]), known, 0.01) is None
    assert judge_accuracy(known, classified(factory, 900, labelled=False), 0.01) is None


@pytest.mark.parametrize(
    ("right", "floor", "verdict"), [(950, 0.9, PASS), (850, 0.9, FAIL), (902, 0.9, INCONCLUSIVE)]
)
def test_the_bound_of_an_accuracy_has_to_reach_the_floor(factory, right, floor, verdict):
    metric = judge_min_accuracy(classified(factory, right), floor)
    assert metric.verdict is verdict
    assert metric.difference == pytest.approx(right / 1000 - floor)
    assert f"{floor:.2%} required" in metric.reason


def test_a_floor_without_labels_is_invalid(factory):
    assert judge_min_accuracy(factory.model([factory.run()]), 0.9).verdict is INVALID


@pytest.mark.parametrize(
    ("verdicts", "joint"),
    [
        ([PASS, None], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, FAIL, PASS], FAIL),
        ([FAIL, INVALID], INVALID),
        ([None, None], INVALID),
        ([], INVALID),
    ],
)
def test_the_worst_verdict_counts_and_nothing_judged_is_invalid(verdicts, joint):
    assert joint_verdict(verdicts) is joint


def test_every_verdict_has_its_exit_code():
    assert {verdict.value: verdict.exit_code for verdict in Verdict} == {
        "PASS": 0,
        "FAIL": 1,
        "INCONCLUSIVE": 3,
        "INVALID": 4,
    }


def test_reasons_name_what_did_not_pass():
    metrics = {
        "size": Metric(verdict=PASS, reason="small"),
        "latency_p50": Metric(verdict=FAIL, reason="slow"),
        "peak_rss": Metric(),
    }
    assert reasons(metrics) == ["latency_p50 FAIL: slow"]
