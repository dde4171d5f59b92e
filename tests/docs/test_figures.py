"""Figures on the pages that the code knows: each is compared with the code."""

from __future__ import annotations

import re
import tomllib

import pytest

from bench.core.policy import LOOKS
from bench.inputs.runtime import OLDEST
from bench.judging.certify import SLOWDOWNS
from bench.judging.verdicts import ACCURACY_ALPHA, LATENCY_ALPHA, MEMORY_ALPHA, MEMORY_SLACK_BYTES, Verdict
from bench.measuring.measure import MIN_ROUNDS, MeasureConfig
from bench.views.formats import Format
from exporter.extras import TESTED
from exporter.graphs.targets import TARGETS
from exporter.training.stages import STAGES
from tests.house.modules import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def page(name):
    """The text of a page, its lines joined."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_the_statistics_of_the_gate():
    text = page("docs/gate-statistics.md")
    config = MeasureConfig()
    assert f"up to {config.rounds} **bursts** of about {config.burst_target_ns / 1e6:.0f} ms" in text
    assert f"at least {MIN_ROUNDS}" in text
    assert f"The first {config.untimed_per_burst} inferences of a burst are not timed" in text
    *first, last = LOOKS
    assert f"after {', '.join(map(str, first))} and {last} blocks" in text
    assert (
        f"| latency p50, p90 | exact Wilcoxon signed-rank bounds of the block scores | {LATENCY_ALPHA:.0%}"
        in (text.replace(" %", "%"))
    )
    assert re.search(rf"\| peak memory \| [^|]* \| {MEMORY_ALPHA * 100:.0f} % \|", text)
    assert re.search(rf"\| accuracy \| [^|]* \| {ACCURACY_ALPHA * 100:.0f} % \|", text)
    assert f"tighter than {MEMORY_SLACK_BYTES // 2**20} MiB" in text


def test_the_gate_in_ci():
    text = page("docs/gate-in-ci.md")
    for verdict in Verdict:
        assert f"| {verdict.exit_code} | {verdict} |" in text
    for name in Format:
        assert f"`{name}`" in text
    assert f"slowdowns of {SLOWDOWNS[0] * 100:.0f} to {SLOWDOWNS[-1] * 100:.0f} %" in text


def test_the_platforms():
    text = page("docs/platforms.md")
    for target in TARGETS:
        assert f"| `{target}` |" in text
    assert f"| ONNX Runtime, to run a model | {'.'.join(map(str, OLDEST))} or newer |" in text
    oldest, too_new = TESTED["onnxruntime"]
    newest = f"{too_new[0]}.{too_new[1] - 1}"
    assert f"| ONNX Runtime, to make a model | {'.'.join(map(str, oldest))} to {newest} |" in text
    assert PROJECT["requires-python"] == ">=3.11"
    assert "| Python | 3.11 to" in text


def test_the_stages():
    text = page("docs/own-model.md")
    for kind in STAGES:
        assert f"| `{kind}` |" in text


@pytest.mark.parametrize("extra", sorted({*PROJECT["optional-dependencies"]} - {"dev", "test", "release"}))
def test_the_extras_of_users(extra):
    assert f"| `{extra}` |" in page("docs/quick-start.md")


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
