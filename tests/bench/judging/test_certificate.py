"""Error rates computed from scores whose true slowdown is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import PolicyError, ResultError, StorageError
from bench.core.policy import Budgets, Policy, ReleaseBudgets
from bench.inputs.host import fingerprint
from bench.judging import certificate
from bench.judging.certificate import (
    POWER,
    Certificate,
    Condition,
    certificate_path,
    detectable,
    fail_share,
    gate_runs,
    memory_fail_share,
    read_certificate,
    write_certificate,
)
from bench.judging.gate import GateOptions, compare, gate
from bench.judging.verdicts import Verdict


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scores(centre=0.0, spread=0.005, count=300):
    return np.random.default_rng(0).normal(centre, spread, count).tolist()


def certified(spread=0.005, **changes):
    unchanged = {
        "latency_p50": tuple(scores(spread=spread)),
        "latency_p90": tuple(scores(spread=5 * spread)),
    }
    content = {
        "updated_utc": "2026-01-02T03:04:05+00:00",
        "host": fingerprint(),
        "model": "m.onnx",
        "sha256": "0" * 64,
        "threads": 1,
        "budget": 0.02,
        "accuracy_budget": 0.01,
        "conditions": (Condition(kind="same", asked=0.0, **unchanged),),
        "mde80": 0.031,
    }
    return Certificate(**(content | changes))


def test_no_two_runs_share_a_pair():
    verdicts = gate_runs([0.0] * 25, 0.02)
    assert verdicts == [Verdict.PASS] * 2
    # The repeat after a FAIL uses as many pairs again.
    assert gate_runs([0.1] * 25, 0.02) == [Verdict.FAIL]
    assert gate_runs([0.1] * 10 + [0.0] * 10, 0.02) == [Verdict.INCONCLUSIVE]
    # An inconclusive repeat keeps adding pairs.
    doubtful = [0.1] * 10 + [0.03] * 8 + [-0.1] * 2
    assert gate_runs([*doubtful, *[0.03] * 10], 0.02) == [Verdict.FAIL]
    assert gate_runs([*doubtful, *[0.03] * 5], 0.02) == []
    assert gate_runs([0.0] * 9, 0.02) == []


def test_power_grows_with_the_change():
    shares = [fail_share(scores(centre), 0.02, 60) for centre in (0.0, 0.02, 0.03, 0.06)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.long
@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_a_detectable_slowdown_fails_8_times_in_10(budget):
    found = detectable(scores(), budget)
    assert found > budget
    still = np.array(scores()) - np.median(scores())
    assert fail_share((still + np.log1p(found)).tolist(), budget) >= POWER
    less = np.log1p(budget) + (np.log1p(found) - np.log1p(budget)) / 4
    assert fail_share((still + less).tolist(), budget) < 0.75


def test_nothing_is_detectable_in_extreme_noise():
    assert detectable(scores(spread=3.0), 0.02) is None


def test_more_memory_than_the_slack_fails():
    assert memory_fail_share([(50 << 20, 50 << 20)] * 20, 0.02, 20) == 0.0
    assert memory_fail_share([(50 << 20, 55 << 20)] * 20, 0.02, 20) == 1.0


def test_a_certificate_is_stored_for_one_host():
    one = certified()
    path = write_certificate(one)
    assert path == certificate_path(one.host)
    assert read_certificate(one.host) == one
    other = one.host.model_copy(update={"cpu_model": "another"})
    assert read_certificate(other) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema_version": 2}, "schema_version"), ({"surprise": 1}, "surprise: unknown key")],
)
def test_an_invalid_certificate_is_refused(change, words):
    path = write_certificate(certified())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=words):
        read_certificate(fingerprint())


def test_a_certificate_that_is_too_large_is_refused(monkeypatch):
    write_certificate(certified())
    monkeypatch.setattr(certificate, "MAX_CERTIFICATE_BYTES", 10)
    with pytest.raises(ResultError, match="is larger than 10 bytes"):
        read_certificate(fingerprint())


def test_the_line_states_what_was_measured():
    line = certified().line()
    assert line.startswith(
        "error rates of this host (2026-01-02, 300 pairs of m.onnx, budget 2%): 0 FAIL in "
    )
    assert line.endswith("a slowdown of 3.1% is detected 8 times in 10")
    fails, runs = certified().false_alarms()
    assert (fails, runs) == (0, 30)
    assert "(true rate at most 10%)" in line  # Clopper-Pearson: 1 - 0.05 ** (1 / 30)
    assert certified(mde80=None).line().endswith("no slowdown is detected 8 times in 10")


@pytest.mark.parametrize("metric", ["latency_p50", "latency_p90"])
def test_pairs_for_is_the_inverse_of_resolution(metric):
    one = certified()
    budget = one.resolution(metric, 30)
    assert one.pairs_for(metric, budget) == pytest.approx(30, abs=1)
    assert one.pairs_for(metric, budget / 2) > 100


def test_every_verdict_states_the_error_rates_of_the_host(models, scripted):
    def line():
        budgets = Budgets(latency_p50=0.02)
        return compare(
            models.dynamic, models.rounded, budgets=budgets, workers=scripted()
        ).result.certificate

    assert "not measured" in line()
    one = certified()
    write_certificate(one)
    assert line() == one.line()


def test_a_budget_that_the_host_cannot_resolve_is_refused(models, scripted):
    write_certificate(certified(spread=0.05))
    policy = Policy(baseline=ReleaseBudgets(accuracy=None))
    with pytest.raises(
        PolicyError,
        match=r"baseline\.latency_p50 = 0\.02: on this host, 30 .*measure \d+ pairs",
    ) as caught:
        gate(models.dynamic, baseline=models.rounded, policy=policy, workers=scripted())
    pairs = int(str(caught.value).split("measure ")[1].split()[0])
    wide = Policy(baseline=ReleaseBudgets(accuracy=None, latency_p90=None))
    workers = scripted(noise=0.001)
    options = GateOptions(pairs=pairs)
    judgement = gate(models.dynamic, baseline=models.rounded, policy=wide, options=options, workers=workers)
    assert judgement.metrics["latency_p50"].verdict is Verdict.PASS


def test_a_user_without_a_home_folder_has_no_certificate(monkeypatch):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert read_certificate(fingerprint()) is None
    with pytest.raises(
        StorageError,
        match="XDG_CACHE_HOME: is not set, and this user has no home folder; set XDG_CACHE_HOME",
    ):
        certificate_path(fingerprint())
