"""Few lines use the type `Any`, and `any_lines` finds them."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.house.any_lines import any_lines, main, unused, within
from tests.house.modules import modules

MAX_LINES = 27
MAX_CROSSING = 0


def test_few_lines_are_typed_any_and_few_mappings_to_any_cross_a_boundary(capsys):
    assert main(["--max", str(MAX_LINES), "--max-crossing", str(MAX_CROSSING)]) == 0, (
        capsys.readouterr().out
    )


def test_above_a_limit_the_script_fails(capsys):
    assert main(["--max", "0"]) == 1
    assert main(["--max-crossing", "-1"]) == 1
    assert "exporter/" in capsys.readouterr().out


def test_every_exception_is_needed():
    assert unused(any_lines(modules())) == []


@pytest.fixture
def lines_of(tmp_path):
    """Find the lines in the text of one module; a second module imports `Goods` from it."""

    def find(text):
        folder = tmp_path / "shop"
        folder.mkdir()
        (folder / "till.py").write_text(dedent(text))
        (folder / "door.py").write_text("from shop.till import Goods\ndef enter(goods: Goods) -> None: ...")
        return any_lines(modules(tmp_path, ("shop",)), tmp_path)

    return find


@pytest.mark.parametrize(
    "text",
    [
        "x: Any = 1",
        "Kind = list[Any]",
        "def f(x: Any): ...",
        "def f(*x: Any): ...",
        "def f(**x: Any): ...",
        "def f() -> tuple[int, Any]: ...",
        "def f(x):\n    return cast(Any, x)",
        "class A(Base[Any]): ...",
    ],
)
def test_any_counts_in_every_kind_of_type(lines_of, text):
    (line,) = lines_of(text)
    assert line.names_any
    assert not line.mapping


@pytest.mark.parametrize("text", ["from typing import Any", "x = 'Any'  # Any", "def f():\n    '''Any.'''"])
def test_imports_strings_and_comments_do_not_count(lines_of, text):
    assert lines_of(text) == []


@pytest.mark.parametrize(
    ("text", "scopes"),
    [
        ("def f(x: dict[str, Any]): ...", ["shop.till.f"]),
        ("def f() -> list[Mapping[str, list[Any]]]: ...", ["shop.till.f"]),
        ("def f(x: dict[str, Any | None]): ...", ["shop.till.f"]),
        ("def f(x: dict[str, Shelf[Any]]): ...", []),
        ("def _f(x: dict[str, Any]): ...", []),
        ("def f():\n    x: dict[str, Any] = {}", []),
        ("def f():\n    def g(x: dict[str, Any]): ...", []),
        ("class A:\n    x: dict[str, Any]", ["shop.till.A.x"]),
        ("class A:\n    _x: dict[str, Any]", []),
        ("class _A:\n    x: dict[str, Any]", []),
        ("class A:\n    def __init__(self, x: dict[str, Any]): ...", ["shop.till.A.__init__"]),
        ("class A:\n    def f(self):\n        self.x: dict[str, Any] = {}", ["shop.till.A.f.x"]),
        ("Goods = dict[str, Any]", ["shop.door.enter"]),
        ("Goods = dict[str, int]", []),
    ],
)
def test_a_mapping_crosses_a_boundary_if_other_modules_can_see_it(lines_of, text, scopes):
    assert [line.scope for line in lines_of(text) if line.crosses] == scopes


def test_an_exception_covers_all_names_inside_it():
    assert within("shop.till.f", ["shop.till"]) == "shop.till"
    assert within("shop.tills", ["shop.till"]) is None
