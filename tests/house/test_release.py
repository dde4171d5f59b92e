"""A release needs a tag, a version and a section of the changelog that agree."""

from __future__ import annotations

import pytest

from tests.house.release import problem, section

CHANGELOG = """# Changelog

## Unreleased

## 0.2.0 - 2026-12-01

### Added

- A thing.

## 0.1.0 - 2026-11-30

- The first.
"""


def test_a_section_ends_at_the_next_heading_or_at_the_end():
    assert section(CHANGELOG, "0.2.0") == "### Added\n\n- A thing."
    assert section(CHANGELOG, "0.1.0") == "- The first."


@pytest.mark.parametrize("version", ["0.3.0", "0.1", "0x1.0", "Unreleased"])
def test_a_section_that_is_absent(version):
    assert section(CHANGELOG, version) is None


def test_a_release_without_a_problem():
    assert problem("v0.1.0", "0.1.0", CHANGELOG) is None


@pytest.mark.parametrize("tag", ["0.1.0", "v0.1.1", "v0.1.0rc1"])
def test_a_tag_that_differs_from_the_version(tag):
    assert problem(tag, "0.1.0", CHANGELOG) == (
        f"the tag is {tag!r}, but pyproject.toml has the version '0.1.0': tag v0.1.0"
    )


def test_a_version_without_a_section_of_the_changelog():
    assert "no section '## 0.3.0 - YYYY-MM-DD'" in str(problem("v0.3.0", "0.3.0", CHANGELOG))
    assert "no section" in str(
        problem("v0.1.0", "0.1.0", "## 0.1.0 - 2026-11-30\n\n## 0.0.1 - 2026-01-01\n")
    )
