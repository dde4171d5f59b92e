"""`docs/stability.md` lists the schemas that this version writes and reads."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import bench
from bench.inputs.manifest import Manifest
from bench.judging.certificate import Certificate
from bench.judging.verdicts import Verdict
from bench.measuring.result import Result
from bench.measuring.scenario_result import ScenarioResult

PAGE = (Path(bench.__file__).parents[1] / "docs" / "stability.md").read_text(encoding="utf-8")


def reads(versions):
    return {1: "{0}", 2: "{0} and {1}"}.get(len(versions), "{0} to {1}").format(versions[0], versions[-1])


@pytest.mark.parametrize(
    ("row", "model"),
    [
        ("`manifest.json`", Manifest),
        ("result: models", Result),
        ("result of a scenario", ScenarioResult),
        ("certificate", Certificate),
    ],
)
def test_the_page_lists_every_schema(row, model):
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    field = model.model_fields["schema_version"]
    assert line.endswith(f"| {field.default} | {reads(get_args(field.annotation))} |")


def test_the_page_lists_every_verdict_and_its_exit_code():
    codes = PAGE[PAGE.index("**Exit codes**") :].partition(".\n")[0]
    for verdict in Verdict:
        assert f"{verdict.exit_code} {'done or ' * (verdict is Verdict.PASS)}{verdict}" in codes
