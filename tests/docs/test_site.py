"""The site builds without a warning, and its reference pages say what the code says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs import reference
from tests.house.modules import ROOT


def test_reference_pages_are_current():
    assert not reference.stale_pages(), "run make reference"


def test_check_reports_a_stale_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert reference.main(["--check"]) == 1
    assert "recipe.md is stale" in capsys.readouterr().out
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_every_key_of_a_recipe_is_on_its_page():
    page = reference.recipe_page()
    for key in ("factory", "float_latency_ratio", "unfreeze_every", "max_drop", "latency_p50", "kind"):
        assert f"| `{key}` |" in page
    for table in ("`[stage.target]` of kind `shrink`", "`[[stage]]` of kind `qat`", "`[gate.float_twin]`"):
        assert f"\n## {table}\n" in page


@pytest.mark.slow
def test_the_site_builds_strictly():
    """Every link and anchor between pages resolves; every public name is found."""
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
