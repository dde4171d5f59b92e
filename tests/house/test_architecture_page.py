"""docs/architecture.md lists every room in the order of the contracts, and every path in it exists."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.house.modules import ROOT

PAGES = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]
CODE = re.compile(r"`([^`]+)`")
FENCED = re.compile(r"^\s*```.*?^\s*```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?:bench|exporter|models|tests|docs)/[\w/.]*|pyproject\.toml")
NAME_IN = re.compile(r"`(\w+)` (?:in|of) `([\w/.]+\.py)`")
ROW = re.compile(r"^\| `(\w+(?:/|\.py))` \| (.*?) \|(?: (.*?) \|)?$", re.MULTILINE)


def table_of(package):
    """Return the rows of a package's table: room, content, files to start with."""
    page = PAGES[0].read_text()
    _, _, rest = page.partition(f"| `{package}/` | content | start reading at |\n")
    return ROW.findall(rest.partition("\n\n")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page):
    paths = [code for code in CODE.findall(FENCED.sub("", page.read_text())) if PATH.fullmatch(code)]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("package", ["exporter", "bench"])
def test_the_table_has_every_room_in_order(package):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c.get("containers") == [package])
    rooms = [room.strip() for layer in layers for room in layer.split("|")]
    rows = table_of(package)
    assert [room.removesuffix("/").removesuffix(".py") for room, _, _ in rows] == rooms
    for room, _, files in rows:
        for file in CODE.findall(files):
            assert (ROOT / package / room / file).exists(), f"{package}/{room}{file}"


def test_the_files_that_the_page_names_for_a_function_have_it():
    found = NAME_IN.findall(PAGES[0].read_text())
    assert found
    assert [(name, file) for name, file in found if name not in (ROOT / file).read_text()] == []
