"""Gates over scripted workers: what is measured, when it stops, what it says."""

from __future__ import annotations

import shutil

import pytest

from bench.errors import UsageError
from bench.gate import compare, gate, judgement_from, with_plain_paths
from bench.judge import Verdict
from bench.measure import MeasureConfig
from bench.policy import LOOKS, Budgets, Policy, ReleaseBudgets, TwinBudgets

QUICK = MeasureConfig(rounds=3)
LATENCY_ONLY = Budgets(latency_p50=0.02)


@pytest.fixture
def two_files(tmp_path, models):
    """A baseline and a candidate of the same bytes."""
    baseline, candidate = tmp_path / "old.onnx", tmp_path / "new.onnx"
    for path in (baseline, candidate):
        shutil.copyfile(models.dynamic, path)
    return baseline, candidate


@pytest.mark.parametrize("seed", range(30))
def test_identical_models_never_fail(two_files, scripted, seed):
    workers = scripted(seed=seed, noise=0.02, disturbed=0.2)
    judgement = compare(*two_files, budgets=ReleaseBudgets(), config=QUICK, workers=workers)
    assert judgement.verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}
    assert "accuracy" not in judgement.metrics


@pytest.mark.parametrize("seed", range(10))
def test_a_tenth_slower_fails_two_percent(two_files, scripted, seed):
    workers = scripted(seed=seed, noise=0.02, slowdown={"new.onnx": 1.1})
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    metric = judgement.metrics["latency_p50"]
    assert judgement.verdict is Verdict.FAIL
    assert metric.lower > 1.02
    assert metric.lower < 1.1 < metric.upper
    assert judgement.reasons == (f"latency_p50 FAIL: {metric.reason}",)


@pytest.mark.parametrize(
    ("slowdown", "verdict", "blocks"),
    [(1.0, Verdict.PASS, LOOKS[0]), (1.5, Verdict.FAIL, LOOKS[0]), (1.02, Verdict.INCONCLUSIVE, LOOKS[-1])],
)
def test_looks_stop_as_soon_as_nothing_is_open(two_files, scripted, slowdown, verdict, blocks):
    workers = scripted(slowdown={"new.onnx": slowdown})
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    assert (judgement.verdict, judgement.blocks) == (verdict, blocks)
    assert workers.counts["memory"] == workers.closed == 2 * blocks


def test_more_samples_of_accuracy_are_not_sought_by_more_blocks(two_files, scripted, evaluation):
    right = [0] * 40
    workers = scripted(
        predictions={"old.onnx": right, "new.onnx": [1, *right[1:]]},
        labels=right,
    )
    judgement = compare(*two_files, evaluation=evaluation, config=QUICK, workers=workers)
    assert judgement.metrics["accuracy"].verdict is Verdict.INCONCLUSIVE
    assert judgement.blocks == LOOKS[0]


def test_compare_takes_the_data_of_an_artifact(two_files, artifact, scripted):
    right = [0] * 40
    workers = scripted(predictions={"old.onnx": right, "model.onnx": right}, labels=right)
    judgement = compare(two_files[0], artifact.folder, config=QUICK, workers=workers)
    assert judgement.result.data.path == str(artifact.folder / "evaluation.npz")
    assert judgement.metrics["accuracy"].difference == 0.0


@pytest.fixture
def scripted_artifact(scripted):
    """Workers for the artifact and a baseline, all of them right, int8 twice as fast as float."""
    right = [0] * 40

    def make(**changes):
        script = {
            "predictions": {"model.onnx": right, "model.fp32.onnx": right, "old.onnx": right},
            "labels": right,
            "slowdown": {"model.fp32.onnx": 2.0},
        }
        return scripted(**(script | changes))

    return make


LENIENT = Policy(float_twin=TwinBudgets(accuracy=0.2), baseline=ReleaseBudgets(accuracy=0.2))


def test_an_artifact_is_judged_by_its_float_twin(artifact, scripted_artifact):
    judgement = gate(artifact.folder, policy=LENIENT, config=QUICK, workers=scripted_artifact())
    assert judgement.verdict is Verdict.PASS
    assert judgement.baseline == str(artifact.folder / "model.fp32.onnx")
    assert judgement.candidate == str(artifact.folder / "model.onnx")
    assert judgement.metrics["latency_p50"].ratio == pytest.approx(0.5, rel=0.02)
    assert judgement.twin_metrics == {}


def test_a_baseline_is_judged_beside_the_twin(artifact, two_files, scripted_artifact):
    workers = scripted_artifact(slowdown={"model.fp32.onnx": 2.0, "model.onnx": 1.2})
    judgement = gate(artifact.folder, baseline=two_files[0], policy=LENIENT, config=QUICK, workers=workers)
    assert judgement.baseline == str(two_files[0])
    assert len(judgement.result.models) == 3
    assert judgement.metrics["latency_p50"].verdict is Verdict.FAIL
    assert judgement.twin_metrics["latency_p50"].verdict is Verdict.PASS
    assert judgement.verdict is Verdict.FAIL


def test_reasons_tell_the_twin_from_the_baseline(artifact, two_files, scripted_artifact):
    workers = scripted_artifact(slowdown={"model.fp32.onnx": 0.5})
    judgement = gate(artifact.folder, baseline=two_files[0], policy=LENIENT, config=QUICK, workers=workers)
    assert [reason.partition(" FAIL")[0] for reason in judgement.reasons] == ["against float: latency_p50"]


@pytest.mark.parametrize(
    ("right", "verdict"), [(40, Verdict.PASS), (36, Verdict.INCONCLUSIVE), (10, Verdict.FAIL)]
)
def test_a_floor_of_accuracy_is_one_more_metric(artifact, scripted_artifact, right, verdict):
    answers = [0] * right + [1] * (40 - right)
    workers = scripted_artifact(predictions={"model.onnx": answers, "model.fp32.onnx": answers})
    policy = LENIENT.model_copy(update={"min_accuracy": 0.9})
    judgement = gate(artifact.folder, policy=policy, config=QUICK, workers=workers)
    assert judgement.metrics["min_accuracy"].verdict is verdict
    assert judgement.verdict is verdict


def test_a_gate_without_labels_is_invalid(two_files, scripted):
    judgement = gate(two_files[1], baseline=two_files[0], config=QUICK, workers=scripted())
    assert judgement.metrics["accuracy"].verdict is Verdict.INVALID
    assert judgement.verdict is Verdict.INVALID


def test_a_gate_that_judges_nothing_is_invalid(two_files, scripted):
    judgement = compare(*two_files, budgets=Budgets(), config=QUICK, workers=scripted())
    assert judgement.verdict is Verdict.INVALID
    assert judgement.blocks == LOOKS[0]


def test_a_lone_model_has_nothing_to_be_judged_against(two_files, scripted):
    workers = scripted()
    with pytest.raises(UsageError, match="add --baseline"):
        gate(two_files[0], workers=workers)
    assert not workers.requests


def test_a_judgement_can_be_recomputed_from_its_result(two_files, scripted):
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=scripted())
    assert judgement.result.criteria.budgets == (LATENCY_ONLY,)
    assert judgement_from(judgement.result, judgement.result.criteria) == judgement


def test_plain_paths_tell_nothing_of_the_disk(artifact, scripted_artifact):
    judgement = gate(artifact.folder, policy=LENIENT, config=QUICK, workers=scripted_artifact())
    plain = with_plain_paths(judgement)
    assert (plain.candidate, plain.baseline) == ("model.onnx", "model.fp32.onnx")
    assert [model.path for model in plain.result.models] == ["model.fp32.onnx", "model.onnx"]
    assert plain.result.data.path == "evaluation.npz"
    assert str(artifact.folder) not in plain.result.model_dump_json()
    assert plain.metrics == judgement.metrics


def test_plain_paths_without_data(two_files, scripted):
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=scripted())
    assert with_plain_paths(judgement).result.data == judgement.result.data
