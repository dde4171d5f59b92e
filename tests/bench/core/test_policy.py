"""Budgets from TOML, and the errors of wrong policies."""

from __future__ import annotations

import math

import pytest

from bench.core import policy as policy_module
from bench.core.errors import PolicyError
from bench.core.policy import Policy, log_budget, policy_from, read_policy


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return path

    return write


def test_budgets_are_read(toml):
    policy = read_policy(
        toml("min_accuracy = 0.9\n[float_twin]\nlatency_p50 = -0.4\n[baseline]\naccuracy = 0.002\n")
    )
    assert policy.min_accuracy == 0.9
    assert policy.float_twin.latency_p50 == -0.4
    assert policy.baseline.accuracy == 0.002
    assert policy.baseline.latency_p50 == Policy().baseline.latency_p50


def test_an_empty_policy_is_the_default(toml):
    policy = read_policy(toml(""))
    assert policy == Policy()
    assert (policy.float_twin.latency_p50, policy.float_twin.peak_rss) == (0.0, None)
    assert (policy.baseline.latency_p50, policy.baseline.accuracy) == (0.02, 0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "speed = 1",
            "policy.toml: speed: unknown key; use one of: baseline, float_twin, max_p99_ms, min_accuracy",
        ),
        ('"a\\nb" = 1', "policy.toml: a b: unknown key"),
        (
            "[baseline]\nlatency = 0.1",
            "baseline.latency: unknown key; use one of: accuracy, agreement, latency_p50, latency_p90",
        ),
        ("min_accuracy = 1.5", "min_accuracy: 1.5 is refused; input should be less than or equal to 1"),
        ("max_p99_ms = 0", "max_p99_ms: 0 is refused; input should be greater than 0"),
        ("[baseline]\nagreement = 2", "baseline.agreement: 2 is refused"),
        ("min_accuracy = nan", "min_accuracy: nan is refused"),
        ("[float_twin]\nsize = -1.0", "float_twin.size: -1.0 is refused"),
        ("[float_twin]\nsize = 11", "float_twin.size: 11 is refused"),
        ("[baseline]\naccuracy = -0.1", "baseline.accuracy: -0.1 is refused"),
        ('[baseline]\nsize = "2%"', "baseline.size: '2%' is refused"),
        ("min_accuracy = ", "cannot be read (Invalid value"),
        ("a = " + "[" * 10_000, "cannot be read (maximum recursion depth"),
    ],
)
def test_policies_that_are_refused(toml, text, words):
    with pytest.raises(PolicyError) as caught:
        read_policy(toml(text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_is_not_text_is_refused(toml):
    path = toml("")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match=r"cannot be read .*utf-8.*; correct the file"):
        read_policy(path)


def test_a_missing_policy_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="No such file"):
        read_policy(tmp_path / "none.toml")


def test_a_too_large_policy_is_refused(toml, monkeypatch):
    monkeypatch.setattr(policy_module, "MAX_POLICY_BYTES", 3)
    with pytest.raises(PolicyError, match="is larger than 3 bytes"):
        read_policy(toml("# nothing"))


def test_the_place_of_a_policy_is_named():
    with pytest.raises(PolicyError, match=r"^build/a: float_twin: 3 is refused"):
        policy_from({"float_twin": 3}, "build/a")


@pytest.mark.parametrize("relative", [0.02, 0.0, -0.4, -0.99, 10.0])
def test_budgets_are_symmetric_as_logarithms(relative):
    reversal = 1 / (1 + relative) - 1
    assert log_budget(relative) == pytest.approx(math.log(1 + relative))
    assert log_budget(relative) == pytest.approx(-log_budget(reversal))


@pytest.mark.parametrize("text", ["min_accuracy = " + "1" * 5000, "a = " + "[" * 5000 + "]" * 5000])
def test_toml_beyond_the_limits_of_python_is_refused(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.toml: cannot be read \(.*; correct the file"):
        read_policy(path)
