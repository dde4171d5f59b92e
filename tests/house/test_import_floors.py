"""Rooms import only rooms below them, and no imports form a cycle."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

from tests.house.import_floors import circles, floors
from tests.house.modules import ROOT, imports, modules

PYPROJECT = """
    [tool.importlinter]
    root_packages = ["shop"]

    [[tool.importlinter.contracts]]
    type = "layers"
    containers = ["shop"]
    layers = ["till", "shelf | rack", "store"]
"""


def run(root):
    """Run the script; return its exit code and the lines that it prints."""
    command = [sys.executable, "-m", "tests.house.import_floors", "--root", root]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not ran.stderr
    return ran.returncode, [line.strip() for line in ran.stdout.splitlines()]


@pytest.fixture
def shop(tmp_path):
    """Create a project with four rooms and the given texts of modules."""

    def make(**texts):
        (tmp_path / "pyproject.toml").write_text(dedent(PYPROJECT))
        for room in ("", "till", "shelf", "rack", "store"):
            folder = tmp_path / "shop" / room
            folder.mkdir()
            (folder / "__init__.py").touch()
        for name, text in texts.items():
            (tmp_path / "shop" / f"{name.replace('__', '/')}.py").write_text(dedent(text))
        return tmp_path

    return make


def test_this_project_has_no_forbidden_imports_and_no_cycles():
    code, lines = run(ROOT)
    assert code == 0
    assert {line for line in lines if line.startswith(("forbidden", "cycles"))} == {
        "forbidden imports: 0",
        "cycles of rooms: 0",
        "cycles of modules: 0",
    }
    assert [line.partition(":")[0] for line in lines if " rooms on " in line] == [
        "the packages",
        "exporter",
        "exporter.training",
        "bench",
    ]


def test_rooms_have_floors(shop):
    root = shop(
        till__sell="from shop.shelf import goods", shelf__goods="import shop.store.box", store__box=""
    )
    code, lines = run(root)
    assert code == 0
    assert lines[0] == "shop: 4 rooms on 3 floors"
    assert lines[1:5] == ["2  till           shelf", "1  shelf          store", "0  rack", "0  store"]


@pytest.mark.parametrize(
    "text",
    [
        "from shop.till import sell",
        "from ..till import sell",
        "import shop.till.sell",
        "def late():\n    from shop.till.sell import price",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.till.sell import Price",
        "try:\n    import shop.till.sell\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_of_a_room_above_is_forbidden(shop, text):
    code, lines = run(shop(till__sell="", store__box=text))
    assert code == 1
    at = lines.index("forbidden imports: 1")
    assert lines[at + 1].startswith("shop.store.box:")
    assert lines[at + 1].endswith(" -> shop.till.sell")


def test_an_import_of_a_room_at_the_same_position_is_forbidden(shop):
    code, lines = run(shop(shelf__goods="from shop.rack import hook", rack__hook=""))
    assert code == 1
    assert "forbidden imports: 1" in lines


def test_a_cycle_through_an_import_in_a_function_is_found(shop):
    code, lines = run(
        shop(store__box="import shop.store.lid", store__lid="def f():\n    from . import box")
    )
    assert code == 1
    assert lines[lines.index("cycles of modules: 1") + 1] == "shop.store.box shop.store.lid"


def test_each_import_is_marked_as_loaded_local_or_for_types(shop):
    text = """
        import shop.store
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            import shop.rack
        def late():
            import shop.shelf
    """
    known = modules(shop(till__sell=text), ("shop",))
    found = [(one.target, one.when.name) for one in imports(known["shop.till.sell"], known)]
    assert found == [("shop.store", "LOADED"), ("shop.rack", "TYPES"), ("shop.shelf", "LOCAL")]


def test_cycles_and_floors_of_a_graph():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}
    assert circles(graph) == ["b c"]
    assert floors(graph) == {"a": 2, "b": 1, "c": 0, "d": 0}
