"""Models for another kind of CPU: the times on this CPU must not decide the verdict."""

from __future__ import annotations

import functools
import json

import pytest

from bench.core.policy import Budgets, Policy
from bench.inputs.host import TARGET_KEY, fingerprint, host_target, other_target
from bench.judging import gate
from bench.judging.gate import compare
from bench.judging.gate import gate as judge_release
from bench.judging.replay import replay
from bench.judging.verdicts import Verdict
from bench.measuring import measure
from bench.measuring.measure import MeasureConfig
from bench.measuring.result import write_result
from bench.views.formats import Format, convert
from bench.views.tables import budget_text, figure_rows, judgement_view, plain_text
from tests.bench import onnx_bytes

RIGHT = [0] * 40
HERE = host_target(fingerprint())
OTHER = "arm64" if HERE.startswith("x86") else "x86-vnni"
NAMES = ("model.onnx", "model.fp32.onnx", "dynamic.onnx", "rounded.onnx", "made.onnx")
TIMES = ("latency_p50", "latency_p90", "peak_rss")
LENIENT = Policy.model_validate({"float_twin": {"accuracy": 0.2}, "baseline": {"accuracy": 0.2}})
CONFIG = MeasureConfig(rounds=3)


@pytest.fixture
def workers(scripted):
    """Scripted workers in which int8 runs in a fifth of float's time, which passes if it is judged."""
    return scripted(
        predictions=dict.fromkeys(NAMES, RIGHT), labels=RIGHT, slowdown={"model.fp32.onnx": 5.0}
    )


@pytest.fixture
def elsewhere(artifact):
    artifact.recipe["gate"] = {}
    artifact.seal(target=OTHER)
    return artifact.folder


@pytest.fixture
def lone(models, tmp_path):
    """An .onnx file whose metadata state its kind of CPU."""
    path = tmp_path / "made.onnx"
    path.write_bytes(models.rounded.read_bytes() + onnx_bytes.metadata({TARGET_KEY: OTHER}))
    return path


@pytest.mark.parametrize(
    ("target", "other"), [(None, False), ("portable", False), (HERE, False), (OTHER, True), ("z80", True)]
)
def test_other_target_compares_with_the_host(target, other):
    assert other_target(target, fingerprint()) == (target if other else None)


def test_an_artifact_for_another_kind_is_inconclusive_with_a_reason(elsewhere, workers):
    judgement = judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.reasons == (
        f"INCONCLUSIVE: {elsewhere}/model.onnx was made for {OTHER}, this CPU is {HERE}: its latency and "
        f"memory are not measured on {OTHER}",
    )
    for name in TIMES:
        metric = judgement.metrics[name]
        assert (metric.ratio, metric.lower, metric.upper, metric.details) == (None, None, None, {})
        assert metric.not_measured_on == OTHER
        assert metric.verdict is (None if metric.budget is None else Verdict.INCONCLUSIVE)
    # Size and accuracy do not depend on the CPU, so they are judged.
    assert judgement.metrics["size"].ratio is not None
    assert judgement.metrics["accuracy"].verdict is Verdict.PASS


def test_the_same_artifact_passes_on_its_own_kind(artifact, workers):
    artifact.recipe["gate"] = {}
    artifact.seal(target=HERE)
    judgement = judge_release(artifact.folder, policy=LENIENT, config=CONFIG, workers=workers)
    assert (judgement.verdict, judgement.reasons) == (Verdict.PASS, ())


def test_only_one_block_is_measured_for_another_kind(elsewhere, workers):
    judgement = judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    assert judgement.blocks == 1


def test_a_failed_size_budget_still_fails(elsewhere, workers):
    policy = Policy.model_validate({"float_twin": {"accuracy": 0.2, "size": -0.99}})
    judgement = judge_release(elsewhere, policy=policy, config=CONFIG, workers=workers)
    assert judgement.verdict is Verdict.FAIL


def test_a_policy_without_time_budgets_is_inconclusive_too(elsewhere, workers):
    """No figure was measured on the kind of CPU that the artifact is for."""
    policy = Policy.model_validate({"float_twin": {"accuracy": 0.2, "latency_p50": None, "size": None}})
    judgement = judge_release(elsewhere, policy=policy, config=CONFIG, workers=workers)
    assert judgement.verdict is Verdict.INCONCLUSIVE


def test_an_absolute_latency_is_not_judged_either(elsewhere, workers):
    policy = LENIENT.model_copy(update={"max_p99_ms": 1000.0})
    judgement = judge_release(elsewhere, policy=policy, config=CONFIG, workers=workers)
    assert judgement.metrics["latency_p99"].not_measured_on == OTHER
    assert budget_text(judgement.metrics["latency_p99"]) == "≤ 1000.000 ms"
    assert judgement.verdict is Verdict.INCONCLUSIVE


def test_accuracy_is_measured_with_exact_sums(elsewhere, workers):
    judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    opened = [(model, request.exact_sums) for op, model, request in workers.requests if op == "open"]
    assert ("model.onnx", True) in opened
    assert all(not exact for model, exact in opened if model != "model.onnx")
    assert "check" not in [op for op, model, _ in workers.requests if model == "model.onnx"]


@pytest.mark.parametrize("order", ["candidate", "baseline"])
def test_a_lone_file_that_states_another_kind_is_inconclusive(lone, models, evaluation, workers, order):
    pair = (models.dynamic, lone) if order == "candidate" else (lone, models.dynamic)
    judgement = compare(
        *pair, data=evaluation, budgets=Budgets(latency_p50=0.5), config=CONFIG, workers=workers
    )
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.metrics["latency_p50"].not_measured_on == OTHER
    assert f"made.onnx was made for {OTHER}" in judgement.reasons[0]


def test_a_replayed_result_has_the_same_verdict_and_reasons(elsewhere, workers, tmp_path):
    judgement = judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    write_result(tmp_path / "result.json", judgement.result)
    _, again = replay(tmp_path / "result.json")
    assert (again.verdict, again.reasons) == (judgement.verdict, judgement.reasons)
    assert again.metrics == judgement.metrics


def test_the_tables_mark_rows_that_were_not_measured(elsewhere, workers):
    judgement = judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    text = plain_text(judgement_view(judgement), width=140)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for row in ("latency p50", "latency p99", "throughput", "peak memory", *TIMES):
        assert f"not measured on {OTHER}" in lines[row], row
    for row in ("accuracy", "file size", "size"):
        assert "not measured" not in lines[row], row
    assert lines["latency_p50"].split()[-4:] == ["≤", "1.000", "×", "INCONCLUSIVE"]


def test_bench_shows_figures_of_this_cpu_with_a_warning(lone, models, workers, command, monkeypatch):
    monkeypatch.setattr(measure, "measure", functools.partial(measure.measure, workers=workers))
    ran = command("bench", models.dynamic, lone, "--blocks", 1)
    assert ran.code == 0
    assert f"made.onnx was made for {OTHER}, this CPU is {HERE}" in ran.out
    assert f"warning: {lone} was made for '{OTHER}'" in ran.err
    told = json.loads(command("bench", lone, "--blocks", 1, "--json").out)
    assert told["models"][0]["made_for"] == OTHER
    assert told["models"][0]["latency_ns"]["p50"] > 0
    assert (
        json.loads(command("bench", models.dynamic, "--blocks", 1, "--json").out)["models"][0]["made_for"]
        is None
    )


def test_the_exit_code_of_gate_is_three(elsewhere, workers, command, monkeypatch):
    monkeypatch.setattr(gate, "gate", functools.partial(gate.gate, workers=workers))
    ran = command("gate", elsewhere, "--json", "--policy", elsewhere.parent / "policy.toml")
    assert ran.code == 2  # the policy does not exist yet
    (elsewhere.parent / "policy.toml").write_text("float_twin = { accuracy = 0.2 }\n")
    ran = command("gate", elsewhere, "--json", "--policy", elsewhere.parent / "policy.toml")
    told = json.loads(ran.out)
    assert (ran.code, told["verdict"]) == (3, "INCONCLUSIVE")
    assert told["metrics"]["latency_p50"]["reason"] == f"not measured on {OTHER}"


@pytest.mark.parametrize("name", list(Format))
def test_no_format_exports_times_of_another_kind(elsewhere, workers, name):
    judgement = judge_release(elsewhere, policy=LENIENT, config=CONFIG, workers=workers)
    text = convert(judgement.result, judgement, name)
    candidate = judgement.result.models[-1]
    if name is Format.PYTEST_BENCHMARK:
        extra = json.loads(text)["benchmarks"][-1]["extra_info"]
        assert extra["not_measured_on"] == OTHER
        assert not [key for key in extra if key.startswith(("latency", "peak", "throughput"))]
    elif name is Format.PYPERF:
        names = [benchmark["metadata"]["name"] for benchmark in json.loads(text)["benchmarks"]]
        assert [label for label in names if label.startswith("model.onnx")] == ["model.onnx size"]
    else:
        p50 = candidate.latency().p50
        assert f"{p50:.0f}"[:6] not in text.replace(".", "")
    assert figure_rows({"int8": candidate}, judged=True)[1][1] == [f"not measured on {OTHER}"]
    assert figure_rows({"int8": candidate})[1][1] != [f"not measured on {OTHER}"]


@pytest.mark.parametrize("target", ["[red]x\x1b[0m", "[red]x" * 10_000, "", "ä\n"])
def test_a_target_with_special_characters_is_shown_safely(artifact, workers, target):
    artifact.recipe["gate"] = {}
    artifact.seal(target=target)
    judgement = judge_release(artifact.folder, policy=LENIENT, config=CONFIG, workers=workers)
    text = plain_text(judgement_view(judgement), width=140)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "\x1b" not in text
    assert ("[red]x" in text) == ("[red]x" in target)
