"""Gates with scripted workers: the measurements, when they stop, and the verdicts."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from bench.core.arrays import write_npz
from bench.core.errors import MeasurementError, PolicyError, UsageError
from bench.core.policy import LOOKS, Budgets, Policy, ReleaseBudgets, TwinBudgets, criteria
from bench.inputs.artifact import Subject
from bench.judging.gate import (
    NOT_CERTIFIED,
    GateOptions,
    compare,
    gate,
    gate_subjects,
    judgement_from,
    mismatches,
    policy_for,
    with_plain_paths,
)
from bench.judging.verdicts import Verdict
from bench.measuring.measure import (
    INTERRUPTED,
    OTHER_HOST,
    TIME_LIMIT,
    Interrupted,
    MeasureConfig,
    Measurement,
)
from tests.bench import onnx_bytes

QUICK = MeasureConfig(rounds=3)
LATENCY_ONLY = Budgets(latency_p50=0.02)


def written_by(producer, source, destination):
    """Write a copy of a model with another producer name.

    Copies have other bytes, but the same file size if the names have the same length.
    """
    destination.write_bytes(source.read_bytes() + onnx_bytes.producer(producer))


@pytest.fixture
def two_files(tmp_path, models):
    """A baseline, and the same network in a file with other bytes."""
    baseline, candidate = tmp_path / "old.onnx", tmp_path / "new.onnx"
    for path in (baseline, candidate):
        written_by(path.stem, models.dynamic, path)
    return baseline, candidate


@pytest.mark.parametrize("seed", range(30))
def test_identical_models_never_fail(two_files, scripted, seed):
    workers = scripted(seed=seed, noise=0.02, disturbed=0.2)
    judgement = compare(*two_files, budgets=ReleaseBudgets(), config=QUICK, workers=workers)
    assert judgement.verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}
    assert "accuracy" not in judgement.metrics


@pytest.mark.parametrize("seed", range(10))
def test_a_slowdown_of_10_percent_fails_a_budget_of_2_percent(two_files, scripted, seed):
    workers = scripted(seed=seed, noise=0.02, slowdown={"new.onnx": 1.1})
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    metric = judgement.metrics["latency_p50"]
    assert judgement.verdict is Verdict.FAIL
    assert metric.lower > 1.02
    assert metric.lower < 1.1 < metric.upper
    assert judgement.reasons == (f"latency_p50 FAIL: {metric.reason}",)
    assert "an independent repeat confirms it (1." in metric.reason
    assert judgement.result.repeat.settings.seed != judgement.result.settings.seed


@pytest.mark.parametrize(
    ("slowdown", "verdict", "blocks", "repeats"),
    [
        (1.0, Verdict.PASS, LOOKS[0], 0),
        (1.5, Verdict.FAIL, LOOKS[0], 1),
        (1.023, Verdict.INCONCLUSIVE, LOOKS[-1], 0),
        (1.02, Verdict.INCONCLUSIVE, LOOKS[1], 0),  # even hundreds of pairs would not decide
    ],
)
def test_looks_stop_when_all_is_decided(two_files, scripted, *, slowdown, verdict, blocks, repeats):
    workers = scripted(slowdown={"new.onnx": slowdown})
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    assert (judgement.verdict, judgement.blocks) == (verdict, blocks)
    assert workers.counts["memory"] == workers.closed == 2 * blocks * (1 + repeats)


def test_inconclusive_accuracy_adds_no_blocks(two_files, scripted, evaluation):
    right = [0] * 40
    workers = scripted(
        predictions={"old.onnx": right, "new.onnx": [1, *right[1:]]},
        labels=right,
    )
    judgement = compare(*two_files, data=evaluation, config=QUICK, workers=workers)
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
    """Workers for an artifact and a baseline: all predictions are correct, int8 is twice as fast."""
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


def both_right(scripted, **changes):
    """Workers for `two_files` that predict every sample correctly."""
    right = [0] * 40
    return scripted(**({"predictions": {"old.onnx": right, "new.onnx": right}, "labels": right} | changes))


def test_an_artifact_is_judged_by_its_float_twin(artifact, scripted_artifact):
    judgement = gate(artifact.folder, policy=LENIENT, config=QUICK, workers=scripted_artifact())
    assert judgement.verdict is Verdict.PASS
    assert judgement.baseline == str(artifact.folder / "model.fp32.onnx")
    assert judgement.candidate == str(artifact.folder / "model.onnx")
    assert judgement.metrics["latency_p50"].ratio == pytest.approx(0.5, rel=0.02)
    assert judgement.twin_metrics == {}


def test_a_baseline_is_compared_in_addition_to_the_twin(artifact, two_files, scripted_artifact):
    workers = scripted_artifact(slowdown={"model.fp32.onnx": 2.0, "model.onnx": 1.2})
    judgement = gate(artifact.folder, baseline=two_files[0], policy=LENIENT, config=QUICK, workers=workers)
    assert judgement.baseline == str(two_files[0])
    assert len(judgement.result.models) == 3
    assert judgement.metrics["latency_p50"].verdict is Verdict.FAIL
    assert judgement.twin_metrics["latency_p50"].verdict is Verdict.PASS
    assert judgement.verdict is Verdict.FAIL


def test_reasons_distinguish_the_twin_from_the_baseline(artifact, two_files, scripted_artifact):
    workers = scripted_artifact(slowdown={"model.fp32.onnx": 0.5})
    judgement = gate(artifact.folder, baseline=two_files[0], policy=LENIENT, config=QUICK, workers=workers)
    assert [reason.partition(" FAIL")[0] for reason in judgement.reasons] == ["against float: latency_p50"]


@pytest.mark.parametrize(
    ("right", "verdict"), [(40, Verdict.PASS), (36, Verdict.INCONCLUSIVE), (10, Verdict.FAIL)]
)
def test_min_accuracy_is_an_additional_metric(artifact, scripted_artifact, right, verdict):
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


def test_a_model_without_artifact_needs_a_baseline(two_files, scripted):
    workers = scripted()
    with pytest.raises(UsageError, match="add --baseline"):
        gate(two_files[0], workers=workers)
    assert not workers.requests


@pytest.mark.parametrize("form", ["file", "tables", "value"])
def test_a_policy_is_accepted_in_every_form(artifact, tmp_path, form):
    path = tmp_path / "policy.toml"
    path.write_text("min_accuracy = 0.25\n")
    forms = {"file": str(path), "tables": {"min_accuracy": 0.25}, "value": Policy(min_accuracy=0.25)}
    assert policy_for(artifact.folder, forms[form]) == Policy(min_accuracy=0.25)


def test_the_default_policy_is_that_of_the_recipe(artifact, models):
    assert policy_for(artifact.folder, None) == Policy(min_accuracy=0.5)
    assert policy_for(str(models.dynamic), None) == Policy()
    with pytest.raises(PolicyError, match="policy: speed: unknown key"):
        policy_for(artifact.folder, {"speed": 1})


def test_a_judgement_can_be_recomputed_from_its_result(two_files, scripted):
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=scripted())
    assert judgement.result.criteria.budgets == (LATENCY_ONLY,)
    assert judgement_from(judgement.result, judgement.result.criteria) == judgement


def test_plain_paths_do_not_reveal_folders(artifact, scripted_artifact):
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


def test_a_fail_that_the_repeat_does_not_confirm_is_inconclusive(two_files, scripted):
    class Calmed(scripted):
        """Slow only in the first ten blocks, for example because of an unlucky memory layout."""

        def __call__(self, count, timeout_s):
            self.slowdown = {"new.onnx": 1.2 if self.closed < 2 * LOOKS[0] else 1.0}
            return super().__call__(count, timeout_s)

    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=Calmed())
    metric = judgement.metrics["latency_p50"]
    assert (judgement.verdict, metric.verdict) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert metric.ratio == pytest.approx(1.2, rel=0.02)
    assert "an independent repeat (1.00" in metric.reason
    assert "does not confirm it" in metric.reason
    assert len(judgement.result.repeat.models[0].runs) == LOOKS[0]


def test_an_inconclusive_repeat_adds_blocks(two_files, scripted):
    class Doubtful(scripted):
        """Far too slow in the first ten blocks, then slightly too slow, except in two blocks."""

        def __call__(self, count, timeout_s):
            block = self.closed // 2 - LOOKS[0]
            self.slowdown = {"new.onnx": 1.2 if block < 0 else 1.0 if block in {2, 7} else 1.035}
            return super().__call__(count, timeout_s)

    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=Doubtful())
    assert judgement.verdict is Verdict.FAIL
    assert (judgement.blocks, len(judgement.result.repeat.models[0].runs)) == (LOOKS[0], LOOKS[1])
    assert judgement.result.repeat.criteria.looks == LOOKS[-1:]
    again = judgement_from(judgement.result, judgement.result.criteria)
    assert (again.verdict, again.metrics) == (judgement.verdict, judgement.metrics)


def test_a_repeat_adds_blocks_only_for_failed_metrics(two_files, scripted):
    budgets = ReleaseBudgets(latency_p50=0.02, latency_p90=0.2, peak_rss=None, size=None, accuracy=None)
    judgement = compare(
        *two_files, budgets=budgets, config=QUICK, workers=scripted(slowdown={"new.onnx": 1.2})
    )
    assert judgement.metrics["latency_p90"].verdict is Verdict.INCONCLUSIVE
    assert judgement.metrics["latency_p50"].verdict is Verdict.FAIL
    assert len(judgement.result.repeat.models[0].runs) == judgement.blocks


def test_exact_metrics_fail_without_a_repeat(two_files, scripted):
    two_files[1].write_bytes(two_files[1].read_bytes() * 2)
    judgement = compare(*two_files, config=QUICK, workers=scripted())
    assert (judgement.verdict, judgement.metrics["size"].verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert judgement.result.repeat is None


@pytest.mark.parametrize("which", [compare, gate])
def test_the_same_file_is_invalid_without_the_option_same(two_files, scripted, which):
    shutil.copyfile(two_files[0], two_files[1])
    workers = scripted()
    arguments = two_files if which is compare else two_files[1:]
    more = {"policy": Policy(baseline=ReleaseBudgets(accuracy=None))} | {"baseline": two_files[0]}
    more = more if which is gate else {}
    judgement = which(*arguments, **more, config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.INVALID
    assert judgement.reasons[0].endswith("same file: add --same if this is intended")
    assert not workers.requests
    judgement = which(*arguments, **more, options=GateOptions(same=True), config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.PASS
    assert judgement_from(judgement.result, judgement.result.criteria).verdict is Verdict.PASS


def test_a_float_model_in_place_of_its_int8_one_is_a_swap(artifact, scripted):
    workers = scripted()
    candidate = artifact.folder / "model.fp32.onnx"
    judgement = gate(candidate, baseline=artifact.folder, config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.INVALID
    assert "the candidate is the float model of the baseline: they seem swapped" in judgement.reasons[0]
    assert not workers.requests


@pytest.fixture
def older(artifact, tmp_path):
    """A release of the same recipe with other bytes, built before `artifact`."""
    folder = tmp_path / "older"
    shutil.copytree(artifact.folder, folder)
    for name, place in (("new", artifact.folder), ("old", folder)):
        written_by(name, place / "model.onnx", place / "model.onnx")
    artifact.seal()
    made = type(artifact)(folder, artifact.recipe)
    made.seal(created_utc="2025-01-01T00:00:00+00:00")
    return folder


def test_releases_in_the_wrong_order_are_a_swap(artifact, older, scripted_artifact):
    def judged(candidate, baseline, **options):
        return gate(
            candidate,
            baseline=baseline,
            policy=LENIENT.model_copy(update={"float_twin": TwinBudgets(accuracy=0.2, size=0.2)}),
            options=GateOptions(**options),
            config=QUICK,
            workers=scripted_artifact(),
        )

    assert judged(artifact.folder, older).verdict is Verdict.PASS
    swapped = judged(older, artifact.folder)
    assert swapped.verdict is Verdict.INVALID
    assert "the baseline was built after the candidate (2026-01-01" in swapped.reasons[0]
    assert judged(older, artifact.folder, any_order=True).verdict is Verdict.PASS


def test_timed_outputs_that_differ_from_judged_ones_are_invalid(two_files, scripted, evaluation):
    workers = both_right(scripted, sqnr_db={"new.onnx": 3.0})
    judgement = compare(*two_files, data=evaluation, config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.INVALID
    assert "its outputs while timed differ" in judgement.reasons[0]
    assert "(SQNR 3.0 dB, at least 25 dB expected)" in judgement.reasons[0]
    assert judgement.blocks == LOOKS[0]


DEATH = MeasurementError("worker", "died during 'burst' (signal SIGSEGV); its last output: boom", "look")


@pytest.mark.parametrize(("request_number", "blocks"), [(0, 0), (30, 2)])
def test_a_worker_that_dies_is_invalid_and_its_last_output_is_quoted(
    two_files, scripted, request_number, blocks
):
    workers = scripted(fails={request_number: DEATH})
    judgement = compare(*two_files, config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.INVALID
    assert "its last output: boom" in judgement.reasons[0]
    assert judgement.blocks == blocks
    assert judgement_from(judgement.result, judgement.result.criteria).verdict is Verdict.INVALID


def test_a_worker_that_dies_in_the_repeat_is_invalid(two_files, scripted):
    first = scripted(slowdown={"new.onnx": 1.5})
    compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=first)
    workers = scripted(slowdown={"new.onnx": 1.5}, fails={len(first.requests) - 5: DEATH})
    judgement = compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    assert judgement.verdict is Verdict.INVALID
    assert "in the repeat: worker: died" in judgement.reasons[0]


@pytest.mark.parametrize("in_repeat", [False, True])
def test_an_interrupted_gate_keeps_what_it_has(two_files, scripted, in_repeat):
    first = scripted(slowdown={"new.onnx": 1.5})
    compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=first)
    number = len(first.requests) - 5 if in_repeat else len(first.requests) // 4 - 1
    workers = scripted(slowdown={"new.onnx": 1.5}, fails={number: KeyboardInterrupt()})
    with pytest.raises(Interrupted) as stop:
        compare(*two_files, budgets=LATENCY_ONLY, config=QUICK, workers=workers)
    result = stop.value.result
    assert INTERRUPTED in result.stopped
    assert len(result.models[0].runs) == (LOOKS[0] if in_repeat else LOOKS[0] // 2 - 1)
    assert (result.repeat is not None) is in_repeat
    judgement = judgement_from(result, result.criteria)
    assert judgement.verdict is Verdict.INVALID
    assert INTERRUPTED in judgement.reasons[0]


def test_a_time_limit_before_the_first_block_is_invalid(two_files, scripted):
    limit = dataclasses.replace(QUICK, time_limit_s=1e-9)
    judgement = compare(*two_files, config=limit, workers=scripted())
    assert judgement.verdict is Verdict.INVALID
    assert judgement.reasons[-1] == f"only 0 blocks: {TIME_LIMIT}"
    assert "INVALID: nothing was measured" in judgement.reasons


def test_a_host_that_changes_is_invalid(two_files, scripted):
    here = Measurement(two_files, None).host()
    hosts = iter([here, here, here.model_copy(update={"cpu_model": "another"})])
    with Measurement(two_files, None, QUICK, workers=scripted(), host=lambda: next(hosts)) as measurement:
        measurement.add_blocks(10)
        assert measurement.result().stopped is None
        result = measurement.result()
    assert (result.stopped, result.host) == (OTHER_HOST, here)
    judgement = judgement_from(result, criteria(Policy(), [LATENCY_ONLY]))
    assert judgement.verdict is Verdict.INVALID


def test_mismatches_name_what_makes_results_incomparable(two_files, scripted):
    result = compare(*two_files, config=QUICK, workers=scripted()).result
    assert mismatches(result, result) == []
    host = result.host.model_copy(update={"cpu_model": "another"})
    settings = result.settings.model_copy(update={"threads": 2, "seed": 9})
    other = result.model_copy(update={"host": host, "settings": settings, "models": result.models[::-1]})
    assert mismatches(result, other) == [
        f"host.cpu_model differs: {result.host.cpu_model!r} and 'another'",
        "settings.threads differs: 1 and 2",
        "the models differ",
    ]
    broken = result.model_copy(update={"repeat": other})
    assert judgement_from(broken, result.criteria).verdict is Verdict.INVALID


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (
            Policy(float_twin=TwinBudgets(accuracy=0.01)),
            "float_twin.accuracy = 0.01: 40 evaluation samples are too few: even a perfect candidate could "
            "not pass; use at least 268 samples, or relax the budget",
        ),
        (
            Policy(float_twin=TwinBudgets(accuracy=0.2, agreement=0.99)),
            "float_twin.agreement = 0.99: 40 evaluation samples are too few: even a perfect candidate "
            "could not pass; use at least 299 samples, or relax the budget",
        ),
        (
            LENIENT.model_copy(update={"min_accuracy": 0.95}),
            "min_accuracy = 0.95: 40 evaluation samples are too few: even a perfect candidate could "
            "not pass; use at least 59 samples, or relax the budget",
        ),
        (
            LENIENT.model_copy(update={"min_accuracy": 1.0}),
            "min_accuracy: no number of samples can prove a proportion of 1; set it below 1",
        ),
        (
            Policy(float_twin=TwinBudgets(accuracy=0.0)),
            "float_twin.accuracy: no number of samples can exclude every loss; set the budget above 0",
        ),
    ],
)
def test_budgets_that_the_data_cannot_resolve_are_refused(artifact, scripted, policy, words):
    workers = scripted()
    with pytest.raises(PolicyError) as caught:
        gate(artifact.folder, policy=policy, config=QUICK, workers=workers)
    assert str(caught.value).startswith(words)
    assert not workers.requests


@pytest.mark.parametrize(("count", "refused"), [(267, True), (268, False)])
def test_the_stated_number_of_samples_suffices(artifact, scripted, tmp_path, *, count, refused):
    data = tmp_path / "data.npz"
    write_npz(data, {"x": np.ones((count, 4), np.float32), "labels": np.zeros(count, np.int64)})
    right = [0] * count
    workers = scripted(
        predictions={"model.onnx": right, "model.fp32.onnx": right},
        labels=right,
        slowdown={"model.fp32.onnx": 2.0},
    )
    arguments = {"data": data, "config": QUICK, "workers": workers}
    if refused:
        with pytest.raises(PolicyError, match="use at least 268 samples"):
            gate(artifact.folder, **arguments)
    # With 267 samples the budget cannot pass, whatever the models predict. With one more, it can.
    chosen = Subject(artifact.folder / "model.onnx", artifact.folder / "model.fp32.onnx", data)
    judgement = gate_subjects(chosen, None, Policy(), config=QUICK, workers=workers)
    verdict = judgement.metrics["accuracy"].verdict
    assert verdict is (Verdict.INCONCLUSIVE if refused else Verdict.PASS)


def test_fewer_pairs_than_the_first_look_are_refused(two_files, scripted):
    with pytest.raises(PolicyError, match="9 is too few for a verdict; use at least 10"):
        compare(*two_files, options=GateOptions(pairs=9), config=QUICK, workers=scripted())


@pytest.mark.parametrize(("pairs", "looks"), [(10, (10,)), (30, (10, 15, 20, 30)), (60, (10, 15, 20, 60))])
def test_more_pairs_move_the_last_look(two_files, scripted, pairs, looks):
    workers = scripted(slowdown={"new.onnx": 1.023 if pairs < 60 else 1.0215})
    options = GateOptions(pairs=pairs)
    judgement = compare(*two_files, budgets=LATENCY_ONLY, options=options, config=QUICK, workers=workers)
    assert judgement.result.criteria.looks == looks
    assert judgement.blocks == pairs


def test_flips_have_the_names_of_their_samples(two_files, scripted, evaluation):
    right = [0] * 40
    workers = both_right(
        scripted,
        predictions={"old.onnx": right, "new.onnx": [*right[:38], 2, 1]},
        ids=[f"image-{k}" for k in range(40)],
    )
    judgement = compare(*two_files, data=evaluation, config=QUICK, workers=workers)
    assert [(f.sample, f.label, f.baseline, f.candidate) for f in judgement.flips] == [
        ("image-38", 0, 0, 2),
        ("image-39", 0, 0, 1),
    ]


def test_a_tail_is_judged_against_an_absolute_limit(two_files, scripted, evaluation):
    def verdict(limit_ms, **changes):
        policy = Policy(max_p99_ms=limit_ms, baseline=ReleaseBudgets(accuracy=0.2))
        config = MeasureConfig(rounds=8, burst_target_ns=50_000_000)
        judgement = gate(
            two_files[1],
            baseline=two_files[0],
            policy=policy,
            data=evaluation,
            config=config,
            workers=both_right(scripted, noise=0.02, **changes),
        )
        return judgement.metrics["latency_p99"].verdict

    assert verdict(6.0) is Verdict.PASS
    assert verdict(4.0) is Verdict.FAIL


def test_a_verdict_without_certificate_states_that_error_rates_are_unknown(two_files, scripted):
    judgement = compare(*two_files, config=QUICK, workers=scripted())
    assert judgement.result.certificate == NOT_CERTIFIED
